"""Pictures of why, written beside a run: heat maps over image files, the prototypes that they are like, images that fool the model."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import torch
from jaxtyping import UInt8
from matplotlib.figure import Figure
from torch import Tensor, nn

from retinue.engine import read_images
from retinue.engine.prediction import probabilities
from retinue.errors import ArgumentError, CheckpointError, unknown
from retinue.explain import fooling_pictures, prototype_pictures, st_protopnet_pictures
from retinue.explain.fooling import SEARCHES, fool
from retinue.explain.grad_cam import Variant, heat_maps
from retinue.models.prob_psenn_network import ProbPSENN
from retinue.models.protopnet import ProtoPNet
from retinue.models.prototype_network import PrototypeClassifier
from retinue.plots.overlays import explained

HEAT_MAPS = get_args(Variant)
FOOLING = tuple(f"fool-{encoding}" for encoding in SEARCHES)
METHODS = (*HEAT_MAPS, "prototypes", *FOOLING)
TOGETHER = 64  # images in the picture of all of them


def explain_files(
    model: nn.Module,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    method: str | None = None,
    layer: str | None = None,
    target: str | int | None = None,
    batch_size: int = 16,
    on_bad: str = "raise",
    generations: int | None = None,
    seed: int = 0,
) -> list[Path]:
    """Write one picture for each image file, and one of everything.

    Args:
        model: from `retinue.load`.
        paths: image files; none for a search of images that fool the model.
        out: a folder, made if need be.
        method: a variant of `GradCAM`, a heat map beside each image; "prototypes", for networks that have some: what each image is like;
            or "fool-direct", "fool-cppn" or "fool-gradient": for each class an image of nothing of which the model is certain. None
            takes "prototypes" where the network has some, and "gradcam" else.
        layer: for heat maps, the layer to look at; None finds the last one with a map.
        target: for heat maps and fooling images, the class, by name or number; None takes the predicted one, and all.
        batch_size: images at a time.
        on_bad: "raise" lists all files that cannot be read, "skip" leaves them out.
        generations: of the search for fooling images; None takes the paper's, 200 (of gradient ascent, 300 steps). One that was stopped
            goes on.
        seed: of the search.

    Returns:
        The pictures written, the one of everything last.

    Raises:
        ArgumentError: if there is no such method or class, an argument does not go with the method, or the model is not one of
            `retinue.load`.
        DataError: if files cannot be read.
        CheckpointError: if the pictures cannot be written.
    """
    of_run: Any = model
    method = method or method_for(model)
    if method not in METHODS:
        raise unknown("explain", "method", method, METHODS)
    if not hasattr(of_run, "preprocessing") or not hasattr(of_run, "classes"):
        raise ArgumentError("explain: the model must know its classes and preprocessing. Take it from retinue.load(run_dir).")
    _check_given(method, paths, layer=layer, target=target, generations=generations)
    number = None if target is None else class_number(str(target), of_run.classes)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if method in FOOLING:
            drawn = _fooling(of_run, method, number, generations, seed, batch_size, folder)
        else:
            images, good = read_images(paths, of_run.preprocessing, on_bad)
            names = [path.name for path in good]
            if method == "prototypes":
                drawn = _like(of_run, images, names)
            else:
                drawn = _heat(of_run, images, names, method, layer, number, batch_size)
        return [save(figure, folder / f"{name}.png") for name, figure in drawn]
    except OSError as error:
        raise CheckpointError(f"explain: {folder} cannot be written: {error.strerror}. Choose another folder by --out.") from error


def method_for(model: nn.Module) -> str:
    """Choose how to explain a network: by its prototypes where it has some, by heat maps else."""
    return "gradcam" if _prototypes(model) is None else "prototypes"


def _check_given(method: str, paths: Sequence[str | Path], **given: Any) -> None:
    fits = {"layer": HEAT_MAPS, "target": (*HEAT_MAPS, *FOOLING), "generations": FOOLING}
    for name, value in given.items():
        if value is not None and method not in fits[name]:
            raise ArgumentError(
                f'explain: `{name}` does not go with the method "{method}", only with {", ".join(fits[name])}. Leave it out.'
            )
    if method in FOOLING and paths:
        raise ArgumentError(f'explain: "{method}" makes its own images, got {len(paths)} files. Leave them out.')
    if method not in FOOLING and not paths:
        raise ArgumentError(f'explain: "{method}" explains images, and there are none. Name files or folders.')


def _heat(
    model: Any, images: UInt8[Tensor, "n c h w"], names: list[str], variant: str, layer: str | None, target: int | None, batch_size: int
) -> Iterator[tuple[str, Figure]]:
    maps, captions = [], []
    device = next(model.parameters()).device
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        shares = probabilities(model, part, batch_size)
        told = shares.argmax(-1) if target is None else torch.full((len(part),), target)
        x = model.preprocessing.normalize(part.to(device))
        heat = heat_maps(model, x, told.tolist(), layer=layer, variant=variant).cpu()  # type: ignore[arg-type]
        maps.append(heat)
        for i, name in enumerate(names[start : start + batch_size]):
            captions.append(f"{name}\n{model.classes[told[i]]}: {100 * shares[i, told[i]]:.1f} %")
            yield _numbered(start + i, name), explained(part[i : i + 1], heat[i : i + 1], captions[-1:])
    yield "all", explained(images[:TOGETHER], torch.cat(maps)[:TOGETHER], captions[:TOGETHER])


def _prototypes(model: nn.Module) -> ModuleType | None:
    """Find the pictures of a network with prototypes."""
    if isinstance(model, PrototypeClassifier | ProbPSENN):
        return prototype_pictures
    return st_protopnet_pictures if isinstance(model, ProtoPNet) else None


def _like(model: nn.Module, images: UInt8[Tensor, "n c h w"], names: list[str]) -> Iterator[tuple[str, Figure]]:
    pictures = _prototypes(model)
    if pictures is None:
        raise ArgumentError(f"explain: a {type(model).__name__} has no prototypes. Train a network that has: retinue run prototype-dl.")
    for i, (name, figure) in enumerate(pictures.figures(model, images, names)):
        yield _numbered(i, name), figure
    yield "all", pictures.gallery(model)


def _fooling(
    model: Any, method: str, target: int | None, generations: int | None, seed: int, batch_size: int, folder: Path
) -> Iterator[tuple[str, Figure]]:
    encoding: Any = method.removeprefix("fool-")
    found = fool(
        model, encoding=encoding, classes=None if target is None else [target], generations=generations, seed=seed,
        batch_size=max(batch_size, 64), run_dir=folder / "search",
    )  # fmt: skip
    yield "history", fooling_pictures.history(found)
    yield "all", fooling_pictures.gallery(found, model.classes)


def _numbered(number: int, name: str) -> str:
    return f"{number:04}-{Path(name).stem}"


def class_number(word: str, classes: Sequence[str]) -> int:
    """Find a class by its name, or by its number where no class has such a name.

    Raises:
        ArgumentError: if there is none; near misses are named.

    >>> class_number("dog", ["cat", "dog"]), class_number("0", ["cat", "dog"])
    (1, 0)
    """
    if word in classes:
        return list(classes).index(word)
    if word.isdigit() and int(word) < len(classes):
        return int(word)
    raise unknown("explain", "class", word, classes)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, and return the path."""
    figure.savefig(path, dpi=110)
    return path
