"""ScatSimCLR: pre-train on few images by contrast, and by a second task beside it (Kinakh et al. 2021, arXiv 2108.13939).

The loss is L = L_contrastive + lambda L_pretext: two views of each image find each other, and the same backbone guesses how other inputs
were turned, or how their tiles were shuffled. It pre-trains any backbone; the paper's own, whose first layers are a fixed scattering
transform, is `retinue.models.scatsimclr`.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retinue.data import Batch, Data, Loader
from retinue.engine import Objective
from retinue.errors import ArgumentError, ShapeError, unknown
from retinue.models import feature_size, pooled_features
from retinue.pretrain.jigsaw import JigsawPretext
from retinue.pretrain.rotnet import RotNet, rotate_batch
from retinue.pretrain.simclr_v2 import SimCLRv2


def projection(in_dim: int, hidden_dim: int | None = None, out_dim: int = 128) -> nn.Sequential:
    """Build the head of the contrastive loss: z = W2 relu(W1 h + b1) + b2.

    Args:
        in_dim: length of h.
        hidden_dim: width between the two layers; None is that of h.
        out_dim: length of z.

    Raises:
        ArgumentError: if a number is not positive.

    >>> sum(parameter.numel() for parameter in projection(2048).parameters())
    4458624
    """
    hidden_dim = in_dim if hidden_dim is None else hidden_dim
    for name, value in (("hidden_dim", hidden_dim), ("out_dim", out_dim)):
        if value < 1:
            raise ArgumentError(f"ScatSimCLR: `{name}` must be at least 1, got {value}. The paper has 2048 and 128.")
    return nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, out_dim))


class RotationPretext(RotNet):
    """RotNet with the head of ScatSimCLR: cross-entropy over four inputs for each image, turned by 0, 90, 180 and 270 degrees.

    Beside another loss each of the four is a view of its own, and is turned after it has been drawn. The official code turns before: the
    flip then makes of a quarter turn to the left one to the right of the mirrored image, so that nobody can tell these two apart.

    Args:
        model: the backbone to pre-train.
        widths: of the two hidden layers.
        drop_rate: share dropped behind each of them.

    >>> from retinue.models import tiny
    >>> RotationPretext(tiny("ours")).head[-1].out_features
    4
    """

    def __init__(self, model: nn.Module, widths: Sequence[int] = (512, 128), drop_rate: float = 0.5) -> None:
        super().__init__(model)
        layers: list[nn.Module] = []
        for a, b in zip((feature_size(model), *widths), widths):
            layers += [nn.Linear(a, b), nn.ReLU(inplace=True), nn.Dropout(drop_rate)]
        last = widths[-1] if widths else feature_size(model)
        self.head = nn.Sequential(*layers, nn.Linear(last, len(self.rotations)))  # type: ignore[assignment]

    def beside(self, view: Any) -> tuple[Any, ...]:
        """Say what is shown beside a loss whose images are drawn by `view`: four draws of it."""
        return (view,) * len(self.rotations)

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss, and the share of turns that are guessed right; a batch of one view is turned in all four ways."""
        count = len(self.rotations)
        draws = batch.views if len(batch.views) == count else (batch.images,) * count
        images = torch.cat([rotate_batch(drawn, self.rotations)[0][k::count] for k, drawn in enumerate(draws)])
        turns = torch.arange(count, device=images.device).repeat_interleave(len(batch))
        logits = self.head(pooled_features(model, images))
        return {"loss": F.cross_entropy(logits, turns), "turn_accuracy": (logits.argmax(-1) == turns).float().mean()}


PRETEXTS: dict[str, type[RotationPretext] | type[JigsawPretext]] = {"rotation": RotationPretext, "jigsaw": JigsawPretext}


