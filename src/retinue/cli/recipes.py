"""Recipes: arguments in YAML, bound to the signatures of the functions that they name before anything is computed."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from retinue import catalog
from retinue.cli.parser import Parser
from retinue.errors import ArgumentError, DataError, near_misses, unknown

if TYPE_CHECKING:
    from retinue.data import Data

SCALES = ("laptop", "paper")
GIVEN = ("model", "data", "run_dir", "progress")  # what a recipe's function is handed, if it asks for it
Block = dict[str, Any]


@dataclass
class Recipe:
    """The settings of one training: what is trained on what, and how.

    Attributes:
        source: where it comes from, for messages.
        model: {"name": ..., its own options}; classes, channels and size come from the data unless they are given here.
        data: {"name": ..., arguments of `retinue.data.open`}, or of the function that the name is, such as `retinue.pretrain.fractals`.
        objective: {"name": dotted name, its arguments}.
        fit: arguments of `retinue.fit`.
        procedure: {"name": dotted name of a function, its arguments}, instead of an objective and `fit`.
    """

    source: str
    data: Block
    model: Block = field(default_factory=dict)
    objective: Block = field(default_factory=lambda: {"name": "retinue.train.Supervised"})
    fit: Block = field(default_factory=dict)
    procedure: Block | None = None

    def blocks(self) -> dict[str, Block]:
        """Return what a YAML file of this recipe holds."""
        if self.procedure is not None:
            return {"procedure": self.procedure, **({"model": self.model} if self.model else {}), "data": self.data}
        return {"model": self.model, "objective": self.objective, "data": self.data, "fit": self.fit}


def load(name: str, scale: str = "laptop", changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        name: a system's slug, or the path of a YAML file such as the `recipe.yaml` of a run.
        scale: which of a system's recipes.
        changes: values by dotted key, such as {"fit.epochs": 3}, put in place of the file's.

    Raises:
        ArgumentError: if there is no such recipe, or a key cannot be.
        DataError: if the file is not the YAML of a recipe.
    """
    if name.endswith((".yaml", ".yml")):
        path, source = Path(name), name
        if not path.is_file():
            raise ArgumentError(f"run: there is no file {name}.")
    else:
        if scale not in SCALES:
            raise unknown("run", "scale", scale, SCALES)
        system = catalog.system(name)
        path, source = Path(str(files("retinue"))) / "recipes" / name / f"{scale}.yaml", f"{name}, {scale}"
        if not path.is_file():
            raise ArgumentError(f'run: "{name}" has no {scale} recipe; its state is "{system.state}". More: retinue show {name}')
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        blocks = {key: {"name": value} if isinstance(value, str) else dict(value) for key, value in dict(content).items()}
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a recipe: {error}.") from error
    for key, value in (changes or {}).items():
        block, _, entry = key.partition(".")
        if not entry:
            raise ArgumentError(f'run: "{key}" names no setting. Write BLOCK.NAME, such as fit.epochs; blocks are {", ".join(blocks)}.')
        if block not in blocks:
            raise unknown("run", "block", block, blocks)
        blocks[block][entry] = value
    return from_blocks(blocks, source)


def from_blocks(blocks: Mapping[str, Block], source: str) -> Recipe:
    """Build a recipe from the blocks of a YAML file.

    Raises:
        ArgumentError: if a block is unknown or missing, or lacks its name.
    """
    allowed = ("procedure", "model", "data") if "procedure" in blocks else ("model", "objective", "data", "fit")
    for block in blocks:
        if block not in allowed:
            raise unknown(f"recipe ({source})", "block", block, allowed)
    for block in ("data",) if "procedure" in blocks else ("model", "objective", "data"):
        if not isinstance(blocks.get(block, {}).get("name"), str):
            raise ArgumentError(f"recipe ({source}): the block `{block}` needs a `name`.")
    return Recipe(source=source, **blocks)


