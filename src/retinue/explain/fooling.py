"""Fooling images: pictures of nothing of which a classifier is certain (Nguyen, Yosinski and Clune 2015, arXiv 1412.1897).

`fool` searches one for every class, by evolution of pixels ("direct") or of graphs that paint ("cppn"), which asks the classifier for
nothing but its outputs, or by following its gradient ("gradient").
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from retinue.data import Preprocessing
from retinue.engine import checkpoint
from retinue.engine.seeds import mix
from retinue.errors import ArgumentError, CheckpointError, ShapeError, unknown
from retinue.explain.fooling_ascent import Ascent
from retinue.explain.fooling_cppn import CPPN, CPPNEncoding
from retinue.explain.fooling_encodings import DirectEncoding, Encoding
from retinue.explain.fooling_judge import Judge, Outputs, image_shape

__all__ = ["CPPN", "Ascent", "CPPNEncoding", "DirectEncoding", "Encoding", "FoolingResult", "Judge", "MapElites", "fool"]

SEARCHES: dict[str, Callable[..., Any]] = {"direct": DirectEncoding, "cppn": CPPNEncoding, "gradient": Ascent}
Array = NDArray[Any]


@dataclass
class FoolingResult:
    """The best image of each class that a search found.

    Attributes:
        images: with values in [0, 1].
        confidence: probability of its class that the classifier gives each.
        log_odds: log p / (1 - p), which goes on where p rounds to 1.
        history: confidence after each generation (of each step of gradient ascent); the first row is the start.
        classes: the class of each image.
        genomes: what the images are painted from; the images themselves for gradient ascent.
        steps: for "top1", "0.99", "0.999" and "0.9999", the first row of `history` in which a class is the most probable one (for gradient
            ascent), or has more than this confidence; -1 where it never did.
    """

    images: Float[Tensor, "classes channels height width"]
    confidence: Float[Tensor, " classes"]
    log_odds: Float[Tensor, " classes"]
    history: Float[Tensor, "rows classes"]
    classes: list[int]
    genomes: list[Any] = field(repr=False)
    steps: dict[str, Int[Tensor, " classes"]] = field(repr=False)

    @property
    def median(self) -> float:
        """Median confidence of the classes, the paper's measure."""
        return float(np.median(self.confidence.numpy()))


