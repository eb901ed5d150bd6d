"""Fooling images by the classifier's own gradient (Nguyen et al. 2015, arXiv 1412.1897, section 3.5, and its published scripts).

x <- (1 - decay) (x + lr dp/dx), where x is an image minus the data's mean and the step is chosen for a wanted progress of the probability.
"""

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from torch import Tensor

from retinue.engine import evaluating
from retinue.engine.seeds import mix
from retinue.errors import ArgumentError, unknown
from retinue.explain.fooling_encodings import Shape, check_shape
from retinue.explain.fooling_judge import Judge, probability

Start = Literal["normal", "uniform", "zero"]
STARTS = ("normal", "uniform", "zero")


class Ascent:
    """Gradient ascent on the probability of a class, for all classes side by side.

    The progress wanted of a step is min(early, late (1 - p)), which at the slope g takes lr = progress / |g|^2, at most `max_lr`. What is
    kept of a class is the image of all steps of which the classifier is surest.

    Args:
        image_shape: channels, height and width.
        judge: the classifier.
        classes: those to search for.
        seed: of the start.
        start: "normal" noise of deviation 1/255 about the mean, "uniform" noise over all values, or "zero", the mean itself.
        decay: share by which the image shrinks towards the mean at each step.
        early: wanted progress while p is small.
        late: wanted progress, as a share of what is missing to 1.
        max_lr: the largest step.
        blur_every: steps between two blurs; 0 never blurs.
        blur_radius: deviation of the blur, in pixels; below 0.3 it does nothing.
        drop_small: percentile of pixels with the smallest norm that are set to the mean at each step.
        drop_useless: percentile of pixels that contribute least, by -g x, likewise.
        useless_by_size: judge the contribution by its absolute value.

    Raises:
        ArgumentError: if a number lies outside its range.
    """

    def __init__(
        self,
        image_shape: Shape,
        judge: Judge,
        classes: list[int],
        seed: int = 0,
        *,
        start: Start = "normal",
        decay: float = 0.01,
        early: float = 0.03,
        late: float = 0.1,
        max_lr: float = 1e12,
        blur_every: int = 0,
        blur_radius: float = 0.5,
        drop_small: float = 0.0,
        drop_useless: float = 0.0,
        useless_by_size: bool = False,
    ) -> None:
        check_shape(image_shape)
        if start not in STARTS:
            raise unknown("fool", "`start`", start, STARTS)
        for name, value, most in (
            ("decay", decay, 1.0), ("early", early, 1.0), ("late", late, 1.0), ("drop_small", drop_small, 100.0),
            ("drop_useless", drop_useless, 100.0), ("blur_every", blur_every, 1e9),
        ):  # fmt: skip
            if not 0 <= value <= most:
                raise ArgumentError(f"fool: `{name}` must lie in [0, {most:g}], got {value}.")
        if not max_lr > 0 or blur_radius < 0.3:
            raise ArgumentError(
                f"fool: `max_lr` must be above 0 and `blur_radius` at least 0.3, got {max_lr} and {blur_radius}. "
                "For no blur leave out `blur_every`."
            )
        self.judge, self.classes = judge, torch.tensor(classes)
        self.decay, self.early, self.late, self.max_lr = decay, early, late, max_lr
        self.blur_every, self.blur_radius = blur_every, blur_radius
        self.drop_small, self.drop_useless, self.useless_by_size = drop_small, drop_useless, useless_by_size
        mean = judge.normalisation.mean if judge.normalisation is not None else (0.5,)
        self.mean = torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1)
        rng = np.random.default_rng(mix(seed, 0))
        noise = torch.from_numpy(rng.standard_normal(image_shape) if start == "normal" else rng.random(image_shape)).float()
        first = {"normal": noise / 255, "uniform": noise - self.mean[0], "zero": torch.zeros(image_shape)}[start]
        self.x = first.expand(len(classes), *image_shape).clone()
        self.generation = -1
        self.best = self.pixels()
        self.fitness = torch.full((len(classes),), -torch.inf, dtype=torch.float64)
        self.history: list[Tensor] = []
        self.first_top = torch.full((len(classes),), -1)

    def pixels(self) -> Float[Tensor, "classes channels height width"]:
        """Return the images as they are now, in [0, 1]."""
        return (self.x + self.mean).clamp(0, 1)

    def step(self) -> None:
        """Look at the present images, and move them; the first call only looks."""
        if self.generation >= 0:
            self.x = self._moved()
        self.generation += 1
        images = self.pixels()
        odds = self.judge(images)
        own = odds.gather(1, self.classes[:, None])[:, 0]
        better = own > self.fitness
        self.fitness = torch.where(better, own, self.fitness)
        self.best = torch.where(better[:, None, None, None], images, self.best)
        arrived = (odds.argmax(1) == self.classes) & (self.first_top < 0)
        self.first_top = torch.where(arrived, self.generation, self.first_top)
        self.history.append(own)

    def _moved(self) -> Tensor:
        x = self.pixels() - self.mean
        parts = []
        for some, classes in zip(x.split(self.judge.batch_size), self.classes.split(self.judge.batch_size)):
            p, g = self._slope(some, classes)
            size = g.double().square().sum((1, 2, 3))
            wanted = (self.late * (1 - p.double())).clamp(max=self.early)
            lr = torch.where(size > 0, (wanted / size.clamp(min=1e-300)).clamp(max=self.max_lr), 0.0)  # where it is flat, it stops
            moved = (1 - self.decay) * (some + (lr[:, None, None, None] * g).float())
            moved = torch.where((size > 0)[:, None, None, None], moved, some)
            parts.append(self._regularised(moved, g))
        return torch.cat(parts)

    def _slope(self, x: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Compute p of each image's class and its gradient."""
        with torch.enable_grad(), evaluating(*self.judge.networks()):
            x = x.clone().requires_grad_()
            p = probability(self.judge.ask(x + self.mean), self.judge.outputs).cpu().gather(1, classes[:, None])[:, 0]
            if not p.requires_grad:
                raise ArgumentError(
                    'fool: the model gives no gradient, so "gradient" cannot follow it. Take encoding="direct" or "cppn", which need none.'
                )
            (g,) = torch.autograd.grad(p.sum(), x)
        return p.detach(), g

    def _regularised(self, x: Tensor, g: Tensor) -> Tensor:
        if self.blur_every and (self.generation + 1) % self.blur_every == 0:
            x = torch.from_numpy(gaussian_filter(x.numpy(), (0, 0, self.blur_radius, self.blur_radius)))
        if self.drop_small:
            x = _without(x, x.square().sum(1, keepdim=True).sqrt(), self.drop_small)
        if self.drop_useless:
            use = (-g * x).sum(1, keepdim=True)  # how much p falls, to first order, when the pixel is set to the mean, with its sign turned
            x = _without(x, use.abs() if self.useless_by_size else -use, self.drop_useless)
        return x

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON values that `restore` understands."""
        history = torch.stack(self.history)
        return {"x": self.x, "best": self.best, "fitness": self.fitness, "history": history, "first_top": self.first_top}, {}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Go on from a state."""
        self.x, self.best, self.fitness, self.first_top = (tensors[name] for name in ("x", "best", "fitness", "first_top"))
        self.history = list(tensors["history"])
        self.generation = len(self.history) - 1


def _without(x: Tensor, worth: Float[Tensor, "count 1 height width"], percentile: float) -> Tensor:
    """Set the pixels of least worth to the mean, in each image."""
    limit = torch.quantile(worth.flatten(1), percentile / 100, dim=1)[:, None, None, None]
    return torch.where(worth < limit, 0.0, x)