@dataclass
class Bound:
    """A recipe whose every name exists and whose every argument fits; nothing has been opened or built yet."""

    recipe: Recipe
    target: Callable[..., Any]
    target_arguments: Block
    data_arguments: Block
    fit_arguments: Block

    def open(self) -> "Data":
        """Open the data, or make it where its name is that of a function."""
        import retinue
        from retinue.data.named import maker

        made = maker(self.recipe.data["name"])
        return made(**self.data_arguments) if made else retinue.data.open(self.recipe.data["name"], **self.data_arguments)

    def build(self, data: "Data") -> Any:
        """Build the model for the data, from the seed of `fit`; None where the recipe names none."""
        import retinue
        from retinue.engine.seeds import seed_all

        if not self.recipe.model:
            return None
        size, channels = data.preprocessing.input_size, data.preprocessing.channels
        fitting = {"num_classes": len(data.classes), "in_chans": channels, "input_size": size}
        seed_all(self.fit_arguments.get("seed", 0))
        return retinue.create_model(**{**fitting, **self.recipe.model})

    def run(self, run_dir: str | Path, data: "Data | None" = None, progress: bool = True, model: Any = None) -> Any:
        """Train; the same call again goes on where a killed one stopped. Returns the run, or what the procedure returns."""
        import retinue

        data = data or self.open()
        given = {"model": model or self.build(data), "data": data, "run_dir": run_dir, "progress": progress}
        asked = {name: given[name] for name in GIVEN if name in inspect.signature(self.target).parameters}
        result = self.target(**asked, **self.target_arguments)
        if self.recipe.procedure is not None:
            return result
        arguments = {**self.fit_arguments, "run_dir": run_dir, "progress": progress}
        return retinue.fit(given["model"], result, data, **arguments)


def bind(recipe: Recipe) -> Bound:
    """Check a recipe against the signatures of what it names.

    Raises:
        ArgumentError: if a name does not exist, or an argument is unknown, missing or of the wrong type.
    """
    import torch

    import retinue
    from retinue.data.named import maker

    block = recipe.procedure or recipe.objective
    target = resolve(block["name"], recipe.source)
    data = _fitting(maker(recipe.data["name"]) or retinue.data.open, recipe.data, ("source",), recipe.source, "data")
    size = recipe.model.get("input_size", data.get("input_size"))
    if recipe.model:
        with torch.device("meta"):  # checks the network's own options, and costs neither time nor memory
            retinue.create_model(**{"num_classes": 10, "in_chans": 3, "input_size": size, **_unfetched(recipe.model)})
    fit = {} if recipe.procedure else _fitting(retinue.fit, recipe.fit, ("model", "objective", "data"), recipe.source, "fit")
    if isinstance(fit.get("views"), str):
        fit["views"] = retinue.views.parse(fit["views"])
    return Bound(recipe, target, _fitting(target, block, GIVEN, recipe.source, block["name"]), data, fit)


def _unfetched(block: Mapping[str, Any]) -> Block:
    """Return a network's options without those that fetch weights, also of a network within it."""
    return {
        name: False if name == "pretrained" else _unfetched(value) if isinstance(value, Mapping) else value for name, value in block.items()
    }


def normalisation_of(model: str, data: Block) -> Block:
    """Return mean and std (and the size, where the data names none) of a network's published weights, as arguments of `data.open`."""
    import torch

    import retinue

    with torch.device("meta"):
        network = retinue.create_model(model)
    cfg: Any = network.pretrained_cfg
    size = {} if "input_size" in data else {"input_size": tuple(cfg["input_size"][-2:])}
    return {"mean": tuple(cfg["mean"]), "std": tuple(cfg["std"]), "channels": 3, **size}


def resolve(name: str, source: str = "") -> Callable[..., Any]:
    """Find a class or function of retinue or of your own by its dotted name; a bare name is looked for in `retinue.train`.

    Raises:
        ArgumentError: if there is none; the near misses are named.
    """
    where = f"recipe ({source})" if source else "train"
    dotted = name if "." in name else f"retinue.train.{name}"
    package, _, last = dotted.rpartition(".")
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise ArgumentError(
            f'{where}: "{dotted}" cannot be imported: {error}. Write it as retinue.ROOM.NAME or your_module.NAME.'
        ) from error
    found = getattr(module, last, None)
    if callable(found):
        return found
    close = near_misses(last, [public for public in dir(module) if public[0] != "_" and callable(getattr(module, public))])
    told = f" Did you mean {', '.join(close)}?" if close else ""
    raise ArgumentError(f'{where}: {package} has no class or function "{last}".{told}')


def _fitting(function: Callable[..., Any], block: Block, skip: tuple[str, ...], source: str, where: str) -> Block:
    """Check the arguments of a block by name and type against a signature, and return them as the function wants them."""
    arguments = {name: value for name, value in block.items() if name != "name"}
    parameters = inspect.signature(function).parameters
    for name in arguments:
        if name not in parameters and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            raise unknown(f"recipe ({source})", f"argument of {where}", name, [one for one in parameters if one not in skip])
    for name, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if needed and name not in {*arguments, *skip}:
            raise ArgumentError(f"recipe ({source}): {where} needs the argument `{name}`.")
    parser = Parser(f"recipe ({source}), {where}")
    parser.options_of(function, skip=[name for name in parameters if name not in arguments])
    return {**arguments, **parser.read_values({name: value for name, value in arguments.items() if name in parameters})}
