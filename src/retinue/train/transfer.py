"""Transfer in two phases: the new head on a frozen backbone, then the backbone's top with it (Bahrami & Albadvi 2023, arXiv 2302.14354)."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from retinue.data import Batch, Data, Loader, Split
from retinue.engine import Objective, best, evaluating, fit, stages
from retinue.engine.seeds import own_randomness, seed_all
from retinue.errors import ArgumentError, CheckpointError, unknown
from retinue.metrics import balanced_accuracy, confusion_matrix, per_class
from retinue.models import config, create_model
from retinue.models.transfer_classifier import TransferClassifier

__all__ = ["TransferClassifier", "TwoPhaseSchedule", "WeightedCrossEntropy", "compare_backbones", "transfer"]


@dataclass(frozen=True)
class TwoPhaseSchedule:
    """Epochs and learning rates of both phases, each with a staircase that multiplies the rate every so many updates.

    Attributes:
        epochs: of the frozen phase, and of fine-tuning.
        lr: first learning rate of each; the second must be much smaller, or what was pre-trained is destroyed.
        decay: factor, and number of updates after which it is applied, of each.

    Raises:
        ArgumentError: if the second learning rate is not below the first, or a number is not positive.
    """

    epochs: tuple[float, float] = (30, 10)
    lr: tuple[float, float] = (1e-3, 1e-6)
    decay: tuple[tuple[float, int], tuple[float, int]] = ((0.96, 1000), (0.96, 300))

    def __post_init__(self) -> None:
        pairs = (("epochs", self.epochs), ("lr", self.lr), ("decay", self.decay))
        for name, pair in pairs:
            if len(pair) != 2:
                raise ArgumentError(f"TwoPhaseSchedule: `{name}` needs one entry for each of the two phases, got {list(pair)}.")
        if not all(value > 0 for value in (*self.epochs, *self.lr, *self.decay[0], *self.decay[1])):
            raise ArgumentError(
                f"TwoPhaseSchedule: all numbers must be positive, got epochs={self.epochs}, lr={self.lr}, decay={self.decay}."
            )
        if self.lr[1] >= self.lr[0]:
            raise ArgumentError(
                f"TwoPhaseSchedule: the learning rate of fine-tuning must be below that of the head, got lr={self.lr}: it would destroy "
                "what was pre-trained. The paper takes a thousandth and less."
            )

    def settings(self, phase: int, steps_per_epoch: int) -> dict[str, Any]:
        """Return the arguments of `retinue.fit` for phase 0 or 1."""
        factor, updates = self.decay[phase]
        epochs = updates / steps_per_epoch
        while epochs * steps_per_epoch > updates:  # a rounding upwards would decay one update too late
            epochs = math.nextafter(epochs, 0)
        return {
            "epochs": self.epochs[phase],
            "lr": self.lr[phase],
            "schedule": "step",
            "schedule_args": {"decay_rate": factor, "decay_epochs": epochs},
        }


class WeightedCrossEntropy(Objective):
    """Cross-entropy in which each image weighs as its class, plus a penalty on the kernels of the head.

    Args:
        class_weights: weight of each class, such as (2, 1) where class 0 is rare; None weighs all alike.
        l2: times the sum of the squared kernels of the head of a `TransferClassifier`.

    Raises:
        ArgumentError: if a weight or `l2` is negative.

    >>> objective = WeightedCrossEntropy(class_weights=[2, 1], l2=0.01)
    """

    monitor, mode = "balanced_accuracy", "max"

    def __init__(self, class_weights: Sequence[float] | None = None, l2: float = 0.0) -> None:
        super().__init__()
        if class_weights is not None and not all(weight >= 0 for weight in class_weights):
            raise ArgumentError(f"WeightedCrossEntropy: `class_weights` must be 0 or more, got {list(class_weights)}.")
        if not l2 >= 0:
            raise ArgumentError(f"WeightedCrossEntropy: `l2` must be 0 or more, got {l2}.")
        self.class_weights, self.l2 = None if class_weights is None else list(class_weights), l2

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse labels of one class, and outputs or weights that do not fit the classes."""
        classes, outputs = len(data.classes), getattr(model, "num_classes", None)
        if len(data.train.labels.unique()) < 2:
            only = data.classes[int(data.train.labels[0])]
            raise ArgumentError(
                f'transfer: all training images of {data.name} are of the class "{only}". There must be two classes at least.'
            )
        if outputs != classes and not (outputs == 1 and classes == 2):
            raise ArgumentError(
                f"transfer: the model has {outputs} outputs and {data.name} has {classes} classes. "
                f"Build it with num_classes={classes}{', or 1 for one logit' if classes == 2 else ''}."
            )
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise ArgumentError(f"transfer: `class_weights` needs {classes} numbers, one for each class, got {len(self.class_weights)}.")

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss, and the share of right answers."""
        logits = two_columns(model(batch.images))
        shares = batch.targets if batch.targets is not None else F.one_hot(batch.labels, logits.shape[1]).to(logits.dtype)
        if self.class_weights is not None:
            shares = shares * torch.tensor(self.class_weights, device=shares.device, dtype=shares.dtype)
        loss = -(shares * logits.log_softmax(1)).sum(1).mean()
        if self.l2 and isinstance(model, TransferClassifier):
            kernels = [layer.weight for layer in model.head if isinstance(layer, nn.Linear)]
            loss = loss + self.l2 * sum(kernel.square().sum() for kernel in kernels)
        return {"loss": loss, "top1": (logits.argmax(1) == batch.labels).float().mean()}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, loader: Loader) -> dict[str, float]:
        """Compute what `judge` does over a held-out split."""
        with evaluating(model):
            pairs = [(two_columns(model(batch.images).float()), batch.labels) for batch in loader.batches()]
        return judge(torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs]))


def two_columns(logits: Float[Tensor, "batch outputs"]) -> Float[Tensor, "batch classes"]:
    """Turn one logit into the two whose softmax is its sigmoid; more stay as they are."""
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits


def judge(logits: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> dict[str, float]:
    """Measure a classifier in a way that a rare class cannot be lost in.

    Returns:
        "top1", "loss" (unweighted), "balanced_accuracy" (mean recall of the classes), "precision", "recall" and "f1" (of class 1 of two; of
        more, their mean over the classes), and "f1_rarest" (of the class with the fewest images).

    >>> labels = torch.tensor([0] * 207 + [1] * 1352)
    >>> judged = judge(torch.tensor([[0.0, 1.0]]).expand(1559, 2), labels)  # always "1"
    >>> round(judged["top1"], 4), round(judged["f1"], 4), judged["balanced_accuracy"], judged["f1_rarest"]
    (0.8672, 0.9289, 0.5, 0.0)
    """
    confusion = confusion_matrix(logits.argmax(1), labels, logits.shape[1])
    each = per_class(confusion)
    shown = torch.tensor([1]) if logits.shape[1] == 2 else (each.support > 0).nonzero()[:, 0].cpu()
    rarest = each.support.masked_fill(each.support == 0, len(labels) + 1).argmin()
    return {
        "top1": float(confusion.diagonal().sum() / len(labels)),
        "loss": float(F.cross_entropy(logits, labels)),
        "balanced_accuracy": float(balanced_accuracy(confusion)),
        "precision": float(each.precision[shown].mean()),
        "recall": float(each.recall[shown].mean()),
        "f1": float(each.f1[shown].mean()),
        "f1_rarest": float(each.f1[rarest]),
    }


def transfer(
    model: nn.Module,
    data: Data,
    *,
    unfreeze: str | float = 0.35,
    epochs: tuple[float, float] = (30, 10),
    lr: tuple[float, float] = (1e-3, 1e-6),
    decay: tuple[tuple[float, int], tuple[float, int]] = ((0.96, 1000), (0.96, 300)),
    class_weights: list[float] | None = None,
    l2: float = 0.01,
    weights: str | None = None,
    batch_size: int = 32,
    views: str | Callable[..., Any] | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Train the head on the frozen backbone, then fine-tune the backbone's top at a much smaller learning rate.

    In both phases the backbone runs as in evaluation, so that batch norms keep the statistics of pre-training. The second phase begins at
    the best epoch of the first, with an optimiser of its own (Adam, as the first).

    Args:
        model: a `TransferClassifier`; it is trained in place.
        data: labelled images; for one logit, of two classes.
        unfreeze: from which layer of the backbone on it learns in the second phase, or which share of its layers from the top.
        epochs: of both phases.
        lr: learning rates of both phases.
        decay: of both phases, the factor and the number of updates after which the learning rate is multiplied with it.
        class_weights: weight of each class in the loss; None weighs all alike.
        l2: penalty on the head's kernels.
        weights: of the backbone: "published" fetches those of its name, a run's folder takes that run's, and None keeps what it has.
        batch_size: images of an update.
        views: how training images are shown, as in `retinue.fit`.
        seed: of everything random.
        run_dir: the folder; the runs of the phases stand in its `head` and `fine-tuned`, and a finished phase is not trained again.
        progress: show a live bar.

    Returns:
        The numbers of `judge` on the test images (on the validation images where there are none) after each phase, "head" and "fine-tuned".

    Raises:
        ArgumentError: if the model is no `TransferClassifier`, the unfreeze point does not exist, or a setting cannot be.
        CheckpointError: if `weights` is no run with a backbone of this kind.
    """
    if not isinstance(model, TransferClassifier):
        raise ArgumentError(
            f"transfer: `model` must be a TransferClassifier, got {type(model).__name__}. Wrap it: TransferClassifier(model)."
        )
    schedule = TwoPhaseSchedule(*(tuple(pair) for pair in (epochs, lr, decay)))  # type: ignore[arg-type]
    model.unfreeze_from(unfreeze)  # a name that does not exist is said before anything is trained
    if weights is not None:
        load_backbone(model, weights)
    objective = WeightedCrossEntropy(class_weights, l2)
    held_out = data.test if len(data.test) else data.val
    finished = stages(run_dir)

    def phase(number: int, name: str) -> dict[str, Any]:
        steps = len(data.train.loader(batch_size, shuffle=True))
        run = fit(
            model, objective, data, batch_size=batch_size, optimizer="adam", weight_decay=0.0, views=views, seed=seed,
            run_dir=finished.folder(name), progress=progress, **schedule.settings(number, steps),
        )  # fmt: skip
        return {"weights": dict(run.model.state_dict()), "numbers": measured(run.model, held_out) if len(held_out) else {}}

    numbers = {}
    for number, name in enumerate(("head", "fine-tuned")):
        model.freeze_backbone() if number == 0 else model.unfreeze_from(unfreeze)
        done = finished(name, phase, number, name)
        model.load_state_dict(done["weights"])
        numbers[name] = done["numbers"]
    model.eval()
    return numbers


