"""Learngene Pool: networks of many sizes, stitched of the blocks of a few that one big network has taught (Shi et al. 2024).

From the ancestry, instances of several widths are distilled (`distil_instance`); a `LearngenePool` stitches them, and is trained with one
configuration a step (`PoolTraining`); `select` finds the best one under a limit, and `pool.build` gives it as an ordinary network
(arXiv 2312.05743). `train_learngene_pool` does it all.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from retinue.data import Data, Preprocessing, Split
from retinue.engine import Supervised, evaluate, fit, stages
from retinue.engine.checkpoint import write_whole
from retinue.engine.seeds import own_randomness, seed_all
from retinue.errors import ArgumentError, CheckpointError, unknown
from retinue.grow.hypernetworks import save_network
from retinue.grow.learngene_distillation import (
    KINDS,
    POINTS,
    LearngeneDistillation,
    PoolTraining,
    check_kinship,
    check_pool,
    depth_points,
    distil_instance,
)
from retinue.models import config as rebuilt
from retinue.models import count_macs, create_model, untrained
from retinue.models.learngene_pool import How, LearngenePool, Pairs, named_network
from retinue.models.stitches import Configuration, stitch_pairs, tokens_of

__all__ = [
    "Configuration",
    "LearngeneDistillation",
    "LearngenePool",
    "PoolTraining",
    "depth_points",
    "distil_instance",
    "measure_pool",
    "read_pool",
    "save_pool",
    "select",
    "stitch_pairs",
    "train_learngene_pool",
]

PASSES = 3  # of a training step: forward, gradient of the activations, gradient of the weights
ENTRY = "retinue"  # the name under which the file keeps the plan, as JSON


def measure_pool(pool: LearngenePool, split: Split) -> dict[str, dict[str, float]]:
    """Measure every configuration, and note it in `pool.table`.

    Args:
        pool: trained.
        split: held-out images.

    Returns:
        For each configuration, by name: "params", "macs" (multiply-adds of one image), and "top1" and "loss" on the split.

    Raises:
        ArgumentError: if the split is empty, or `pool` is none.
    """
    pool = check_pool(pool, "measure_pool")
    table = {}
    for config in pool.configs:
        numbers = evaluate(pool.network(config), split)
        size = {"params": float(pool.num_params(config)), "macs": float(pool.num_macs(config))}
        table[str(config)] = {**size, "top1": numbers["top1"], "loss": numbers["loss"]}
    pool.table = table
    return table


def select(
    pool: LearngenePool,
    table: Mapping[str, Mapping[str, float]] | None = None,
    max_params: float | None = None,
    max_macs: float | None = None,
) -> Configuration:
    """Find the most accurate configuration under a limit; of equals, the one with fewer parameters.

    Args:
        pool: the pool.
        table: "top1" of configurations, by name, and "params" and "macs" where they are known; other entries are left aside. None takes
            `pool.table`.
        max_params: most parameters; None sets no limit.
        max_macs: most multiply-adds of one image; None sets no limit.

    Returns:
        One of `pool.configs`, for `pool.build`.

    Raises:
        ArgumentError: if the table has none of the pool's configurations, or none keeps the limits; the smallest is named.
    """
    pool = check_pool(pool, "select")
    rows = pool.table if table is None else table
    known = [config for config in pool.configs if str(config) in rows]
    if not known:
        raise ArgumentError("select: `table` has none of the pool's configurations. Measure them: measure_pool(pool, data.test).")
    limits = {"max_params": (max_params, "params", pool.num_params), "max_macs": (max_macs, "macs", pool.num_macs)}
    small, told = known, []
    for name, (limit, column, count) in limits.items():
        if limit is not None:
            sizes = {config: int(rows[str(config)].get(column) or count(config)) for config in known}
            small = [config for config in small if sizes[config] <= limit]
            told.append(f"{name}={limit:,} (the least is {min(sizes.values()):,})")
    if not small:
        raise ArgumentError(f"select: no configuration keeps {' and '.join(told)}. Raise the limit, or pool narrower instances.")
    return max(small, key=lambda config: (rows[str(config)]["top1"], -pool.num_params(config)))


def save_pool(pool: LearngenePool, path: str | Path) -> Path:
    """Write a pool to one file: all instances, all stitches, the plan, and what was measured.

    Args:
        pool: the pool.
        path: the file, such as "pool.safetensors".

    Returns:
        The path.

    Raises:
        ArgumentError: if `pool` is none.
        CheckpointError: if the file cannot be written.
    """
    pool = check_pool(pool, "save_pool")
    preprocessing = getattr(pool, "preprocessing", None)
    plan = {"pairs": pool.pairs, "window": pool.window, "stride": pool.stride, "narrowing": pool.narrowing}
    facts = {
        "model": rebuilt(pool),
        "plan": plan,
        "table": pool.table,
        "classes": getattr(pool, "classes", None),
        "preprocessing": None if preprocessing is None else preprocessing.to_dict(),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in pool.state_dict().items()}
    text = json.dumps(facts, sort_keys=True)
    content = safetensors.torch.save(tensors, metadata={ENTRY: text, "sha256": _digest(text, tensors)})
    write_whole(Path(path), content)
    return Path(path)


def read_pool(path: str | Path, instances: Sequence[nn.Module] | None = None) -> LearngenePool:
    """Read a pool that `save_pool` wrote, in evaluation mode.

    Args:
        path: the file.
        instances: your own networks to take the weights, where `create_model` cannot build the instances.

    Raises:
        CheckpointError: if the file is none, was altered, does not fit the instances, or needs them.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = json.loads(said[ENTRY])
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is no pool that save_pool wrote: {' '.join(str(error).split())[:200]}.") from error
    if said.get("sha256") != _digest(said[ENTRY], tensors):
        raise CheckpointError(f"{path} was altered after it was written: its SHA-256 is not the one that it states.")
    if instances is None and facts["model"] is None:
        raise CheckpointError(f"{path} holds instances of your own. Build them and give them: read_pool(path, instances=[...]).")
    built: Any
    if instances is None:
        built = create_model(facts["model"]["name"], **facts["model"]["arguments"])
    else:
        built = LearngenePool(instances, **facts["plan"])
    try:
        built.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit these instances: {' '.join(str(error).split())[:300]}") from error
    built.table = facts["table"]
    if facts["preprocessing"] is not None:
        built.classes, built.preprocessing = facts["classes"], Preprocessing.from_dict(facts["preprocessing"])
    return built.eval()


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    known = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        known.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        known.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return known.hexdigest()


