"""Several trained networks as one frozen teacher (Shen and Savvides 2020, arXiv 2009.08453, section 3.1)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retinue.data import Preprocessing
from retinue.data.preprocessing import resized, with_channels
from retinue.engine import evaluating, load
from retinue.errors import ArgumentError, RetinueError, unknown
from retinue.models import adapt, create_model

COMBINE = ("mean", "random")
Teachers = str | Path | nn.Module | Sequence[str | Path | nn.Module]


class EnsembleTeacher(nn.Module):
    """Answers with the mean of the teachers' probabilities, not with the softmax of their mean logits.

    Teachers are frozen, stay in evaluation mode and may be of any kind. One that brings its own `preprocessing` (a run's, or that of
    published weights) sees images normalised as in its own training.

    Args:
        models: networks; names for `create_model` ("timm:resnet152"), which come with their published weights; or folders of runs.
        combine: "mean" asks all, "random" one of them for each batch, drawn from torch's default generator.
        resize: show a teacher that was made for another size the images at its own size; otherwise it is refused in `seeing`.
        input_size: of the images, to try out a module of your own that does not say how many classes it has; None tries the usual sizes.

    Raises:
        ArgumentError: if there is no teacher, they have no or not the same classes, or `combine` does not exist.

    >>> from retinue.models import tiny
    >>> teacher = EnsembleTeacher([tiny("timm_cnn"), tiny("timm_vit")])
    >>> shares, logits = teacher(torch.zeros(2, 3, 32, 32))
    >>> shares.shape, logits.shape
    (torch.Size([2, 10]), torch.Size([2, 10]))
    """

    def __init__(
        self,
        models: Teachers,
        combine: Literal["mean", "random"] = "mean",
        resize: bool = False,
        input_size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if combine not in COMBINE:
            raise unknown("EnsembleTeacher", "`combine`", combine, COMBINE)
        several = [models] if isinstance(models, str | Path | nn.Module) else list(models)
        if not several:
            raise ArgumentError("EnsembleTeacher: there is no teacher. Give one network at least, or the folder of its run.")
        self.combine, self.resize = combine, resize
        self.names = [type(one).__name__ if isinstance(one, nn.Module) else str(one) for one in several]
        self.models = nn.ModuleList(_network(one, input_size) for one in several).requires_grad_(False).eval()
        counts = [int(cast(Any, model).num_classes) for model in self.models]
        if len(set(counts)) > 1 or not counts[0]:
            told = ", ".join(f"{name} has {count}" for name, count in zip(self.names, counts))
            raise ArgumentError(f"EnsembleTeacher: all teachers must have the same classes, and {told}. Train them on the same data.")
        self.num_classes = counts[0]
        self.shown: Preprocessing | None = None
        self.own: list[Preprocessing | None] = [None] * len(several)

    def train(self, mode: bool = True) -> "EnsembleTeacher":
        """Stay in evaluation mode, whatever is asked for, so that batch norms keep their statistics."""
        return super().train(False)

    def seeing(self, shown: Preprocessing, classes: Sequence[str]) -> None:
        """Prepare the teachers for images that come normalised in a certain way, and try each with a blank one.

        Args:
            shown: how the images come.
            classes: names of what is to be told apart.

        Raises:
            ArgumentError: if a teacher has other classes, needs another size, or cannot take the images; the teacher is named.
        """
        if self.num_classes != len(classes):
            raise ArgumentError(
                f"EnsembleTeacher: the teachers have {self.num_classes} classes and the data has {len(classes)}. Give teachers of these."
            )
        self.shown, self.own = shown, []
        for name, model in zip(self.names, self.models):
            known = getattr(model, "classes", None)
            if known is not None and list(known) != list(classes):
                raise ArgumentError(
                    f"EnsembleTeacher: the teacher {name} was trained on other classes, or on these in another order: {_few(known)}; the "
                    f"data has {_few(classes)}. Its answers would be taken for other classes."
                )
            size = _size(model)
            if size not in (None, shown.input_size) and not self.resize:
                raise ArgumentError(
                    f"EnsembleTeacher: the teacher {name} was made for images of {_px(size)} and these have {_px(shown.input_size)}. Say "
                    "resize=True to show it them at its own size, or open the data with its input_size=."
                )
            own = getattr(model, "preprocessing", None) or replace(shown, channels=_channels(model, shown.channels))
            own = replace(own, input_size=size or shown.input_size, read_size=None)
            self.own.append(None if _same(own, shown) else own)
            self._try(name, model, self.own[-1])

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        """Compute the mean of the teachers' probabilities, and the mean of their logits (which is what a discriminator reads)."""
        chosen = range(len(self.models))
        if self.combine == "random":
            chosen = range(number := int(torch.randint(len(self.models), (), device="cpu")), number + 1)
        with torch.no_grad():
            logits = torch.stack([self.models[i](self._seen(images, self.own[i])).float() for i in chosen])
            return combined(logits)

    def _seen(self, images: Tensor, own: Preprocessing | None) -> Tensor:
        if own is None or self.shown is None:
            return images
        fitted = with_channels(self.shown.denormalize(images), own.channels)
        return own.normalize(resized(fitted, own.input_size, "stretch", "bilinear"))

    def _try(self, name: str, model: nn.Module, own: Preprocessing | None) -> None:
        shown = cast(Preprocessing, self.shown)
        like = next(model.parameters(), torch.empty(0))
        blank = torch.zeros(1, shown.channels, *shown.input_size, device=like.device, dtype=like.dtype)
        try:
            with torch.no_grad(), evaluating(model):
                model(self._seen(blank, own))
        except (RuntimeError, ValueError, AssertionError) as error:
            if isinstance(error, RetinueError):
                raise
            raise ArgumentError(
                f"EnsembleTeacher: the teacher {name} cannot take images of {_px(shown.input_size)} with {shown.channels} channels. Say "
                f"resize=True, or give another teacher. It said: {' '.join(str(error).split())[:200]}"
            ) from error


