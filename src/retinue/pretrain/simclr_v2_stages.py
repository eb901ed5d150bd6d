"""SimCLRv2 from beginning to end: many images without labels, then the few labels, then all images again (Chen et al. 2020, section 2)."""

import copy
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from retinue.data import Data, Split, few_labels
from retinue.engine import Run, evaluate, evaluating, fit, stages
from retinue.engine.seeds import own_randomness, seed_all
from retinue.errors import ArgumentError, unknown
from retinue.models import adapt, config, create_model, feature_size, pooled_features, untrained
from retinue.models.projection import ALL, ProjectedClassifier, ProjectionHead
from retinue.pretrain.simclr_v2 import SimCLRv2
from retinue.pretrain.simclr_v2_labels import Distillation, FineTuning

SETTINGS = [name for name in inspect.signature(fit).parameters if name not in ("model", "objective", "data", "run_dir", "progress")]
OF_OBJECTIVE = [name for name in inspect.signature(SimCLRv2).parameters if name not in ("model", "data")]
PROBE_STRENGTH = 0.1  # of the linear probe: scikit-learn's C
NEVER = 1 << 40  # epochs between evaluations: pre-training ends with the last weights, which are those that the head fits


def projected(model: nn.Module, head: ProjectionHead, classes: int, from_layer: int = 1) -> ProjectedClassifier:
    """Put a classifier of zeros behind copies of a pre-trained backbone and of the first layers of its projection head.

    Where the backbone came from `create_model`, the classifier counts as one too, so that a run of it loads by itself.

    Args:
        model: the backbone.
        head: its projection head.
        classes: outputs.
        from_layer: how many layers of the head are kept.

    Raises:
        ArgumentError: if the head has not so many layers.
    """
    made = config(model)
    network = ProjectedClassifier(copy.deepcopy(model), copy.deepcopy(head), from_layer, classes)
    if made is not None:
        common = {key: made["arguments"].pop(key) for key in ("num_classes", "in_chans", "input_size")}
        hidden_dim = head.widths[1] if len(head.layers) > 1 else None
        widths = {"hidden_dim": hidden_dim, "out_dim": head.widths[-1], "num_layers": len(head.layers)}
        arguments = {**common, "backbone": made["name"], "backbone_args": made["arguments"], "from_layer": from_layer, **widths}
        network.retinue_config = {"name": "projected_classifier", "arguments": {**arguments, "num_classes": classes}}  # type: ignore[assignment]
    return network


def pretrain(model: nn.Module, data: Data, objective: Mapping[str, Any] | None = None, seed: int = 0, **settings: Any) -> Run:
    """Pre-train a backbone in place (stage 1); `run.objective.head` is its projection head.

    Args:
        model: the backbone.
        data: images; labels are not looked at.
        objective: arguments of `SimCLRv2`.
        seed: of the head's weights and of the training.
        settings: arguments of `retinue.fit`.
    """
    network = adapt(model, input_size=data.preprocessing.input_size)
    with own_randomness():
        seed_all(seed)
        made = SimCLRv2(network, data, **(objective or {}))
    return fit(network, made, data, seed=seed, **{"eval_every": NEVER, **settings})


def finetune(
    model: nn.Module,
    head: ProjectionHead,
    data: Data,
    *,
    from_layer: int = 1,
    after_block: int = ALL,
    label_fraction: float | None = None,
    per_class: int | None = None,
    head_decay: float = 0.0,
    seed: int = 0,
    **settings: Any,
) -> Run:
    """Fine-tune a copy of a pre-trained backbone and of its head's first layers on few labels (stage 2); `run.model` is the classifier.

    Args:
        model: the backbone.
        head: its projection head.
        data: labelled images.
        from_layer: how many layers of the head are kept: 0 is SimCLR's way and best for all labels, 1 for few.
        after_block: what learns, see `ProjectedClassifier.freeze`; -1 is everything.
        label_fraction: share of the labels of each class, in (0, 1]; without it and `per_class`, all.
        per_class: number of labels of each class, instead.
        head_decay: see `FineTuning`.
        seed: of the draw of the labels and of the training.
        settings: arguments of `retinue.fit`.

    Raises:
        ArgumentError: if there is no such layer, or a class has no labelled image.
    """
    network = projected(adapt(model, input_size=data.preprocessing.input_size), head, len(data.classes), from_layer)
    network.freeze(after_block)
    return fit(network, FineTuning(head_decay), labelled(data, label_fraction, per_class, seed), seed=seed, **settings)


