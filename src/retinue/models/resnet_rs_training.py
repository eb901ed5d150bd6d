"""How to train, scale and teach a ResNet-RS, or any other network (Bello et al. 2021, arXiv 2103.07579, sections 4 to 7).

`scale` and `scaling_advisor` say which network a budget buys, `RSRecipe` turns the training recipe into arguments of `retinue.fit`, switch
by switch, `pseudo_label` lets a teacher label what nobody has labelled.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from retinue.errors import ArgumentError, unknown
from retinue.models.modes import evaluating

IMAGENET = 1_281_167  # training images
BATCH = 4096
PRESETS = ("baseline", "rs")


class Point(NamedTuple):
    """An operating point of the family: a depth at a size of image, and the regularisation that it needs.

    Attributes:
        depth: of the network.
        input_size: side of the images, in pixels.
        macs: multiply-adds for an image; what the paper prints as FLOPs is twice that.
        magnitude: of RandAugment, of 30.
        drop_rate: share of the pooled features dropped.
        drop_path_rate: r0 of stochastic depth.
    """

    depth: int
    input_size: int
    macs: float
    magnitude: int
    drop_rate: float
    drop_path_rate: float


POINTS = (  # official configurations; multiply-adds counted, not read
    Point(50, 160, 2.279e9, 10, 0.25, 0.0),
    Point(101, 160, 4.182e9, 10, 0.25, 0.0),
    Point(101, 192, 6.012e9, 15, 0.25, 0.0),
    Point(152, 192, 8.747e9, 15, 0.25, 0.0),
    Point(152, 224, 11.895e9, 15, 0.25, 0.0),
    Point(152, 256, 15.528e9, 15, 0.25, 0.0),
    Point(200, 256, 20.093e9, 15, 0.25, 0.1),
    Point(270, 256, 26.950e9, 15, 0.25, 0.1),
    Point(350, 256, 34.377e9, 15, 0.25, 0.1),
    Point(350, 320, 53.684e9, 15, 0.4, 0.1),
    Point(420, 320, 63.942e9, 15, 0.4, 0.1),
)
LONG, SHORT = 100, 32  # epochs above which depth wins, and below which width does: 32 is the geometric mean of 10 and 100


@dataclass(frozen=True)
class Advice:
    """What the scaling rules say.

    Attributes:
        grow: what to spend more computation on first: "depth", "width", or "either".
        depth: of the network to start from.
        input_size: side of the images.
        width_mult: factor on its numbers of filters.
        macs: multiply-adds for an image, estimated where the width is not 1.
        magnitude: of RandAugment, of 30.
        drop_rate: share of the pooled features to drop.
        drop_path_rate: r0 of stochastic depth.
        steps: updates of the whole training at a batch of 4096.
        warmup_steps: how many of them warm up.
        notes: the rules that led here, in words.
    """

    grow: Literal["depth", "width", "either"]
    depth: int
    input_size: int
    width_mult: float
    macs: float
    magnitude: int
    drop_rate: float
    drop_path_rate: float
    steps: int
    warmup_steps: int
    notes: tuple[str, ...]

    def model(self) -> dict[str, Any]:
        """Return the arguments of `retinue.create_model`."""
        chosen = {name: getattr(self, name) for name in ("input_size", "width_mult", "drop_rate", "drop_path_rate")}
        return {"name": f"resnet_rs_{self.depth}", **chosen}


def scale(budget: float, epochs: float = 350, dataset_size: int = IMAGENET) -> Advice:
    """Ask the scaling rules what a budget buys; `scaling_advisor` with the budget in front.

    Args:
        budget: multiply-adds for an image.
        epochs: length of the training.
        dataset_size: number of training images.

    >>> advice = scale(10e9)
    >>> advice.grow, advice.depth, advice.input_size
    ('depth', 152, 192)
    """
    return scaling_advisor(epochs, dataset_size, budget)


def scaling_advisor(epochs: float, dataset_size: int, budget: float) -> Advice:
    """Choose depth, width and size of the images for a budget of computation (section 6).

    The rules: where a training is long enough to overfit (above 100 epochs), grow the depth; where it is short (about 10), grow the
    width; in between there is no telling. Grow the images slowly, from 160 to 320 pixels over the whole family, and not beyond.
    Regularise the more, the larger the network and its images are.

    Args:
        epochs: length of the training.
        dataset_size: number of training images.
        budget: multiply-adds for an image, half of what the paper calls FLOPs.

    Returns:
        The largest point of the family that the budget allows, made wider instead of deeper where the training is short.

    Raises:
        ArgumentError: if a number is not positive.
    """
    for name, value in (("epochs", epochs), ("dataset_size", dataset_size), ("budget", budget)):
        if not 0 < value < math.inf:
            raise ArgumentError(f"scaling_advisor: `{name}` must be positive, got {value}. A budget is in multiply-adds, such as 10e9.")
    within = [point for point in POINTS if point.macs <= budget]
    point = within[-1] if within else POINTS[0]
    grow: Literal["depth", "width", "either"] = "depth" if epochs > LONG else "width" if epochs < SHORT else "either"
    notes = [
        {
            "depth": f"{epochs:g} epochs are long enough to overfit: scale the depth.",
            "width": f"{epochs:g} epochs are short: scale the width, here of depth 50.",
            "either": f"At {epochs:g} epochs depth and width do about equally well; the paper's points scale the depth.",
        }[grow]
    ]
    depth, width, macs = point.depth, 1.0, point.macs
    if grow == "width" or not within:
        depth, macs = POINTS[0].depth, POINTS[0].macs * (point.input_size / POINTS[0].input_size) ** 2
        width = round(math.sqrt(budget / macs), 3)  # a convolution's multiply-adds grow with the square of the width
        macs *= width**2
    if not within:
        notes.append(f"The smallest network of the paper takes {POINTS[0].macs:.3g} multiply-adds; this is a narrower one.")
    notes.append(
        f"Images of {point.input_size} px: the family grows from 160 to 320 px, "
        + ("and larger images return less and less." if point.input_size == 320 else "slower than the depth.")
    )
    notes.append(f"Regularise: RandAugment {point.magnitude}, dropout {point.drop_rate}, stochastic depth {point.drop_path_rate}.")
    if dataset_size < IMAGENET / 2:
        notes.append(
            f"The rules were found on {IMAGENET:,} images, and the paper warns that small experiments do not extrapolate: with "
            f"{dataset_size:,} images overfitting sets in after fewer epochs, so try both depth and width."
        )
    regular = (point.magnitude, point.drop_rate, point.drop_path_rate)
    return Advice(grow, depth, point.input_size, width, macs, *regular, *training_steps(epochs, dataset_size), tuple(notes))


def training_steps(epochs: float = 350, dataset_size: int = IMAGENET, batch_size: int = BATCH, warmup_epochs: float = 5) -> tuple[int, int]:
    """Count the updates of a training, rounded up, and those of its warm-up, rounded down.

    >>> training_steps()
    (109475, 1563)
    """
    return math.ceil(epochs * dataset_size / batch_size), math.floor(min(warmup_epochs, epochs) * dataset_size / batch_size)


@dataclass(frozen=True)
class RSRecipe:
    """The training recipe, each part of it a switch (section 4.2); its methods give arguments for any network.

    Args:
        cosine: the learning rate falls on a cosine; otherwise to a tenth after 1/3, 2/3 and 8/9 of the epochs.
        epochs: length of the training.
        ema: decay of a moving average of the weights, statistics of batch norm included; None is without. It must fit the length of the
            training: with 0.9999 the average looks back 10,000 updates.
        label_smoothing: share of a target that is spread over all classes.
        stochastic_depth: r0, with which the branches of the last stage are left out.
        randaug: magnitude of RandAugment, from 0 to 30, of which two operations are done; None is without.
        dropout: share of the pooled features dropped.
        weight_decay: 1e-4 alone, 4e-5 beside other regularisers.
        se: squeeze-excite, in a ResNet.
        resnet_d: stem and shortcuts of ResNet-D, in a ResNet.
        lr: peak learning rate for a batch of 256; it grows with the batch.
        warmup_epochs: epochs in which it rises from 0.

    Raises:
        ArgumentError: if a value cannot be.

    >>> RSRecipe.preset("baseline").weight_decay, RSRecipe.preset("rs").weight_decay
    (0.0001, 4e-05)
    """

    cosine: bool = True
    epochs: float = 350
    ema: float | None = 0.9999
    label_smoothing: float = 0.1
    stochastic_depth: float = 0.1
    randaug: float | None = 15
    dropout: float = 0.25
    weight_decay: float = 4e-5
    se: bool = True
    resnet_d: bool = True
    lr: float = 0.1
    warmup_epochs: float = 5

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ArgumentError(f"RSRecipe: `warmup_epochs` must lie in [0, epochs), got {self.warmup_epochs} of {self.epochs} epochs.")
        for name in ("label_smoothing", "stochastic_depth", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ArgumentError(f"RSRecipe: `{name}` must lie in [0, 1), got {getattr(self, name)}. 0 switches it off.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ArgumentError(f"RSRecipe: `ema` must lie strictly between 0 and 1, got {self.ema}. It is the decay; None is without.")
        if self.randaug is not None and not 0 <= self.randaug <= 30:
            raise ArgumentError(f"RSRecipe: `randaug` must lie between 0 and 30, got {self.randaug}. It is the magnitude; None is without.")
        if not self.weight_decay >= 0 or not self.lr > 0:
            raise ArgumentError(f"RSRecipe: `weight_decay` and `lr` must not be negative, got {self.weight_decay} and {self.lr}.")

    @classmethod
    def preset(cls, name: Literal["baseline", "rs"], **changes: Any) -> "RSRecipe":
        """Return a recipe of the paper: "baseline", the ResNet of 90 epochs that it starts from, or "rs", where it ends (table 1).

        Args:
            name: of the preset.
            changes: switches to set otherwise.
        """
        if name not in PRESETS:
            raise unknown("RSRecipe", "preset", name, PRESETS)
        return cls(**{**(_BASELINE if name == "baseline" else {}), **changes})

    def ablate(self) -> Iterator[tuple[str, "RSRecipe"]]:
        """Yield the additive study (table 1): the baseline, then one more switch at a time in the paper's order, up to this recipe."""
        recipe = replace(self, **_BASELINE)
        yield "baseline", recipe
        for switch, name in _ORDER.items():
            recipe = replace(recipe, **{switch: getattr(self, switch)})
            yield f"+ {name}", recipe

    def fit(self, batch_size: int = BATCH, views: str = "flip") -> dict[str, Any]:
        """Return the arguments of `retinue.fit`.

        Args:
            batch_size: images of an update; the learning rate is proportional to it.
            views: how images are shown, to which RandAugment is added.
        """
        shown = views if self.randaug is None else ", ".join(filter(None, (views, f"randaugment(2, {self.randaug:g})")))
        if self.cosine:
            schedule: dict[str, Any] = {
                "schedule": "cosine",  # over what the warm-up leaves
                "schedule_args": {"warmup_prefix": True, "num_epochs": self.epochs - self.warmup_epochs},
            }
        else:
            milestones = [self.epochs * share for share in (1 / 3, 2 / 3, 8 / 9)]
            schedule = {"schedule": "multistep", "schedule_args": {"decay_rate": 0.1, "decay_milestones": milestones}}
        return {
            "epochs": self.epochs,
            "batch_size": batch_size,
            "optimizer": "momentum",
            "momentum": 0.9,
            "lr": self.lr * batch_size / 256,
            "weight_decay": self.weight_decay,
            "warmup_epochs": self.warmup_epochs,
            "ema": self.ema,
            "views": shown or None,
            **schedule,
        }

    def objective(self) -> dict[str, Any]:
        """Return the arguments of `retinue.train.Supervised`."""
        return {"label_smoothing": self.label_smoothing}

    def model(self) -> dict[str, Any]:
        """Return the arguments of `retinue.create_model` that any network takes."""
        return {"drop_rate": self.dropout, "drop_path_rate": self.stochastic_depth}

    def architecture(self) -> dict[str, Any]:
        """Return the arguments that only `resnet_rs` takes."""
        return {"se": self.se, "resnet_d": self.resnet_d}

    def to_dict(self) -> dict[str, Any]:
        """Return the switches as JSON values."""
        return asdict(self)