def compare_backbones(
    data: Data,
    backbones: dict[str, dict[str, Any]],
    *,
    settings: dict[str, Any] | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Transfer several backbones to the same data, one after the other (the paper compares MobileNetV2, ResNet152V2, InceptionResNetV2).

    Args:
        data: labelled images.
        backbones: for each name that `create_model` knows, the settings in which it differs: arguments of `transfer` (`unfreeze`, ...) and
            of the network (`hidden`, `dropout`, `backbone_args`, `num_classes`).
        settings: those that all share. Of two classes, one logit is made unless `num_classes` says otherwise.
        seed: of everything random, the same for all.
        run_dir: the folder, with one folder for each backbone; what has finished is not trained again.
        progress: show a live bar.

    Returns:
        The numbers of `transfer` under "BACKBONE, head" and "BACKBONE, fine-tuned".

    Raises:
        ArgumentError: if there is no backbone, or a name or a setting is unknown.
    """
    if not backbones:
        raise ArgumentError('compare_backbones: `backbones` is empty. Name at least one, such as {"timm:mobilenetv2_100": {}}.')
    of_network = ("hidden", "dropout", "backbone_args", "num_classes")
    of_transfer = [name for name in inspect.signature(transfer).parameters if name not in ("model", "data", "seed", "run_dir", "progress")]
    every = {name: {**(settings or {}), **own} for name, own in backbones.items()}
    for given in every.values():
        for key in given:
            if key not in (*of_network, *of_transfer):
                raise unknown("compare_backbones", "setting", key, (*of_network, *of_transfer))
    seen = data.preprocessing
    numbers = {}
    for name, given in every.items():
        shape = {
            "num_classes": 1 if len(data.classes) == 2 else len(data.classes),
            "in_chans": seen.channels,
            "input_size": seen.input_size,
        }
        with own_randomness():
            seed_all(seed)
            model = create_model("transfer_classifier", backbone=name, **{**shape, **{k: v for k, v in given.items() if k in of_network}})
        folder = None if run_dir is None else Path(run_dir) / name.replace(":", "-").replace("/", "-")
        rest = {key: value for key, value in given.items() if key in of_transfer}
        for phase, judged in transfer(model, data, seed=seed, run_dir=folder, progress=progress, **rest).items():
            numbers[f"{name}, {phase}"] = judged
    return numbers


def measured(model: nn.Module, split: Split, batch_size: int = 256) -> dict[str, float]:
    """Compute the numbers of `judge` on a split, on the model's device."""
    device = next(model.parameters()).device
    return WeightedCrossEntropy().evaluate(model, split.loader(batch_size, device=device))


def load_backbone(model: TransferClassifier, weights: str | Path) -> None:
    """Fill the backbone with weights from elsewhere; the head stays as it is.

    Args:
        model: its backbone must have been built by `create_model` where the published weights are asked for.
        weights: "published", or the folder of a run whose network, or whose backbone, is of the same kind.

    Raises:
        ArgumentError: if the backbone has no name by which to fetch its weights.
        CheckpointError: if the run's weights do not fit.
    """
    if weights == "published":
        made = config(model.backbone)
        if made is None:
            raise ArgumentError(
                "transfer: only a backbone from create_model has published weights. Load your own network's before wrapping it."
            )
        tensors = dict(create_model(made["name"], **{**made["arguments"], "pretrained": True}).state_dict())
    else:
        tensors = best(Path(weights)).tensors
        if any(name.startswith("backbone.") for name in tensors):  # of another transfer
            tensors = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items() if name.startswith("backbone.")}
    own = model.backbone.state_dict()
    missing = [name for name, tensor in own.items() if name not in tensors or tensors[name].shape != tensor.shape]
    if missing:
        raise CheckpointError(
            f"transfer: the weights of {weights} do not fit this backbone: {len(missing)} of {len(own)} tensors are missing or of another "
            f"shape, such as {missing[0]}. Take a run of the same network."
        )
    model.backbone.load_state_dict({name: tensors[name] for name in own})
