"""`retinue reinforce build|train|inspect STORE`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from retinue.cli.parser import Parser

if TYPE_CHECKING:
    from retinue.distill.reinforcement_store import ReinforcementStore

ACTIONS = ("build", "train", "inspect")


def arguments(parser: Parser) -> None:
    """Take what to do with which store, and every argument of the builder, the data set, `retinue.fit` and `retinue.data.open`."""
    import retinue
    from retinue.distill.dataset_reinforcement import ReinforcedDataset, ReinforcementBuilder

    parser.add_argument("action", type=str, help="build a store, train on one, or inspect one")
    parser.add_argument("store", type=str, help="the store's folder")
    parser.add_argument("--data", type=str, default=None, help="the images (default: those of the first teacher's run, or of the store)")
    parser.add_argument("--teachers", type=list[str], default=[], help="build: folders of runs, or networks with published weights")
    parser.add_argument("--model", type=str, default="timm:resnet18", help="train: a network; its options: --model.KEY")
    parser.add_argument("--run_dir", type=str, default=None, help="train: the run's folder (default: runs/STORE-MODEL)")
    parser.add_argument("--corruptions", action="store_true", help="train: measure the model on corrupted test images too")
    parser.add_argument("--image", type=int, default=0, help="inspect: number of the image whose records are shown")
    parser.add_argument("--teacher_batch_size", type=int, default=256, help="build: augmented images that the teachers see at a time")
    parser.block("model")
    parser.options_of(ReinforcementBuilder, skip=["dataset", "teachers", "batch_size", "seed"])
    parser.options_of(ReinforcedDataset, skip=["dataset", "stores", "views"])
    parser.options_of(retinue.fit, skip=["model", "objective", "data", "run_dir"])
    parser.options_of(retinue.data.open, skip=["source"])


def run(options: Namespace) -> None:
    """Build, train or inspect."""
    from retinue.errors import unknown

    if options.action not in ACTIONS:
        raise unknown("retinue reinforce", "action", options.action, ACTIONS)
    {"build": _build, "train": _train, "inspect": _inspect}[options.action](options)


def _build(options: Namespace) -> None:
    from pathlib import Path

    import retinue
    from retinue.distill.dataset_reinforcement import ReinforcementBuilder
    from retinue.engine import reopen
    from retinue.errors import ArgumentError

    if not options.teachers:
        raise ArgumentError("retinue reinforce build: --teachers must be given: folders of runs, such as --teachers [runs/a,runs/b].")
    if options.data is not None:
        data = retinue.data.open(options.data, **_chosen(options, retinue.data.open))
    elif (Path(options.teachers[0]) / "config.json").is_file():
        data = reopen(options.teachers[0])
    else:
        raise ArgumentError("retinue reinforce build: --data must be given, as the first teacher is no run whose data could be taken.")
    chosen = {name: getattr(options, name) for name in ("recipe", "num_samples", "topk", "seed", "dtype", "shard_images", "device")}
    builder = ReinforcementBuilder(data, options.teachers, batch_size=options.teacher_batch_size, **chosen)
    store = builder.build(options.store, tell=print)
    print(_size(store))


def _train(options: Namespace) -> None:
    import json
    from pathlib import Path

    import retinue
    from retinue.distill.dataset_reinforcement import Reinforced, ReinforcedDataset
    from retinue.distill.reinforcement_store import ReinforcementStore, reopen_data
    from retinue.engine.checkpoint import write_whole
    from retinue.engine.robustness import corruption_robustness
    from retinue.engine.seeds import seed_all
    from retinue.report import report

    store = ReinforcementStore(options.store)
    data = reopen_data(store) if options.data is None else retinue.data.open(options.data, **_chosen(options, retinue.data.open))
    plus = ReinforcedDataset(data, store, options.p, options.densify, options.views)
    seen = data.preprocessing
    seed_all(options.seed)
    shape = {"num_classes": len(data.classes), "in_chans": seen.channels, "input_size": seen.input_size}
    model = retinue.create_model(options.model, **{**shape, **options.model_arguments})
    folder = Path(options.run_dir or f"runs/{Path(options.store).name}-{options.model.replace(':', '-')}")
    given = {name: value for name, value in _chosen(options, retinue.fit).items() if name not in ("model", "data", "run_dir", "views")}
    trained = retinue.fit(model, Reinforced(plus), plus.data, run_dir=folder, **given)
    numbers = {"test": retinue.evaluate(trained.model, data.test)}
    if options.corruptions:
        table = corruption_robustness(trained.model, data.test)
        numbers |= {f"corrupted, {name}": {key: row[key] for key in numbers["test"]} for name, row in table.items() if name != "clean"}
        write_whole(folder / "corruptions.json", (json.dumps(table, indent=1) + "\n").encode())
    write_whole(folder / "test.json", (json.dumps(numbers["test"], indent=1) + "\n").encode())
    for name, row in numbers.items():
        print(f"{name}: " + "  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    print(f"report: {report(folder)}")


def _inspect(options: Namespace) -> None:
    from pathlib import Path

    import torch

    import retinue
    from retinue.distill.reinforcement_builder import replayed
    from retinue.distill.reinforcement_store import ReinforcementStore, reopen_data
    from retinue.errors import ArgumentError, DataError
    from retinue.plots import gallery

    store = ReinforcementStore(options.store)
    if not 0 <= options.image < store.images:
        raise ArgumentError(f"retinue reinforce inspect: `image` must lie between 0 and {store.images - 1}, got {options.image}.")
    print(_size(store))
    augmentation = store.settings["augmentation"]
    print(f"augmentation: {augmentation.get('views') or augmentation['arguments']}")
    for teacher in store.settings.get("teachers", []):
        print(f"teacher: {teacher['name']}, weights {teacher['sha256'][:12]}")
    samples = torch.arange(min(store.samples, 16))
    indices = torch.full_like(samples, options.image)
    packed, values, ids = store.rows(indices, samples)
    named = [
        "\n".join(f"{store.classes[c]} {p:.2f}" for p, c in zip(row[:3], some[:3])) for row, some in zip(values.tolist(), ids.tolist())
    ]
    for sample, row in enumerate(named):
        print(f"record {sample}: {', '.join(row.splitlines())}")
    try:
        data = reopen_data(store) if options.data is None else retinue.data.open(options.data, **_chosen(options, retinue.data.open))
    except DataError as error:
        print(f"no picture: {error}")
        return
    store.check_data(data.train)
    shown = replayed(data.train, store.augmentation, data.train.images(indices), indices, packed)
    place = Path(options.store) / f"image-{options.image}.png"
    gallery(list(shown), named, title=data.train.name(options.image)).savefig(place, dpi=110)
    print(f"picture: {place}")


def _chosen(options: Namespace, function: Callable[..., Any]) -> dict[str, Any]:
    """Return the options that a function takes, where they were given or have a default."""
    import inspect

    names = inspect.signature(function).parameters
    return {name: value for name, value in vars(options).items() if name in names and value is not None}


def _size(store: "ReinforcementStore") -> str:
    """Say how large a store is."""
    return (
        f"{store.folder}: {store.images} images, {store.samples} augmentations of each, {store.topk} of {len(store.classes)} classes kept; "
        f"{store.bytes / 1e6:.2f} MB, {store.bytes / store.images:.0f} bytes an image"
    )