_BASELINE: dict[str, Any] = {
    "cosine": False, "epochs": 90, "ema": None, "label_smoothing": 0.0, "stochastic_depth": 0.0, "randaug": None, "dropout": 0.0,
    "weight_decay": 1e-4, "se": False, "resnet_d": False,
}  # fmt: skip
_ORDER = {  # of addition, table 1
    "cosine": "cosine learning rate", "epochs": "more epochs", "ema": "moving average of the weights", "label_smoothing": "label smoothing",
    "stochastic_depth": "stochastic depth", "randaug": "RandAugment", "dropout": "dropout", "weight_decay": "less weight decay",
    "se": "squeeze-excite", "resnet_d": "ResNet-D",
}  # fmt: skip


class PseudoLabels(NamedTuple):
    """What a teacher says of unlabelled images.

    Attributes:
        targets: shares of the classes, or ones and zeros.
        kept: which images it is sure enough of.
    """

    targets: Float[Tensor, "images classes"]
    kept: Bool[Tensor, " images"]


@torch.no_grad()
def pseudo_label(
    teacher: nn.Module,
    images: Float[Tensor, "images channels height width"],
    threshold: float | None = None,
    soft: bool = True,
    *,
    num_classes: int | None = None,
    batch_size: int = 256,
) -> PseudoLabels:
    """Let a trained network label images (section 7): one round, with a teacher that stays as it is.

    A student is then trained on both sets, with CE(labelled, smoothed) + CE(pseudo-labelled) as its loss. Unlike in Noisy Student, nothing
    is repeated. What the paper does about soft and hard labels was not looked up; soft ones are the default here.

    Args:
        teacher: returns logits; it is used in evaluation mode and left in the mode that it was in.
        images: normalised, without labels.
        threshold: least probability of the likeliest class that an image needs to be kept; None keeps all.
        soft: the probabilities as targets; otherwise the likeliest class alone.
        num_classes: of the labelled set; None does not check.
        batch_size: images computed at once.

    Returns:
        Targets of all images, and which of them are kept.

    Raises:
        ArgumentError: if the teacher has another number of classes, or the threshold lies outside [0, 1].
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise ArgumentError(f"pseudo_label: `threshold` must lie in [0, 1], got {threshold}. It is a probability; None keeps all images.")
    with evaluating(teacher):
        shares = torch.cat([teacher(part).float().softmax(1) for part in images.split(batch_size)])
    if num_classes is not None and shares.shape[1] != num_classes:
        raise ArgumentError(
            f"pseudo_label: the teacher knows {shares.shape[1]} classes and the labelled set has {num_classes}. "
            "Take a teacher of the same classes."
        )
    sure, best = shares.max(1)
    targets = shares if soft else nn.functional.one_hot(best, shares.shape[1]).to(shares)
    return PseudoLabels(targets, torch.ones_like(sure, dtype=torch.bool) if threshold is None else sure >= threshold)