def distill(
    teacher: nn.Module,
    student: nn.Module,
    data: Data,
    *,
    temperature: float = 1.0,
    alpha: float = 1.0,
    label_fraction: float | None = None,
    per_class: int | None = None,
    scale_by_tau2: bool = False,
    head_decay: float = 0.0,
    seed: int = 0,
    **settings: Any,
) -> Run:
    """Teach a student, in place, the teacher's answers to all training images (stage 3).

    Args:
        teacher: a fine-tuned classifier.
        student: a classifier of as many classes.
        data: images; their labels are learned only where `alpha` is below 1.
        temperature: 0.1 for a student of the teacher's size, 1 for a smaller one.
        alpha: weight of the teacher's answers beside the labels.
        label_fraction: share of the labels that is known, as in `finetune`; read where `alpha` is below 1.
        per_class: number of labels of each class, instead.
        scale_by_tau2: see `distillation_loss`.
        head_decay: see `FineTuning`.
        seed: of the draw of the labels, as in `finetune`, and of the training.
        settings: arguments of `retinue.fit`.

    Raises:
        ArgumentError: if student, teacher and data differ in the number of classes.
    """
    known = None
    if alpha < 1 and (label_fraction is not None or per_class is not None):
        known = torch.isin(data.train.positions, labelled(data, label_fraction, per_class, seed).train.positions).nonzero()[:, 0].tolist()
    objective = Distillation(teacher, temperature, alpha=alpha, labelled=known, scale_by_tau2=scale_by_tau2, head_decay=head_decay)
    return fit(student, objective, data, seed=seed, **settings)


def labelled(data: Data, label_fraction: float | None, per_class: int | None, seed: int) -> Data:
    """Return data with the labelled training images alone; the same seed draws the same.

    Raises:
        ArgumentError: if `label_fraction` lies outside (0, 1], both are given, or a class has no labelled image.
    """
    if label_fraction is not None and not 0 < label_fraction <= 1:
        raise ArgumentError(f"finetune: `label_fraction` must lie in (0, 1], got {label_fraction}. For one percent write 0.01.")
    if label_fraction is None and per_class is None:
        return data
    return few_labels(data, share=label_fraction, per_class=per_class, seed=seed)