def combined(
    logits: Float[Tensor, "teachers batch classes"],
) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
    """Compute (1/K) sum_k softmax(z_k) and (1/K) sum_k z_k."""
    return logits.softmax(-1).mean(0), logits.mean(0)


def _network(given: str | Path | nn.Module, input_size: int | tuple[int, int] | None) -> nn.Module:
    if isinstance(given, nn.Module):
        return given if hasattr(given, "num_classes") else adapt(given, input_size=input_size)
    if (Path(given) / "config.json").is_file() or (Path(given) / "model.json").is_file():
        return load(given)
    network: Any = create_model(str(given), pretrained=True)
    cfg = network.pretrained_cfg
    network.preprocessing = Preprocessing(tuple(cfg["input_size"][-2:]), cfg["input_size"][0], tuple(cfg["mean"]), tuple(cfg["std"]))
    return network


def _size(model: nn.Module) -> tuple[int, int] | None:
    """Find the size that a network was trained on or can take alone; None for one that says nothing of it."""
    own = getattr(model, "preprocessing", None)
    if own is not None:
        return cast(tuple[int, int], own.input_size)
    fixed = getattr(getattr(model, "patch_embed", None), "img_size", None)  # timm's transformers
    if fixed is None:
        fixed = (getattr(model, "retinue_config", None) or {}).get("arguments", {}).get("input_size")
    return None if fixed is None else cast(tuple[int, int], tuple(fixed) if isinstance(fixed, list | tuple) else (fixed, fixed))


def _channels(model: nn.Module, otherwise: int) -> int:
    count = getattr(model, "in_chans", None)
    return count if count in (1, 3) else otherwise


def _same(own: Preprocessing, shown: Preprocessing) -> bool:
    def told(one: Preprocessing) -> tuple[Any, ...]:
        moments = [tuple(float(v) for v in values) * (one.channels if len(values) == 1 else 1) for values in (one.mean, one.std)]
        return one.input_size, one.channels, *moments

    return told(own) == told(shown)


def _px(size: tuple[int, int] | None) -> str:
    return "x".join(map(str, size or ())) + " px"


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
