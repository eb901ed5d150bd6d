"""Views made of views: one after the other, or one of several."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from retinue.data.views.base import Images, Keys, Share, View, Viewed, keep
from retinue.data.views.draws import PARTNER_VIEWS, derive, uniform
from retinue.data.views.jitter import Normalize
from retinue.errors import ArgumentError


@dataclass(frozen=True, repr=False)
class Compose(View):
    """Views one after the other; view number p draws with keys of its own.

    Partners of a view that mixes go through the views before it, with keys of their own, so that both halves of a mixed image are
    shown alike; the views behind it see the mixed image. Several views that mix take the same partner.

    Args:
        views: in their order.

    Raises:
        ArgumentError: if something is not a view.
    """

    name: ClassVar[str] = "compose"
    views: Sequence[View]

    def __post_init__(self) -> None:
        keep(self, "views", _views(self, self.views))

    @property
    def mixes(self) -> bool:  # type: ignore[override]
        """Whether one of the views mixes images."""
        return any(view.mixes for view in self.views)

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        for number, view in enumerate(self.views):
            images = view(images, derive(keys, number))
        return images

    def _mix(self, images: Images, partners: Images, keys: Keys) -> tuple[Viewed, Share]:
        share = torch.ones(len(images), device=images.device)
        last = max((number for number, view in enumerate(self.views) if view.mixes), default=-1)
        others = derive(keys, PARTNER_VIEWS)
        for number, view in enumerate(self.views):
            own = derive(keys, number)
            if view.mixes:
                images, kept = view(images, own, partners=partners)
                share = share * kept
            else:
                images = view(images, own)
                partners = view(partners, derive(others, number)) if number < last else partners
        return images, share

    def nested(self) -> str:
        """Return the text of the view as an argument of another one."""
        return super().__repr__()

    def __repr__(self) -> str:
        return ", ".join(view.nested() for view in self.views)


@dataclass(frozen=True, repr=False)
class Choose(View):
    """One of several views, drawn for each image; one that mixes may be among them.

    Args:
        views: to choose from; they must return images of the same size.
        weights: how often each is chosen, in proportion; None chooses all equally often.

    Raises:
        ArgumentError: if there is nothing to choose, a view makes floats of bytes, or the weights do not fit.
    """

    name: ClassVar[str] = "choose"
    views: Sequence[View]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        keep(self, "views", _views(self, self.views))
        if not self.views:
            raise ArgumentError("choose: `views` is empty. Give the views to choose from: choose([mixup(0.8), cutmix(1.0)]).")
        if any(_makes_floats(view) for view in self.views):
            raise ArgumentError("choose: normalize changes the type of the images, so it cannot be one choice among others. Put it behind.")
        if self.weights is not None:
            weights = tuple(self.weights) if isinstance(self.weights, list | tuple) else (self.weights,)
            fits = all(isinstance(w, int | float) and not isinstance(w, bool) and 0 <= w < float("inf") for w in weights)
            if len(weights) != len(self.views) or not fits or not sum(weights):
                raise ArgumentError(
                    f"choose: `weights` must be {len(self.views)} numbers of at least 0, one a view and not all 0, got {self.weights!r}."
                )
            keep(self, "weights", weights)

    @property
    def mixes(self) -> bool:  # type: ignore[override]
        """Whether one of the views mixes images."""
        return any(view.mixes for view in self.views)

    def _apply(self, images: Images, keys: Keys) -> Viewed:
        rows, own = self._chosen(keys)
        shown = [view(images.index_select(0, mine), part) for view, mine, part in zip(self.views, rows, own)]
        return torch.cat(shown).index_select(0, torch.cat(rows).argsort())

    def _mix(self, images: Images, partners: Images, keys: Keys) -> tuple[Viewed, Share]:
        rows, own = self._chosen(keys)
        shown, shares = zip(*(view.mix(images[mine], partners[mine], part) for view, mine, part in zip(self.views, rows, own)))
        back = torch.cat(rows).argsort()
        return torch.cat(shown).index_select(0, back), torch.cat(shares)[back]

    def _chosen(self, keys: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Draw a view for each row: the rows of each view, and the keys with which it draws for them."""
        weights = torch.tensor(self.weights or (1.0,) * len(self.views), dtype=torch.float64)
        ends = (weights.cumsum(0) / weights.sum())[:-1].float().to(keys.device)
        choice = torch.searchsorted(ends, uniform(keys, 1)[:, 0].contiguous(), right=True)
        rows = [(choice == number).nonzero()[:, 0] for number in range(len(self.views))]
        return rows, [derive(keys[mine], number) for number, mine in enumerate(rows)]


def flat(view: Any) -> list[Any]:
    """List the views inside a view, however deeply they are nested; a plain one, or a function, is the only one.

    >>> flat(Compose([Normalize((0.5,), (0.5,)), Compose([])]))
    [normalize((0.5,), (0.5,))]
    """
    return [one for part in view.views for one in flat(part)] if isinstance(view, Compose | Choose) else [view]


def _views(view: View, views: Any) -> tuple[View, ...]:
    if not isinstance(views, list | tuple) or not all(isinstance(part, View) for part in views):
        raise ArgumentError(f"{view.name}: `views` must be a list of views, got {views!r}. Such as {view.name}([crop(4), flip()]).")
    return tuple(views)


def _makes_floats(view: View) -> bool:
    return isinstance(view, Normalize) or any(_makes_floats(part) for part in getattr(view, "views", ()))
