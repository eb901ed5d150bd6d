"""Guidance: a network that trains badly is pulled towards another, layer by layer (Subramaniam et al. 2024, arXiv 2410.20035).

The guide may be trained, or only initialised: then what it improves comes from its architecture alone. It is thrown away afterwards.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from retinue.data import Batch, Data, Loader, Preprocessing
from retinue.distill.guidance_layers import KINDS, map_layers, watching
from retinue.engine import Objective, evaluating, judge, load
from retinue.errors import ArgumentError, RetinueError, ShapeError, unknown
from retinue.metrics.cka import aligned, correlated, cosines, linear_kernel
from retinue.models import create_model

__all__ = ["KINDS", "Guidance", "guide_noise", "map_layers"]

log = logging.getLogger(__name__)

Distance = Callable[[Tensor, Tensor], Tensor]


class Measure(NamedTuple):
    """A distance in two halves: what is kept of a layer's features, and how two such things compare (0 alike, 1 unlike)."""

    keep: Callable[[Tensor], Tensor]
    compare: Distance


MEASURES = {
    "cka": Measure(linear_kernel, lambda a, b: 1 - aligned(a, b)),
    "rsa": Measure(cosines, lambda a, b: 1 - correlated(a, b)),
}


def guide_noise(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
    """Draw what the guide sees instead of images in the noise probe: clamp(N(0, 1) + 0.1 N(0, 1), 0, 1), as in the official code."""
    return (torch.randn_like(images) + 0.1 * torch.randn_like(images)).clamp(0, 1)


class Guidance(Objective):
    """Minimise CE(f(x), y) + alpha * sum over guide layers of (1 - similarity), with one forward pass of each network.

    The guide stays in evaluation mode, gets no gradient and is never changed. The similarity of a batch is the biased CKA; it grows with
    the number of features over the number of images, so compare values at one batch size alone.

    Args:
        guide: the network to learn from: a name for `create_model` ("timm:resnet18"), the folder of a run, or a module, whose parameters
            are frozen.
        data: what is trained on; a guide given by name is built for its images. (A trained guide sees them normalised as in its own
            training.)
        guide_args: options of a guide given by name, such as {"pretrained": true}.
        guide_layers: names of its layers that are compared, or "auto" (see `guidance_layers.watching`).
        target_layers: the same of the network that learns. Two lists of one length pair layers name by name; otherwise `map_layers` does.
        alpha: weight of the summed distances, 0 or more.
        distance: "cka", "rsa", or a function of both layers' features (one row an image) that returns their distance.
        guide_steps: updates after which guidance ends and the task alone is learned (the official early stop: 300); None never ends it.
        many_to_one: where several guide layers meet one target layer, count "all" of them, or the "last" as the official code does.
        token_wise: compare sequences place by place and sum, instead of all places together; both need as many places.
        noise: show the guide noise instead of the images, as a control (`guide_noise`).
        task: what the network learns beside; None is cross-entropy. Any objective that defines `forward` and runs the network once will
            do, such as a distillation.

    Raises:
        ArgumentError: if an argument cannot be.

    >>> from retinue.models import tiny
    >>> objective = Guidance(tiny("timm_cnn"), guide_steps=300)
    """

    monitor, mode = "top1", "max"

    def __init__(
        self,
        guide: str | nn.Module = "timm:resnet18",
        data: Data | None = None,
        *,
        guide_args: Mapping[str, Any] | None = None,
        guide_layers: Literal["auto"] | list[str] = "auto",
        target_layers: Literal["auto"] | list[str] = "auto",
        alpha: float = 1.0,
        distance: Literal["cka", "rsa"] | Distance = "cka",
        guide_steps: int | None = None,
        many_to_one: Literal["all", "last"] = "all",
        token_wise: bool = False,
        noise: bool = False,
        task: Objective | None = None,
    ) -> None:
        super().__init__()
        if not alpha >= 0:
            raise ArgumentError(f"Guidance: `alpha` must be 0 or more, got {alpha}. The paper has 1.")
        if guide_steps is not None and guide_steps < 0:
            raise ArgumentError(f"Guidance: `guide_steps` must be 0 or more, or None for no end, got {guide_steps}.")
        if many_to_one not in ("all", "last"):
            raise unknown("Guidance", "`many_to_one`", many_to_one, ("all", "last"))
        if isinstance(distance, str) and distance not in MEASURES:
            raise unknown("Guidance", "`distance`", distance, MEASURES)
        for name, layers in (("guide_layers", guide_layers), ("target_layers", target_layers)):
            if layers != "auto" and (isinstance(layers, str) or not layers):
                raise ArgumentError(f'Guidance: `{name}` must be "auto" or a list of names of layers, got {layers!r}.')
        self.alpha, self.guide_steps, self.many_to_one = alpha, guide_steps, many_to_one
        self.guide_layers, self.target_layers = guide_layers, target_layers
        self.distance, self.token_wise, self.noise, self.task = distance, token_wise, noise, task
        self.guide_name = guide if isinstance(guide, str) else type(guide).__name__
        self.guide_args = None if guide_args is None else dict(guide_args)
        self.guide = _network(guide, data, self.guide_args or {}).requires_grad_(False).eval()
        if task is not None:
            self.views, self.monitor, self.mode = task.views, task.monitor, task.mode
        self.scale: Tensor | None
        self.shift: Tensor | None
        self.register_buffer("scale", None, persistent=False)
        self.register_buffer("shift", None, persistent=False)
        self._warned: set[str] = set()

    def train(self, mode: bool = True) -> "Guidance":
        """Switch between training and evaluation; the guide stays in evaluation, so that its batch norms keep their statistics."""
        super().train(mode)
        self.guide.eval()
        return self

    def prepare(self, model: nn.Module, data: Data) -> nn.Module:
        """Return the network that is trained, as the task wants it."""
        return super().prepare(model, data) if self.task is None else self.task.prepare(model, data)

    def check_views(self, views: Any) -> None:
        """Refuse views that the task refuses."""
        if self.task is not None:
            self.task.check_views(views)

    def after_step(self, model: nn.Module, step: int) -> None:
        """Let the task follow the model."""
        if self.task is not None:
            self.task.after_step(model, step)

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse a guide or a target that cannot take the images, and layers that do not exist, by trying two blank images."""
        if model is self.guide:
            raise ArgumentError("Guidance: the guide is the network that learns. Give a copy of it, or another network.")
        if self.task is not None:
            self.task.check(model, data)
        elif getattr(model, "num_classes", None) != len(data.classes):
            raise ArgumentError(
                f"Guidance: the model has {getattr(model, 'num_classes', None)} outputs and {data.name} has {len(data.classes)} classes. "
                f"Build it with num_classes={len(data.classes)}."
            )
        self._see_as_in_training(data)
        height, width = data.preprocessing.input_size
        for role, network in (("target", model), ("guide", self.guide)):
            like = next(network.parameters(), torch.empty(0))
            blank = torch.zeros(2, data.preprocessing.channels, height, width, device=like.device, dtype=like.dtype)
            layers = self.guide_layers if role == "guide" else self.target_layers
            with torch.no_grad(), evaluating(network), self._look(network, layers, 2):
                try:
                    network(blank)
                except (RuntimeError, ValueError, AssertionError) as error:
                    if isinstance(error, RetinueError) and str(error).startswith("Guidance"):
                        raise
                    raise ArgumentError(
                        f"Guidance: the {role} ({type(network).__name__}) cannot take the images of {data.name}, {height}x{width} px with "
                        f"{data.preprocessing.channels} channels. Build both for the same images, or open the data with input_size= and "
                        f"channels=. It said: {' '.join(str(error).split())[:200]}"
                    ) from error

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Any:
        """Yield the task's loss, with guidance while it lasts."""
        yield "model", self._numbers(model, batch, self.guide_steps is None or step < self.guide_steps)

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss with guidance: "guidance" is alpha times the summed distances, the rest is the task's."""
        return self._numbers(model, batch, guided=True)

    def _numbers(self, model: nn.Module, batch: Batch, guided: bool) -> dict[str, Tensor]:
        if not guided or not self.alpha:
            numbers = self._task(model, batch)
            return {**numbers, "guidance": torch.zeros_like(numbers["loss"].detach())}
        with self._look(model, self.target_layers, len(batch)) as target:
            numbers = self._task(model, batch)
        distance = self.alpha * self._distances(target, self._guide_sees(batch.images))[0]
        return {**numbers, "loss": numbers["loss"] + distance, "task": numbers["loss"].detach(), "guidance": distance.detach()}

    def loss(
        self, model: nn.Module, images: Tensor, guide_images: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """Compute the model's output, the summed distance, and the similarity of each pair of layers ("TARGET ~ GUIDE").

        Args:
            model: the target.
            images: a batch, or whatever else the model takes, such as tokens.
            guide_images: what the guide sees, where it is not the same; of the same number.

        Raises:
            ShapeError: if there are fewer than two images, or the guide sees another number of them.
        """
        shown = images if guide_images is None else guide_images
        if len(shown) != len(images):
            raise ShapeError(
                f"Guidance: guide and target must see as many images, got {len(shown)} and {len(images)}. Similarity is of the same images."
            )
        with self._look(model, self.target_layers, len(images)) as target:
            logits = model(images)
        distance, alike = self._distances(target, self._guide_sees(shown))
        self._warn(alike)
        return logits, distance, alike

    def _look(self, network: nn.Module, layers: Literal["auto"] | list[str], batch: int) -> Any:
        if batch < 2:
            raise ShapeError(f"Guidance: the similarity of layers needs two images of a batch at least, got {batch}. Raise `batch_size`.")
        named: Sequence[str] | None = None if layers == "auto" else layers
        return watching(network, named, self._keep, batch)

    def _keep(self, features: Tensor) -> Tensor:
        places = features.ndim == 3 and self.token_wise
        rows = features.transpose(0, 1) if places else features.flatten(1)
        return MEASURES[self.distance].keep(rows) if isinstance(self.distance, str) else rows.float().clone()

    def _guide_sees(self, images: Tensor) -> dict[str, Tensor]:
        shown = guide_noise(images) if self.noise else images
        if self.scale is not None and self.shift is not None and not self.noise:
            shown = shown * self.scale + self.shift
        with torch.no_grad(), self._look(self.guide, self.guide_layers, len(images)) as seen:
            self.guide(shown)
        return seen

    def _distances(self, target: dict[str, Tensor], guide: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        names = list(target)
        pairs = [(names[place], name) for name, place in zip(guide, map_layers(len(guide), len(target)))]
        if self.many_to_one == "last":
            pairs = list(dict(pairs).items())
        compare = MEASURES[self.distance].compare if isinstance(self.distance, str) else self.distance
        apart = {}
        for ours, theirs in pairs:
            a, b = target[ours], guide[theirs]
            if isinstance(self.distance, str) and a.shape != b.shape:
                raise ShapeError(
                    f"Guidance: `token_wise` needs layers with as many places, got {ours} with {tuple(a.shape[:-2])} and {theirs} with "
                    f"{tuple(b.shape[:-2])}. Use token_wise=False."
                )
            apart[f"{ours} ~ {theirs}"] = compare(a, b)
        return torch.stack([value.sum() for value in apart.values()]).sum(), {
            name: 1 - value.detach().mean() for name, value in apart.items()
        }

    def _task(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        if self.task is not None:
            return self.task(model, batch)
        logits = model(batch.images)
        if isinstance(logits, tuple):
            raise ArgumentError(
                "Guidance: the model returns auxiliary logits too. Give task=retinue.train.Supervised(), which learns from both."
            )
        loss = F.cross_entropy(logits, batch.labels if batch.targets is None else batch.targets)
        return {"loss": loss, "top1": (logits.argmax(-1) == batch.labels).float().mean()}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, loader: Loader) -> dict[str, float]:
        """Compute the task's numbers over a held-out split, and each pair's mean similarity ("similarity/TARGET ~ GUIDE")."""
        sums: dict[str, Tensor] = {}
        pairs, batches = [], 0
        with evaluating(model, self):
            for batch in loader.batches():
                if len(batch) < 2:
                    pairs.append((model(batch.images).float(), batch.labels))
                    continue
                logits, _, alike = self.loss(model, batch.images)
                pairs.append((logits.float(), batch.labels))
                batches += 1
                for name, value in alike.items():
                    sums[name] = sums.get(name, torch.zeros_like(value)) + value
        if self.task is not None:
            numbers = self.task.evaluate(model, loader)
        else:
            numbers = judge(torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs]))
        return {**numbers, **{f"similarity/{name}": float(total / batches) for name, total in sums.items()}}

    def _warn(self, alike: Mapping[str, Tensor]) -> None:
        """Say once of each pair of layers that one of them gives the same features for every image: a network that has collapsed."""
        for name, value in alike.items():
            if isinstance(self.distance, str) and float(value) == 0 and name not in self._warned:
                self._warned.add(name)
                log.warning(
                    "Guidance: one of the layers %s gives the same features for every image, so their similarity counts as 0. A target "
                    "without batch norm collapses easily: lower `alpha`, or end guidance early with `guide_steps`.",
                    name,
                )

    def _see_as_in_training(self, data: Data) -> None:
        """Let a trained guide see images normalised as in its own training."""
        seen, own = data.preprocessing, getattr(self.guide, "preprocessing", None)
        if own is None and (self.guide_args or {}).get("pretrained"):
            cfg: Any = self.guide.pretrained_cfg
            own = Preprocessing(seen.input_size, seen.channels, cfg["mean"], cfg["std"])
        if own is None or own.channels != seen.channels:
            return
        mean, std, their_mean, their_std = (
            torch.tensor(values).reshape(1, -1, 1, 1) for values in (seen.mean, seen.std, own.mean, own.std)
        )
        self.scale, self.shift = std / their_std, (mean - their_mean) / their_std


def _network(guide: str | nn.Module, data: Data | None, options: Mapping[str, Any]) -> nn.Module:
    """Build or load the guide."""
    if isinstance(guide, nn.Module):
        if options:
            raise ArgumentError("Guidance: `guide_args` are options of a guide given by name; yours is a module. Leave them out.")
        return guide
    if (Path(guide) / "config.json").is_file():
        return load(guide)
    shape: dict[str, Any] = {}
    if data is not None:
        seen = data.preprocessing
        shape = {"num_classes": len(data.classes), "in_chans": seen.channels, "input_size": seen.input_size}
    return create_model(guide, **{**shape, **options})
