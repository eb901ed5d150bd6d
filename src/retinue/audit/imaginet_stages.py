"""ImagiNet's detector from beginning to end: pre-training, a head for each track, calibration, and the report (arXiv 2407.20020)."""

import copy
import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from retinue.audit.imaginet import balanced_images, calibrate, synthetic_logit, throughput
from retinue.audit.imaginet_report import TwoTrackReport, two_track_report
from retinue.data import Data, Split
from retinue.data.annotations import Annotations, by_family, by_origin
from retinue.data.views.perturbations import calibration_views, training_views
from retinue.engine import Objective, Supervised, fit, logits, stages
from retinue.engine.seeds import own_randomness, seed_all
from retinue.errors import ArgumentError, DataError, unknown
from retinue.models import adapt
from retinue.models.synthetic_detector import SyntheticDetector

SETTINGS = [name for name in inspect.signature(fit).parameters if name not in ("model", "objective", "data", "run_dir", "progress")]
PRETRAIN: dict[str, Any] = {
    "epochs": 400, "batch_size": 200, "optimizer": "sgd", "lr": 0.005, "momentum": 0.9, "weight_decay": 1e-4, "schedule": "cosine",
    "warmup_epochs": 10, "schedule_args": {"warmup_lr": 5e-7, "min_lr": 5e-6},
}  # fmt: skip
HEAD: dict[str, Any] = {"epochs": 5, "batch_size": 200, "optimizer": "adam", "lr": 1e-4, "weight_decay": 1e-3, "schedule": "constant"}

Build = Callable[[nn.Module, Data], Objective]


class Detectors(dict[str, dict[str, float]]):
    """What `train_detector` returns: the rows of the two-track report on the test images, by name; the networks are attributes.

    Attributes:
        origin: tells real from synthetic.
        family: tells the families; None where there is one alone.
    """

    origin: SyntheticDetector
    family: SyntheticDetector | None