class PretextRegularized(Objective):
    """L = L_ssl + weight L_pretext: any objective, and a pretext task that the same backbone solves beside it.

    The pretext task has inputs of its own where the objective draws its own views; beside one that learns from images as `fit` shows
    them, it takes the same images. For two tasks, put one of these into another.

    Args:
        ssl_loss: the objective; its `monitor` chooses the best checkpoint.
        pretext: `RotationPretext` or `JigsawPretext`.
        weight: lambda; 0 leaves the task out.

    Raises:
        ArgumentError: if the weight is negative, or the pretext is none of these.

    >>> from retinue.models import tiny
    >>> from retinue.engine import Supervised
    >>> model = tiny("ours")
    >>> PretextRegularized(Supervised(), RotationPretext(model), weight=0.3).monitor
    'top1'
    """

    def __init__(self, ssl_loss: Objective, pretext: RotationPretext | JigsawPretext | None, weight: float = 0.3) -> None:
        super().__init__()
        if not 0 <= weight < float("inf"):
            raise ArgumentError(f"PretextRegularized: `weight` must be 0 or more, got {weight}. The paper has 0.3; 0 leaves the task out.")
        if pretext is not None and not isinstance(pretext, RotationPretext | JigsawPretext):
            raise ArgumentError(
                f"PretextRegularized: `pretext` must be a RotationPretext or a JigsawPretext, got {type(pretext).__name__}. For two tasks, "
                "put one PretextRegularized into another: each has a weight of its own."
            )
        self.weight, self.monitor, self.mode = weight, ssl_loss.monitor, ssl_loss.mode
        self.ssl_loss, self.pretext = ssl_loss, pretext if weight else None
        self._show()

    def _show(self) -> None:
        """Choose the views: those of the objective, and the pretext's behind them."""
        own = self.ssl_loss.views
        self.views = own if own is None or self.pretext is None else (*own, *self.pretext.beside(own[0]))

    def prepare(self, model: nn.Module, data: Data) -> nn.Module:
        """Return the network that the objective trains."""
        return self.ssl_loss.prepare(model, data)

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse what either of the two refuses, and choose the views."""
        self.ssl_loss.check(model, data)
        if self.pretext is not None:
            self.pretext.check(model, data)
            if self.ssl_loss.views is not None:
                self.pretext.check_views(self.ssl_loss.views[0])
        self._show()

    def check_views(self, views: Any) -> None:
        """Refuse the views that either of the two refuses."""
        self.ssl_loss.check_views(views)
        if self.pretext is not None:
            self.pretext.check_views(views)

    def after_step(self, model: nn.Module, step: int) -> None:
        """Let the objective follow the model."""
        self.ssl_loss.after_step(model, step)

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute both losses and their sum, and what else the two report."""
        if self.views is not None and len(batch.views) != len(self.views):
            raise ShapeError(
                f"PretextRegularized: a batch needs {len(self.views)} views of each image, got {len(batch.views)}. Give the objective's "
                "own to the loader: split.loader(batch_size, views=objective.views)."
            )
        count = len(self.ssl_loss.views or batch.views)
        numbers = self.ssl_loss(model, replace(batch, views=batch.views[:count]))
        if self.pretext is None:
            return numbers
        rest = batch.views[count:]
        guessed = self.pretext(model, replace(batch, images=rest[0], views=rest) if rest else batch)
        return self._joined(numbers, guessed)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, loader: Loader) -> dict[str, float]:
        """Average both losses over held-out images, each as it does by itself."""
        if self.pretext is None:
            return self.ssl_loss.evaluate(model, loader)
        own = self.ssl_loss.views
        if own is None:
            return self._joined(self.ssl_loss.evaluate(model, loader), self.pretext.evaluate(model, loader))

        def showing(views: tuple[Any, ...]) -> Loader:
            return Loader(
                loader.split, loader.batch_size, views=views, seed=loader.seed, workers=loader.workers, device=loader.device
            )  # fmt: skip

        numbers = self.ssl_loss.evaluate(model, showing(own))
        return self._joined(numbers, self.pretext.evaluate(model, showing(self.pretext.beside(own[0])))) if numbers else numbers

    def _joined(self, numbers: dict[str, Any], guessed: dict[str, Any]) -> dict[str, Any]:
        both = {**numbers, **guessed, "ssl_loss": numbers["loss"], "pretext_loss": guessed["loss"]}
        return {**both, "loss": numbers["loss"] + self.weight * guessed["loss"]}


class ScatSimCLR(PretextRegularized):
    """NT-Xent between two views of each image, and a pretext task beside it, on any backbone.

    Views and loss are those of SimCLRv2, with the plain head of two layers. Open small data with its own mean and standard deviation: the
    tiles of the jigsaw are normalised as the views are, which the official code forgets.

    Args:
        model: the backbone to pre-train.
        data: what is trained on, for the size of the views; without it, that is known once the training begins.
        pretext: "rotation", "jigsaw", or None for the contrastive loss alone.
        weight: lambda, of the pretext task; 0 leaves it out.
        pretext_args: further arguments of `RotationPretext` or `JigsawPretext`, such as {"permutations": 35}.
        temperature: tau.
        hidden_dim: width of the head's hidden layer; None is that of the features.
        out_dim: length of the embedding.
        strength: of the jitter of colours.
        crop_area: smallest and largest share of the image's area that a view shows.
        blur: blur half of the views, also small ones; the kernel is a tenth of the height, so below 20 px it does nothing.
        shown_as: other views, as text, instead of those.

    Raises:
        ArgumentError: if an argument cannot be.

    >>> from retinue.models import tiny
    >>> ScatSimCLR(tiny("ours"), pretext="jigsaw", pretext_args={"permutations": 10}).weight
    0.3
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data | None = None,
        *,
        pretext: Literal["rotation", "jigsaw"] | None = "rotation",
        weight: float = 0.3,
        pretext_args: Mapping[str, Any] | None = None,
        temperature: float = 0.5,
        hidden_dim: int | None = None,
        out_dim: int = 128,
        strength: float = 1.0,
        crop_area: Sequence[float] = (0.08, 1.0),
        blur: bool = True,
        shown_as: str | None = None,
    ) -> None:
        head = projection(feature_size(model), hidden_dim, out_dim)
        contrast = SimCLRv2(
            model, data, temperature=temperature, num_layers=1, out_dim=out_dim, strength=strength, crop_area=crop_area, blur=blur,
            shown_as=shown_as,
        )  # fmt: skip
        contrast.head = head  # type: ignore[assignment]
        super().__init__(contrast, _pretext(model, pretext, dict(pretext_args or {})), weight)
        self.task, self.task_args, self.temperature = pretext, dict(pretext_args or {}), temperature
        self.strength, self.crop_area, self.blur, self.shown_as = strength, list(crop_area), blur, shown_as


def _pretext(model: nn.Module, name: Any, arguments: dict[str, Any]) -> RotationPretext | JigsawPretext | None:
    if name is None and not arguments:
        return None
    if not isinstance(name, str):
        raise ArgumentError(
            f'ScatSimCLR: `pretext` must be "rotation", "jigsaw", or None without `pretext_args`, got {name!r} and {arguments!r}. For two '
            "tasks, put a ScatSimCLR into a PretextRegularized: each has a weight of its own."
        )
    if name not in PRETEXTS:
        raise unknown("ScatSimCLR", "`pretext`", name, PRETEXTS)
    kind = PRETEXTS[name]
    for argument in arguments:
        if argument not in inspect.signature(kind).parameters or argument == "model":
            raise unknown(f"ScatSimCLR: {name}", "argument", argument, [p for p in inspect.signature(kind).parameters if p != "model"])
    return kind(model, **arguments)