def train_learngene_pool(
    model: nn.Module,
    data: Data,
    *,
    instances: Sequence[Mapping[str, Any] | nn.Module],
    pairs: Pairs = "ends",
    window: int = 2,
    stride: int = 1,
    ancestry_epochs: float = 0,
    instance_epochs: float = 50,
    pool_epochs: float = 50,
    points: Sequence[Sequence[str]] | None = None,
    alpha: float = 0.1,
    distil: float = 0.5,
    tau: float = 1.0,
    init: How = "distilled",
    fit_images: int = 100,
    twins: Literal["ends", "all"] | None = None,
    twin_epochs: float | None = None,
    ordinary: bool = True,
    lr: float = 5e-4,
    lr_pool: float | None = None,
    batch_size: int = 128,
    optimizer: str = "adamw",
    weight_decay: float = 0.05,
    schedule: str = "cosine",
    warmup_epochs: float = 0.0,
    ema: float | None = None,
    views: str | Callable[..., Any] | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Train the ancestry, distil the instances, train the pool, measure every configuration, and train twins from scratch.

    Args:
        model: the ancestry: a vision transformer or MLP-Mixer, which is trained in place.
        data: labelled images.
        instances: from narrow to wide, of as many blocks: of each, {"name": a name for `create_model`, its options}, or the network.
        pairs: as in `LearngenePool`.
        window: as there.
        stride: as there.
        ancestry_epochs: of the ancestry; 0 where it is trained already.
        instance_epochs: of each instance's distillation; 0 leaves the instances as they are.
        pool_epochs: of the pool.
        points: of each instance, the depths at which it is compared with the ancestry; None is the official choice: all three for the
            first, the end for the others.
        alpha: weight of the labels in the distillation of an instance.
        distil: weight of the ancestry's answers while the pool is trained.
        tau: temperature of both.
        init: of the stitches, as in `LearngenePool.init_stitches`.
        fit_images: training images for least squares.
        twins: which configurations are trained from scratch too: "ends" (those with the fewest and the most parameters), "all", or None.
        twin_epochs: of a twin; None is as many as the instances and the pool have together.
        ordinary: write every configuration as an ordinary network.
        lr: learning rate; of the pool where `lr_pool` is None.
        lr_pool: learning rate of the pool.
        batch_size: images of an update.
        optimizer: by timm's name.
        weight_decay: of weights.
        schedule: of the learning rate.
        warmup_epochs: at most a tenth of what a phase has.
        ema: decay of a moving average of the weights, which is then what is kept.
        views: how training images are shown, as in `retinue.fit`.
        seed: of everything random.
        run_dir: the folder; runs stand in its `ancestry`, `instance-I`, `pool` and `twin-NAME`, the pool in `pool.safetensors` (see
            `read_pool`), ordinary networks in `ordinary/NAME`, and a finished stage is not computed again.
        progress: show a live bar.

    Returns:
        On the test images (on validation images where there are none), the numbers of `retinue.evaluate` under "ancestry" and "instance I"
        (before they are pooled); under the name of each configuration those of `measure_pool`, and "twin" (its twin's top1) where it has
        one; and under "cost" the multiply-adds of training: "ancestry", "instances", "pool", "total" of these, "twins", and "from_scratch"
        (what twins of all configurations cost).

    Raises:
        ArgumentError: if a network does not fit, or a setting cannot be.
    """
    if twins not in (None, "ends", "all"):
        raise unknown("train_learngene_pool", "`twins`", str(twins), ("ends", "all"))
    if not (ancestry_epochs >= 0 and instance_epochs >= 0 and pool_epochs >= 0):
        raise ArgumentError(
            f"train_learngene_pool: epochs must be 0 or more, got {ancestry_epochs}, {instance_epochs} and {pool_epochs} of ancestry, "
            "instances and pool."
        )
    if init not in get_args(How):
        raise unknown("train_learngene_pool", "`init`", init, get_args(How))
    if not 0 <= alpha <= 1 or fit_images < 1:
        raise ArgumentError(
            f"train_learngene_pool: `alpha` must lie in [0, 1] and `fit_images` be at least 1, got {alpha} and {fit_images}. The papers "
            "have 0.1 and 100."
        )
    PoolTraining(nn.Identity() if distil else None, distil, tau)  # refuses before anything is trained
    official: list[Sequence[str]] = [POINTS, *[("end",)] * (len(instances) - 1)]
    chosen = [list(one) for one in (official if points is None else points)]
    if len(chosen) != len(instances):
        raise ArgumentError(f"train_learngene_pool: `points` needs one list for each of the {len(instances)} instances, got {len(chosen)}.")
    held_out = data.test if len(data.test) else data.val
    if not len(held_out):
        raise ArgumentError(
            "train_learngene_pool: there are no test and no validation images to measure on. Open the data with test_fraction=0.2."
        )
    seen = data.preprocessing
    shape: dict[str, Any] = {"num_classes": len(data.classes), "in_chans": seen.channels, "input_size": seen.input_size}
    with own_randomness():
        students: list[nn.Module] = []
        for i, one in enumerate(instances):
            seed_all(seed, 1, i)
            students.append(one if isinstance(one, nn.Module) else named_network(one, shape))
        seed_all(seed, 2)
        pool = LearngenePool(students, pairs, window, stride)
    for student, own in zip(students, chosen):  # what does not fit is said before anything is trained
        check_kinship(student, model, own)
    mapped = [pair for pair in pool.pairs if len({pool.tokens[i].width for i in pair}) > 1]
    if init in ("distilled", "pseudo_inverse") and mapped and not instance_epochs:
        raise ArgumentError(
            f'train_learngene_pool: init="{init}" needs the maps that instances learn while they are distilled, and `instance_epochs` is '
            '0. Take init="least_squares", or distil.'
        )
    pool.classes, pool.preprocessing = data.classes, seen  # type: ignore[assignment]
    finished = stages(run_dir)
    common: dict[str, Any] = {
        "batch_size": batch_size, "optimizer": optimizer, "weight_decay": weight_decay, "schedule": schedule, "ema": ema, "views": views,
        "seed": seed, "progress": progress,
    }  # fmt: skip

    def settings(name: str, epochs: float, rate: float = lr) -> dict[str, Any]:
        warmup = min(warmup_epochs, epochs / 10)
        return {**common, "epochs": epochs, "lr": rate, "warmup_epochs": warmup, "run_dir": finished.folder(name)}

    def supervised(name: str, network: nn.Module, epochs: float) -> dict[str, Any]:
        if epochs:
            network = fit(network, Supervised(), data, **settings(name, epochs)).model
        return {"weights": dict(network.state_dict()), "numbers": evaluate(network, held_out)}

    def instance(i: int, teacher: nn.Module) -> dict[str, Any]:
        student, maps = students[i], dict[str, list[Tensor]]()
        if instance_epochs:
            student, maps = distil_instance(
                teacher, student, data, points=chosen[i], alpha=alpha, tau=tau, **settings(f"instance-{i}", instance_epochs)
            )
        return {"weights": dict(student.state_dict()), "maps": maps, "numbers": evaluate(student, held_out)}

    def pooled(teacher: nn.Module, maps: dict[int, list[Tensor]]) -> dict[str, Any]:
        some = range(0, len(data.train), max(1, len(data.train) // fit_images))[:fit_images]
        device = next(pool.parameters()).device
        batch = seen.normalize(seen.centre(data.train.images(some))).to(device) if init == "least_squares" else None
        with own_randomness():
            seed_all(seed, 3)
            pool.init_stitches(init, maps, batch)
        if pool_epochs:
            objective = PoolTraining(teacher if distil else None, distil, tau, seed)
            fit(pool, objective, data, **settings("pool", pool_epochs, lr if lr_pool is None else lr_pool))
        return {"weights": dict(pool.state_dict()), "table": measure_pool(pool, held_out)}

    numbers: dict[str, dict[str, float]] = {}
    done = finished("ancestry", supervised, "ancestry", model, ancestry_epochs)
    model.load_state_dict(done["weights"])
    numbers["ancestry"] = done["numbers"]
    teacher = copy.deepcopy(model).eval()  # is frozen, and the user's stays as it is
    maps: dict[int, list[Tensor]] = {}
    for i, student in enumerate(students):
        done = finished(f"instance-{i}", instance, i, teacher)
        student.load_state_dict(done["weights"])
        numbers[f"instance {i}"] = done["numbers"]
        if done["maps"]:
            maps[i] = done["maps"]["block"]
    pool.to(next(model.parameters()).device)
    done = finished("pool", pooled, teacher, maps)
    pool.load_state_dict(done["weights"])
    pool.table = done["table"]
    pool.eval()
    if run_dir is not None:
        save_pool(pool, Path(run_dir) / "pool.safetensors")
        for config in pool.configs if ordinary else ():
            save_network(pool.build(config), data, Path(run_dir) / "ordinary" / str(config))
    epochs = instance_epochs + pool_epochs if twin_epochs is None else twin_epochs
    table = {name: dict(row) for name, row in pool.table.items()}
    for i, config in enumerate(_twins(pool, twins)):
        with own_randomness():
            seed_all(seed, 4, i)
            twin = untrained(pool.build(config))
        table[str(config)]["twin"] = finished(f"twin-{config}", supervised, f"twin-{config}", twin, epochs)["numbers"]["top1"]
    spent = {"ancestry": ancestry_epochs, "instances": instance_epochs, "pool": pool_epochs, "twin": epochs}
    numbers |= table
    numbers["cost"] = _costs(pool, model, len(data.train), spent, chosen, distil > 0, _twins(pool, twins))
    return numbers


def _twins(pool: LearngenePool, twins: str | None) -> list[Configuration]:
    """List the configurations that have a twin."""
    if twins == "ends":
        return list(dict.fromkeys(find(pool.configs, key=pool.num_params) for find in (min, max)))
    return list(pool.configs) if twins == "all" else []


def _costs(
    pool: LearngenePool,
    ancestry: nn.Module,
    images: int,
    epochs: Mapping[str, float],
    points: Sequence[Sequence[str]],
    taught: bool,
    twins: Sequence[Configuration],
) -> dict[str, float]:
    """Count the multiply-adds of training, of a measured pool: a step costs three forward passes, and the ancestry's answers one."""
    channels, height, width = pool.tokens[0].shape
    asked = count_macs(ancestry, (height, width), in_chans=channels)
    wide, number = tokens_of(ancestry).width, pool.tokens[0].number
    each = {config: pool.table[str(config)]["macs"] for config in pool.configs}
    distilled = 0.0
    for network, tokens, own in zip(pool.instances, pool.tokens, points):
        learned = len(KINDS) * len(own) * number * wide * tokens.width
        distilled += PASSES * (count_macs(network, (height, width), in_chans=channels) + learned) + asked
    joint = PASSES * sum(each.values()) / len(each) + asked * taught
    costs = {
        "ancestry": PASSES * asked * images * epochs["ancestry"],
        "instances": distilled * images * epochs["instances"],
        "pool": joint * images * epochs["pool"],
    }
    scratch = PASSES * images * epochs["twin"]
    more = {"twins": scratch * sum(each[config] for config in twins), "from_scratch": scratch * sum(each.values())}
    return {name: float(round(value)) for name, value in {**costs, "total": sum(costs.values()), **more}.items()}
