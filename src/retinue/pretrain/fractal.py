"""An endless stream of labelled fractals, made when they are asked for (Anderson & Farrell 2022, arXiv 2110.03091).

Everything of image `number` is drawn from (seed, part, number): the same bytes in any order, batch or process. The official code's cache
is a queue of the last 512 rendered fractals, and what it holds depends on who asked before; here the images of an epoch share a fixed
set of renders, each made when it is first needed.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from retinue.data.views import keys
from retinue.data.views.draws import uniform, whole
from retinue.errors import ArgumentError, unknown
from retinue.pretrain.fractal_colors import backgrounds, blur, colorize, composite, eightfold, paste, resize
from retinue.pretrain.fractal_jitter import JITTERS, jitter_ifs
from retinue.pretrain.fractal_render import SMALLEST, check_size, render_batch
from retinue.pretrain.fractal_systems import sample_systems

Mode = Literal["single", "multi", "pairs"]
MODES = ("single", "multi", "pairs")
IMAGE, RENDER, PLAN = 1, 2, 3  # what is drawn: sources of randomness that share a number must differ
SIDES = (0.15, 0.6)  # of a pasted fractal, as a share of the image
BLUR = (0.5, 1.0)  # sigma in pixels
PAIR_SIDES = (0.25, 1.25)  # of the two fractals of a pair, as shares of the image
BLOCKS = 2  # epochs whose renders are kept: the one that ends, and the one that begins
MASK = (1 << 64) - 1


class FractalDataset:
    """Images of fractals, labelled by the system that drew them; map-style, and without an end: number i + len is i in the next epoch.

    In "single" mode an image is one fractal before a background, its label a class number. In "multi" mode several fractals lie
    on one background, and the label is the set of their classes: the topmost has the class of the image's number, so that classes are
    balanced, and the others are drawn. In "pairs" mode there are two pictures of one fractal in other colours, sizes, places and before
    other backgrounds, as the two halves of 6 channels; the label is that of "single" mode.

    Args:
        num_classes: how many classes.
        per_class: images of each class in an epoch.
        size: side of the images in pixels, at least 8.
        mode: "single", "multi" or "pairs".
        seed: of the systems and the images.
        num_systems: how many systems there are, a multiple of the classes; None takes one for each class.
        n: number of maps of a system, or the smallest and the largest.
        n_points: of each rendered fractal; 100,000 in the paper, at 224 pixels.
        jitter: how a system is changed for each picture: one of `fractal_jitter.JITTERS`.
        n_objects: fewest and most fractals in an image of "multi" mode.
        period: in "multi" mode at most one fractal is rendered for so many images.
        cache: in "multi" mode, how many renders an epoch's images share at most (but one of each system); each takes (size / 2)^2 bytes.
        part: images of other parts differ, from the same systems: 0 for training, 1 and 2 for validation and test.

    Raises:
        ArgumentError: if a number cannot be; the text says which.

    >>> dataset = FractalDataset(num_classes=3, per_class=2, size=16, n_points=500)
    >>> image, label = dataset[5]
    >>> image.shape, label
    (torch.Size([3, 16, 16]), 2)
    """

    def __init__(
        self,
        num_classes: int = 1000,
        per_class: int = 1000,
        size: int = 224,
        mode: Mode = "single",
        seed: int = 0,
        *,
        num_systems: int | None = None,
        n: int | tuple[int, int] = (2, 4),
        n_points: int = 100_000,
        jitter: str = "scale",
        n_objects: tuple[int, int] = (1, 5),
        period: int = 2,
        cache: int = 16_384,
        part: int = 0,
    ) -> None:
        given = {"num_classes": num_classes, "per_class": per_class, "n_points": n_points, "period": period, "cache": cache}
        for name, value in given.items():
            if value < 1:
                raise ArgumentError(f"fractals: `{name}` must be at least 1, got {value}.")
        if mode not in MODES:
            raise unknown("fractals", "`mode`", mode, MODES)
        if jitter not in JITTERS:
            raise unknown("fractals", "`jitter`", jitter, JITTERS)
        check_size(size)
        if not 1 <= n_objects[0] <= n_objects[1]:
            raise ArgumentError(f"fractals: `n_objects` must be (fewest, most) with 1 <= fewest <= most, got {tuple(n_objects)}.")
        systems = num_classes if num_systems is None else num_systems
        if systems < 1 or systems % num_classes:
            raise ArgumentError(
                f"fractals: `num_systems` must be a multiple of the {num_classes} classes, got {systems}. Each class has as many systems."
            )
        self.num_classes, self.per_class, self.size, self.mode, self.part = num_classes, per_class, size, mode, part
        self.seed, self.n_points, self.jitter, self.n_objects = seed & MASK, n_points, jitter, tuple(n_objects)
        self.systems = sample_systems(systems, n, self.seed)
        self.variants = max(1, min(cache, len(self) // period) // systems)  # renders of each system in an epoch
        self._renders: OrderedDict[int, tuple[NDArray[np.uint8], NDArray[np.bool_]]] = OrderedDict()

    def __len__(self) -> int:
        """How many images an epoch has."""
        return self.num_classes * self.per_class

    def __getitem__(self, number: int) -> tuple[UInt8[Tensor, "channels size size"], int | Float[Tensor, " classes"]]:
        """Return an image as bytes, and its class or (in "multi" mode) 1 for each class that it shows; numbers beyond an epoch go on."""
        if number < 0:
            raise ArgumentError(f"fractals: images are numbered from 0, got {number}.")
        image = self.images([number])[0]
        return image, int(self.labels([number])[0]) if self.mode != "multi" else self.multi_hot([number])[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_renders": OrderedDict()}  # another process renders its own

    def labels(self, numbers: Sequence[int] | Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Return the class of each image; in "multi" mode that of the topmost fractal."""
        return torch.as_tensor(numbers, dtype=torch.int64) % len(self) // self.per_class

    def multi_hot(self, numbers: Sequence[int] | Int[Tensor, " batch"]) -> Float[Tensor, "batch classes"]:
        """Return 1 for each class that an image shows, without making the image."""
        numbers = torch.as_tensor(numbers, dtype=torch.int64)
        hot = torch.zeros(len(numbers), self.num_classes)
        if self.mode != "multi":
            return hot.scatter_(1, self.labels(numbers)[:, None], 1.0)
        renders, there = self.plan(numbers)
        shown = renders % len(self.systems) // (len(self.systems) // self.num_classes)
        shown = torch.where(there, shown, shown[:, :1])  # places without a fractal repeat the first
        return hot.scatter_(1, shown, 1.0)

    def plan(self, numbers: Int[Tensor, " batch"]) -> tuple[Int[Tensor, "batch most"], Tensor]:
        """Draw which renders of its epoch an image of "multi" mode shows, topmost first, and which of these places are filled."""
        fewest, most = self.n_objects
        draws = uniform(keys(self.seed + self.part, PLAN, numbers), most + 2)
        own = len(self.systems) // self.num_classes
        top = self.labels(numbers) * own + whole(draws[:, 1], own) + whole(draws[:, 2], self.variants) * len(self.systems)
        others = whole(draws[:, 3:], self.variants * len(self.systems))
        count = fewest + whole(draws[:, :1], most - fewest + 1)
        return torch.cat([top[:, None], others], dim=1), torch.arange(most) < count

    def images(self, numbers: Sequence[int] | Int[Tensor, " batch"]) -> UInt8[Tensor, "batch channels size size"]:
        """Make images; those of "pairs" mode have 6 channels."""
        chosen = torch.as_tensor(numbers, dtype=torch.int64)
        if not len(chosen):
            return torch.zeros(0, 6 if self.mode == "pairs" else 3, self.size, self.size, dtype=torch.uint8)
        rngs = [self._source(IMAGE, number) for number in chosen.tolist()]
        make = {"single": self._single, "multi": self._multi, "pairs": self._pairs}[self.mode]
        return torch.from_numpy(make(chosen, rngs))

    def _source(self, kind: int, number: int) -> Generator:
        return np.random.default_rng([self.seed, kind, self.part, number])

    def _single(self, numbers: Tensor, rngs: Sequence[Generator]) -> UInt8[np.ndarray, "batch 3 size size"]:
        systems = self._jittered(numbers, rngs)
        images = backgrounds(self.size, rngs)
        for i, (grey, rng) in enumerate(zip(render_batch(systems, rngs, self.size, self.n_points), rngs)):
            images[i] = composite(colorize(eightfold(grey, rng), rng), images[i])
            if rng.random() < 0.5:
                images[i] = blur(images[i], rng.uniform(*BLUR))
        return images

    def _jittered(self, numbers: Tensor, rngs: Sequence[Generator]) -> list[NDArray[np.float64]]:
        chosen = numbers % len(self) * len(self.systems) // len(self)
        return [jitter_ifs(self.systems[which], rng, self.jitter) for which, rng in zip(chosen.tolist(), rngs)]

    def _pairs(self, numbers: Tensor, rngs: Sequence[Generator]) -> UInt8[np.ndarray, "batch 6 size size"]:
        greys = render_batch(self._jittered(numbers, rngs), rngs, self.size, self.n_points)
        halves = []
        for _ in range(2):
            images = backgrounds(self.size, rngs)
            for image, grey, rng in zip(images, greys, rngs):
                side = max(1, round(rng.uniform(*PAIR_SIDES) * self.size))
                fractal = colorize(resize(eightfold(grey, rng), side), rng)
                top, left = np.floor(rng.uniform(-side / 2, self.size - side / 2, 2)).astype(int).tolist()
                paste(image, fractal, top, left)
            halves.append(images)
        return np.concatenate(halves, axis=1)

    def _multi(self, numbers: Tensor, rngs: Sequence[Generator]) -> UInt8[np.ndarray, "batch 3 size size"]:
        renders, there = self.plan(numbers)
        epochs = numbers // len(self)
        for epoch in epochs.unique().tolist():
            mine = (epochs == epoch)[:, None] & there
            self._render(epoch, renders[mine].unique().tolist())
        images = backgrounds(self.size, rngs)
        for image, epoch, shown, count, rng in zip(images, epochs.tolist(), renders.tolist(), there.sum(1).tolist(), rngs):
            greys = self._renders[epoch][0]
            for which in reversed(shown[:count]):
                side = max(1, round(rng.uniform(*SIDES) * self.size))
                fractal = colorize(resize(eightfold(greys[which], rng), side), rng)
                top, left = np.floor(rng.uniform(-side / 2, self.size - side / 2, 2)).astype(int).tolist()
                paste(image, fractal, top, left)
        return images

    def _render(self, epoch: int, wanted: Sequence[int]) -> None:
        """Render those of an epoch's fractals that are wanted and not there yet."""
        total, half = self.variants * len(self.systems), max(SMALLEST, self.size // 2)
        if epoch not in self._renders:
            self._renders[epoch] = np.zeros((total, half, half), dtype=np.uint8), np.zeros(total, dtype=np.bool_)
        self._renders.move_to_end(epoch)
        greys, done = self._renders[epoch]
        missing = [which for which in wanted if not done[which]]
        rngs = [self._source(RENDER, epoch * total + which) for which in missing]
        systems = [jitter_ifs(self.systems[which % len(self.systems)], rng, self.jitter) for which, rng in zip(missing, rngs)]
        greys[missing] = render_batch(systems, rngs, half, self.n_points, window=False)
        done[missing] = True