class MapElites:
    """Evolution with one cell a class, in which the individual lives of which the classifier is surest (section 2.2 of the paper).

    What is drawn in a generation depends on the seed and the generation alone, so a search that was saved goes on as if it never stopped.

    Args:
        encoding: how genomes are drawn, bred and rendered.
        evaluate: gives a number for each image and cell, the higher the better.
        population: individuals drawn at the start, and children of a generation; an even number.
        seed: of all draws.

    Raises:
        ArgumentError: if the population is odd or below 2.
    """

    def __init__(
        self,
        encoding: Encoding,
        evaluate: Callable[[Float[Tensor, "count channels height width"]], Float[Tensor, "count cells"]],
        population: int = 200,
        seed: int = 0,
    ) -> None:
        if population < 2 or population % 2:
            raise ArgumentError(f"fool: `population` must be an even number of at least 2, got {population}. Parents come in pairs.")
        self.encoding, self.evaluate, self.population, self.seed = encoding, evaluate, population, seed
        self.generation = -1  # nothing was drawn yet
        self.genomes: list[Any] = []
        self.fitness = torch.zeros(0, dtype=torch.float64)
        self.history: list[Tensor] = []

    def step(self) -> None:
        """Draw the first individuals, or breed a generation; evaluate all at once, and let each cell keep its best.

        A newcomer takes a cell only if it is strictly better, and may take many.
        """
        rng = np.random.default_rng(mix(self.seed, self.generation + 1))
        if self.generation < 0:
            born = self.encoding.random(self.population, rng)
        else:
            parents = rng.integers(len(self.genomes), size=(self.population // 2, 2))  # every cell is occupied after the start
            pairs = [(self.genomes[a], self.genomes[b]) for a, b in parents]
            born = self.encoding.children(pairs, rng, self.generation)
        value, best = self.evaluate(self.encoding.render(born)).double().max(0)
        if self.generation < 0:
            self.genomes = [born[i] for i in best.tolist()]
            self.fitness = value
        else:
            better = value > self.fitness
            for cell in better.nonzero()[:, 0].tolist():
                self.genomes[cell] = born[int(best[cell])]
            self.fitness = torch.where(better, value, self.fitness)
        self.generation += 1
        self.history.append(self.fitness)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and JSON values that `restore` understands."""
        tensors, values = self.encoding.pack(self.genomes)
        return {**tensors, "history": torch.stack(self.history)}, {"genomes": values}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.genomes = self.encoding.unpack(tensors, facts["genomes"])
        self.history = list(tensors["history"])
        self.fitness, self.generation = self.history[-1], len(self.history) - 1


def fool(
    model: Callable[[Tensor], Tensor],
    encoding: Literal["direct", "cppn", "gradient"] = "direct",
    *,
    classes: Sequence[int] | None = None,
    image_shape: tuple[int, int, int] | None = None,
    generations: int | None = None,
    population: int = 200,
    seed: int = 0,
    batch_size: int = 256,
    outputs: Outputs = "logits",
    preprocessing: Preprocessing | None = None,
    run_dir: str | Path | None = None,
    save_every: int = 10,
    **options: Any,
) -> FoolingResult:
    """Search an image for every class of which a classifier is as sure as can be.

    Args:
        model: any classifier; a network is asked in evaluation mode and left as it was. With "gradient" it must be differentiable.
        encoding: "direct" (looks like noise), "cppn" (looks like patterns) or "gradient".
        classes: those to search for; None takes all.
        image_shape: channels, height and width; None takes the model's.
        generations: of evolution, or steps of ascent; None takes 200 and 300.
        population: individuals of a generation; an even number.
        seed: of everything random.
        batch_size: images that the model is asked about at a time.
        outputs: whether the model returns "logits" or "probabilities".
        preprocessing: as in `Judge`: how the model's images are normalised, where it does not say so itself.
        run_dir: the folder; a search that was stopped goes on from its last saved generation, to the same result bit for bit.
        save_every: generations between two savings.
        options: of the encoding: see `DirectEncoding`, `CPPNEncoding` and `Ascent`.

    Raises:
        ArgumentError: if an argument cannot be, or the outputs are not what `outputs` says.
        ShapeError: if the outputs are not one row for each image.
        NonFiniteError: if an output is not finite.
        CheckpointError: if `run_dir` holds another search.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    >>> found = fool(net, image_shape=(1, 8, 8), generations=5, population=20)
    >>> found.images.shape, found.history.shape
    (torch.Size([3, 1, 8, 8]), torch.Size([6, 3]))
    """
    if encoding not in SEARCHES:
        raise unknown("fool", "encoding", encoding, SEARCHES)
    count = generations if generations is not None else 300 if encoding == "gradient" else 200
    if count < 0 or save_every < 1:
        raise ArgumentError(f"fool: `generations` must be 0 or more and `save_every` at least 1, got {count} and {save_every}.")
    judge = Judge(model, outputs, preprocessing, batch_size)
    shape = image_shape if image_shape is not None else _shape_of(model, judge)
    own = [name for name in inspect.signature(SEARCHES[encoding]).parameters if name not in ("image_shape", "judge", "classes", "seed")]
    for name in options:
        if name not in own:
            raise unknown(f"fool ({encoding})", "option", name, own)
    wanted = _classes(judge, shape, classes)
    settings = {
        "encoding": encoding, "classes": wanted, "image_shape": list(shape), "seed": seed, "outputs": outputs, "options": options,
        "population": None if encoding == "gradient" else population, "model": _fingerprint(model),
        "normalisation": None if judge.normalisation is None else judge.normalisation.to_dict(),
    }  # fmt: skip
    search: Any
    if encoding == "gradient":
        search = Ascent(shape, judge, wanted, seed, **options)
    else:
        search = MapElites(SEARCHES[encoding](shape, **options), lambda images: judge(images)[:, wanted], population, seed)
    folder = None if run_dir is None else Path(run_dir)
    done = _restored(search, folder, settings, count)
    while search.generation < count:
        search.step()
        if folder is not None and (search.generation % save_every == 0 or search.generation == count) and search.generation > done:
            tensors, facts = search.state()
            checkpoint.save(folder / "state", tensors, {**facts, "settings": settings})
    return _result(search, wanted)


def _shape_of(model: Any, judge: Judge) -> tuple[int, int, int]:
    return image_shape(model, judge.normalisation)


def _classes(judge: Judge, shape: tuple[int, ...], classes: Sequence[int] | None) -> list[int]:
    """Ask the model about a grey image, to see how many classes it has and that it takes such images."""
    try:
        known = judge(torch.full((1, *shape), 0.5)).shape[1]
    except RuntimeError as error:
        raise ShapeError(
            f"fool: the model takes no images of shape {shape}: {' '.join(str(error).split())[:160]}. Give another `image_shape`."
        ) from error
    wanted = list(range(known)) if classes is None else [int(one) for one in classes]
    if not wanted or not all(0 <= one < known for one in wanted):
        raise ArgumentError(f"fool: `classes` must lie in 0 to {known - 1}, as the model has {known} classes, got {wanted}.")
    return wanted


def _fingerprint(model: Any) -> str:
    """Hash a network's tensors: a search belongs to the network it was begun on."""
    if not isinstance(model, nn.Module):
        return ""
    digest = hashlib.blake2b(digest_size=12)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _restored(search: Any, folder: Path | None, settings: dict[str, Any], count: int) -> int:
    """Take up what the folder holds; return its generation, or -1."""
    if folder is None:
        return -1
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.recover(folder)
    if not (folder / "state").exists():
        return -1
    found = checkpoint.read(folder / "state")
    asked, kept = json.loads(json.dumps(settings)), found.facts["settings"]
    for name, value in asked.items():
        if kept[name] != value:
            raise CheckpointError(
                f"fool: {folder} holds another search, whose {name} is {kept[name]!r} and not {value!r}. "
                "Give another `run_dir`, or delete it."
            )
    search.restore(found.tensors, found.facts)
    if search.generation > count:
        raise CheckpointError(
            f"fool: the search in {folder} is at generation {search.generation} already. "
            "Ask for as many generations, or give another `run_dir`."
        )
    return int(search.generation)


def _result(search: Any, classes: list[int]) -> FoolingResult:
    history = torch.stack(search.history).sigmoid()
    steps = {"top1": search.first_top} if isinstance(search, Ascent) else {}
    for limit in (0.99, 0.999, 0.9999):
        passed = history > limit
        steps[str(limit)] = torch.where(passed.any(0), passed.int().argmax(0), -1)
    images = search.best if isinstance(search, Ascent) else search.encoding.render(search.genomes)
    return FoolingResult(
        images=images,
        confidence=search.fitness.sigmoid(),
        log_odds=search.fitness,
        history=history,
        classes=classes,
        genomes=list(images) if isinstance(search, Ascent) else search.genomes,
        steps=steps,
    )