def semi_supervised(
    model: nn.Module,
    data: Data,
    *,
    label_fraction: float | None = None,
    per_class: int | None = None,
    objective: Mapping[str, Any] | None = None,
    pretrain_fit: Mapping[str, Any] | None = None,
    from_layer: int = 1,
    after_block: int = ALL,
    finetune_fit: Mapping[str, Any] | None = None,
    self_temperature: float = 0.1,
    student: str | None = None,
    student_args: Mapping[str, Any] | None = None,
    student_temperature: float = 1.0,
    alpha: float = 1.0,
    distill_fit: Mapping[str, Any] | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Make a classifier from many images and few labels, in three stages; each is done once, and a killed one goes on where it stopped.

    Pre-train on all training images; fine-tune on the few labels; distil that classifier into a fresh network of its own kind, without the
    projection head; and where a `student` is named, distil the result into that.

    Args:
        model: the backbone; it is pre-trained in place.
        data: images, whose labels are known as far as `label_fraction` or `per_class` says.
        label_fraction: share of the labels of each class, in (0, 1].
        per_class: number of labels of each class, instead.
        objective: arguments of `SimCLRv2`.
        pretrain_fit: arguments of `retinue.fit` in stage 1.
        from_layer: where in the head fine-tuning begins: 0 to the number of its layers.
        after_block: what learns in fine-tuning: -1 everything, 4 the head alone.
        finetune_fit: arguments of `retinue.fit` in stage 2.
        self_temperature: tau of self-distillation.
        student: name of a smaller network.
        student_args: its options.
        student_temperature: tau of its distillation.
        alpha: weight of the teacher's answers in both distillations; 1 uses no label.
        distill_fit: arguments of `retinue.fit` in stage 3.
        seed: of everything random.
        run_dir: the folder; runs stand in its `pretrained`, `fine-tuned`, `self-distilled` and `distilled`.
        progress: show a live bar.

    Returns:
        For "pretrained" the accuracy "top1" of a logistic regression on its features, fitted to the few labels; for "fine-tuned",
        "self-distilled" and "distilled" the numbers of `retinue.evaluate`; on the test images (validation images where there are none).

    Raises:
        ArgumentError: if a setting does not exist or cannot be.
    """
    for name, block, known in (
        ("objective", objective, OF_OBJECTIVE), ("pretrain_fit", pretrain_fit, SETTINGS), ("finetune_fit", finetune_fit, SETTINGS),
        ("distill_fit", distill_fit, SETTINGS),
    ):  # fmt: skip
        for key in block or ():
            if key not in known:
                raise unknown("semi_supervised", f"setting of `{name}`", key, known)
    few = labelled(data, label_fraction, per_class, seed)
    finished = stages(run_dir)
    held_out = data.test if len(data.test) else data.val
    network: Any = adapt(model, input_size=data.preprocessing.input_size)
    network.reset_classifier(0)
    head = _head(network, objective or {})
    projected(network, head, len(data.classes), from_layer).freeze(after_block)  # what cannot be is said before anything is trained
    pupils = _pupils(network, data, seed, student, student_args)
    temperatures = {"self-distilled": self_temperature, "distilled": student_temperature}
    labels: dict[str, Any] = {"label_fraction": label_fraction, "per_class": per_class}

    def common(name: str, settings: Mapping[str, Any] | None) -> dict[str, Any]:
        return {"seed": seed, "progress": progress, **(settings or {}), "run_dir": finished.folder(name)}

    def first() -> dict[str, Any]:
        run = pretrain(network, data, objective, **common("pretrained", pretrain_fit))
        kept: Any = run.objective
        return {"weights": dict(run.model.state_dict()), "head": dict(kept.head.state_dict())}

    done = finished("pretrained", first)
    network.load_state_dict(done["weights"])
    head.load_state_dict(done["head"])
    found = {"pretrained": {"top1": _probe(network, few.train, held_out)}}

    def second() -> dict[str, Any]:
        arguments = {**labels, **common("fine-tuned", finetune_fit)}
        run = finetune(network, head, data, from_layer=from_layer, after_block=after_block, **arguments)
        return {"weights": dict(run.model.state_dict())}

    teacher: Any = projected(network, head, len(data.classes), from_layer).to(next(network.parameters()).device)
    teacher.load_state_dict(finished("fine-tuned", second)["weights"])
    found["fine-tuned"] = evaluate(teacher, held_out)

    def third(teacher: nn.Module, name: str, pupil: nn.Module) -> dict[str, Any]:
        arguments = {**labels, **common(name, distill_fit)}
        run = distill(teacher, pupil, data, temperature=temperatures[name], alpha=alpha, **arguments)
        return {"weights": dict(run.model.state_dict())}

    for name, pupil in pupils.items():
        pupil.load_state_dict(finished(name, third, teacher, name, pupil)["weights"])
        found[name] = evaluate(pupil, held_out)
        teacher = pupil
    return found


def _head(network: nn.Module, objective: Mapping[str, Any]) -> ProjectionHead:
    """Build the head of an objective with these arguments, without drawing anything."""
    shape = {name: objective[name] for name in ("hidden_dim", "out_dim", "num_layers") if name in objective}
    with own_randomness():
        return ProjectionHead(feature_size(network), **shape)


def _pupils(network: Any, data: Data, seed: int, student: str | None, options: Mapping[str, Any] | None) -> dict[str, nn.Module]:
    """Build the students: a fresh network of the same kind, and where it is named a smaller one."""
    seen, classes = data.preprocessing, len(data.classes)
    with own_randomness():
        seed_all(seed, 3)
        fresh: Any = untrained(network)
        fresh.reset_classifier(classes)
        pupils: dict[str, nn.Module] = {"self-distilled": fresh}
        if student is not None:
            shape: dict[str, Any] = {"num_classes": classes, "in_chans": seen.channels, "input_size": seen.input_size}
            pupils["distilled"] = create_model(student, **{**shape, **(options or {})})
    return pupils


@torch.no_grad()
def _probe(network: nn.Module, few: Split, held_out: Split) -> float:
    """Fit a logistic regression to the features of the labelled images, and count how often it is right on others."""
    device = next(network.parameters()).device
    with evaluating(network):
        seen, unseen = (
            torch.cat([pooled_features(network, batch.images) for batch in split.loader(256, device=device).batches()])
            .float()
            .cpu()
            .numpy()
            for split in (few, held_out)
        )
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=PROBE_STRENGTH, max_iter=1000)).fit(seen, few.labels.numpy())
    return float(fitted.score(unseen, held_out.labels.numpy()))