def train_detector(
    model: nn.Module,
    data: Data,
    *,
    objective: Mapping[str, Any] | Build | None = None,
    real: str = "real",
    perturb: bool = True,
    pretrain_fit: Mapping[str, Any] | None = None,
    head_fit: Mapping[str, Any] | None = None,
    head_views: Literal["calibration", "training"] = "calibration",
    held_images: int = 80,
    seed: int = 0,
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> Detectors:
    """Pre-train a backbone, fit the head of each track on it, and calibrate; a killed call goes on at its stage when it is given again.

    Args:
        model: the backbone; it is trained in place.
        data: images whose classes are families of generators, one of them the real ones. The heads are fitted to training images, the
            threshold to held-out ones of validation.
        objective: what pre-trains: {"name": dotted name, its arguments}, such as {"name": "retinue.pretrain.SelfCon"}, or a function of
            model and data that returns it. None: the backbone stays as it is.
        real: the name of the class of real images.
        perturb: show training images compressed, blurred and noisy as well.
        pretrain_fit: arguments of `retinue.fit` for the pre-training, in place of the paper's, `PRETRAIN`.
        head_fit: arguments of `retinue.fit` for the heads, in place of the paper's, `HEAD`.
        head_views: how images are shown to the heads: "calibration", the paper's views, which resize crops and were made for 256 px; or
            "training", the views of the pre-training, for images so small that resized crops say little about whole ones.
        held_images: validation images for the calibration, half of them real.
        seed: of everything random.
        run_dir: the folder; runs stand in its `pretrain`, `origin` and `family`.
        progress: show a live bar.

    Returns:
        "accuracy", "auc" and "images" of each row of the two-track report on the test images, and "images_per_second" as "speed"; the
        detectors are attributes.

    Raises:
        ArgumentError: if a setting cannot be, or the data has no class `real`.
        DataError: if validation or test images are all real or all synthetic.
    """
    for name, block in (("pretrain_fit", pretrain_fit), ("head_fit", head_fit)):
        for key in block or ():
            if key not in SETTINGS:
                raise unknown("train_detector", f"setting of `{name}`", key, SETTINGS)
    if head_views not in ("calibration", "training"):
        raise unknown("train_detector", "`head_views`", head_views, ("calibration", "training"))
    origins = by_origin(data, real)
    for part in ("val", "test"):
        if len(set(getattr(origins, part).labels.tolist())) < 2:
            raise DataError(
                f"train_detector: the {part} images of {data.name} must be real and synthetic. Open the data with more of them."
            )
    held = balanced_images(origins.val, held_images, seed)
    finished = stages(run_dir)
    side = min(data.preprocessing.input_size)
    common: dict[str, Any] = {"progress": progress, "seed": seed}
    shown = training_views(side, 0.5 if perturb else 0.0)
    shown_to_heads = shown if head_views == "training" else calibration_views(side, perturb)
    network = adapt(model, input_size=data.preprocessing.input_size)
    if objective is not None:
        built = _objective(objective, network, data, real, seed)

        def pretrain() -> dict[str, Any]:
            settings = {**common, "views": shown, **(pretrain_fit or PRETRAIN)}
            return {"weights": dict(fit(network, built, data, **settings, run_dir=finished.folder("pretrain")).model.state_dict())}

        network.load_state_dict(finished("pretrain", pretrain)["weights"])

    def headed(name: str, labelled: Data) -> SyntheticDetector:
        with own_randomness():
            seed_all(seed, len(labelled.classes))
            detector = SyntheticDetector(copy.deepcopy(network), len(labelled.classes))

        def stage() -> dict[str, Any]:
            settings = {**common, "views": shown_to_heads, **(head_fit or HEAD)}
            return {"weights": dict(fit(detector, Supervised(), labelled, **settings, run_dir=finished.folder(name)).model.state_dict())}

        detector.load_state_dict(finished(name, stage)["weights"])
        detector.preprocessing = data.preprocessing  # type: ignore[assignment]
        return detector.eval()

    result = Detectors()
    result.origin = headed("origin", origins)

    def threshold() -> dict[str, Any]:
        return dict(calibrate(result.origin, held)._asdict())

    for name, value in finished("calibration", threshold).items():
        getattr(result.origin, name).fill_(value)
    families = by_family(data, real)
    result.family = headed("family", families) if len(families.classes) > 1 else None

    def judge() -> dict[str, Any]:
        found = report(result, data, real)
        rows = {name: row._asdict() for name, row in found.rows().items()}
        return {**rows, "speed": {"images_per_second": found.images_per_second}}

    result.update(finished("report", judge))
    return result


def report(detectors: Detectors, data: Data, real: str = "real", split: Split | None = None) -> TwoTrackReport:
    """Judge detectors on both tracks.

    Args:
        detectors: from `train_detector`.
        data: whose classes are families of generators, one of them the real ones.
        real: the name of the class of real images.
        split: the images; None are the test images.
    """
    shown = data.test if split is None else split
    of_families = None if detectors.family is None else logits(detectors.family, shown)[0]
    table, names = families_table(shown, real)
    speed = throughput(detectors.origin, shown)
    scores = synthetic_logit(detectors.origin, shown)
    return two_track_report(scores, of_families, table, families=names, images_per_second=speed)


def families_table(split: Split, real: str = "real") -> tuple[Annotations, dict[int, str]]:
    """Describe a split, whose classes are families and one of real images, as the table that `two_track_report` takes.

    Args:
        split: the images; their content is "uncategorised".
        real: the name of the class of real images.

    Returns:
        The table, in which families are numbered without the real ones, and the families' names by number.

    Raises:
        ArgumentError: if there is no such class.
    """
    if real not in split.classes:
        raise unknown("families_table", "class of the data (`real`)", real, split.classes)
    number = split.classes.index(real)
    origin = (split.labels != number).long()
    family = torch.where(origin == 1, split.labels - (split.labels > number).long(), len(split.classes) - 1)
    codes = torch.stack([origin, torch.full_like(origin, 3), family, family], dim=1)
    names = dict(enumerate(name for name in split.classes if name != real))
    return Annotations([split.name(i) for i in range(len(split))], codes), names


def _objective(objective: Mapping[str, Any] | Build, model: nn.Module, data: Data, real: str, seed: int) -> Objective:
    with own_randomness():
        seed_all(seed)
        if callable(objective):
            return objective(model, data)
        options = dict(objective)
        package, _, name = str(options.pop("name", "")).rpartition(".")
        try:
            kind = getattr(importlib.import_module(package), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ArgumentError(
                f"train_detector: `objective` needs the dotted name of an objective, got {objective!r}: {error}. "
                'Such as {"name": "retinue.pretrain.SelfCon"}.'
            ) from error
        built: Objective = kind(model, data, **{"real": real, **options})
        return built
