"""Laws that every system obeys, on four kinds of backbone; an exception is a field of the catalogue, with its reason.

A system comes in by being called ready in the catalogue: its objective and arguments are those of its laptop recipe.
"""

import inspect
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support import same
from torch import nn

import retinue
from retinue import catalog
from retinue.cli import recipes
from retinue.data import Batch, Data
from retinue.data.named import maker
from retinue.engine import Objective, checkpoint
from retinue.engine.modes import train_mode
from retinue.engine.seeds import seed_all
from retinue.errors import ArgumentError
from retinue.models import adapt
from retinue.models.tiny import KINDS, tiny

READY = [one for one in catalog.systems() if one.state == "ready"]
SCALES = [(one.slug, scale) for one in READY for scale in recipes.SCALES]
LAWS = ("finite loss", "own parameters", "resume", "same seed", "same keys", "frozen probe", "wrong arguments")


class Stop(BaseException):
    """Ends a training as a kill does: nothing that comes after it is done."""


@cache
def data() -> Data:
    """A few digits as small colour images."""
    return retinue.data.open("digits", input_size=32, channels=3, train_images=160, test_images=20)


def backbone(kind: Any) -> nn.Module:
    torch.manual_seed(0)
    return adapt(tiny(kind), input_size=32)


def objective_of(slug: str, model: nn.Module) -> Objective:
    """Build the objective of a laptop recipe around a backbone."""
    block = recipes.load(slug).objective
    target = recipes.resolve(block["name"])
    given = {"model": model, "data": data()}
    torch.manual_seed(1)
    asked = {name: given[name] for name in inspect.signature(target).parameters if name in given}
    return target(**asked, **{name: value for name, value in block.items() if name != "name"})


def with_objective(law: str) -> list[Any]:
    """List the systems trained by an objective that obey a law, each with each kind of backbone."""
    assert law in LAWS
    slugs = [one.slug for one in READY if recipes.load(one.slug).procedure is None and law not in one.exceptions]
    return [pytest.param(slug, kind, id=f"{slug}-{kind}") for slug in slugs for kind in KINDS]


def a_batch(objective: Objective) -> Batch:
    return next(iter(data().train.loader(8, shuffle=True, views=objective.views).batches()))


def train(slug: str, kind: str, run_dir: Path | None = None, stop_at: int = -1, **changes: Any) -> retinue.engine.Run:
    model = backbone(kind)
    objective = objective_of(slug, model)
    follow = objective.after_step

    def after_step(model: nn.Module, step: int) -> None:
        follow(model, step)
        if step == stop_at:
            raise Stop

    objective.after_step = after_step  # type: ignore[method-assign]
    settings: dict[str, Any] = {
        "max_steps": 5,
        "batch_size": 8,
        "log_every": 1,
        "checkpoint_every": 2,
        "loggers": ("csv",),
        "progress": False,
    }
    return retinue.fit(model, objective, data(), run_dir=run_dir, **{**settings, **changes})


def test_exceptions_name_laws_that_exist() -> None:
    for one in catalog.systems():
        for law, reason in one.exceptions.items():
            assert law in LAWS, one.slug
            assert reason


@pytest.mark.parametrize(("slug", "kind"), with_objective("finite loss"))
def test_the_loss_is_a_finite_scalar(slug: str, kind: str) -> None:
    model = backbone(kind)
    objective = objective_of(slug, model)
    model = objective.prepare(model, data())
    train_mode(model)
    seed_all(0)
    for player, numbers in objective.losses(model, a_batch(objective), 0):
        assert player in objective.players(model)
        assert numbers["loss"].shape == ()
        assert torch.isfinite(numbers["loss"])
        assert numbers["loss"].requires_grad
        assert all(value.ndim == 0 for value in numbers.values())


@pytest.mark.parametrize(("slug", "kind"), with_objective("own parameters"))
def test_a_step_moves_its_players_parameters_and_no_others(slug: str, kind: str) -> None:
    model = backbone(kind)
    objective = objective_of(slug, model)
    model = objective.prepare(model, data())
    players = objective.players(model)
    before = {id(p): p.detach().clone() for p in (*model.parameters(), *objective.parameters())}
    owned = {id(p) for parameters in players.values() for p in parameters}
    retinue.fit(model, objective, data(), max_steps=1, batch_size=8, lr=0.01, schedule="constant", progress=False)
    for parameter in (*model.parameters(), *objective.parameters()):
        moved = not torch.equal(parameter, before[id(parameter)])
        assert not moved or id(parameter) in owned
    assert all(any(not torch.equal(p, before[id(p)]) for p in parameters) for parameters in players.values())


@pytest.mark.parametrize(("slug", "kind"), with_objective("resume"))
def test_stopped_and_resumed_is_uninterrupted_bit_for_bit(slug: str, kind: str, tmp_path: Path) -> None:
    train(slug, kind, tmp_path / "whole")
    with pytest.raises(Stop):
        train(slug, kind, tmp_path / "stopped", stop_at=3)
    train(slug, kind, tmp_path / "stopped")
    whole, stopped = (checkpoint.read(tmp_path / name / "checkpoints" / "step-000000005") for name in ("whole", "stopped"))
    assert same(whole.tensors, stopped.tensors)
    assert whole.training is not None
    assert stopped.training is not None
    assert same({**whole.training, "seconds": 0}, {**stopped.training, "seconds": 0})
    assert (tmp_path / "whole" / "metrics.csv").read_bytes() == (tmp_path / "stopped" / "metrics.csv").read_bytes()


@pytest.mark.parametrize(("slug", "kind"), with_objective("same seed"))
def test_the_same_seed_gives_the_same_losses_and_another_seed_others(slug: str, kind: str) -> None:
    def losses(seed: int) -> list[float]:
        return [value for row in train(slug, kind, max_steps=3, seed=seed).history for name, value in row.items() if name.endswith("loss")]

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


@pytest.mark.parametrize(("slug", "kind"), with_objective("same keys"))
def test_the_models_keys_are_unchanged(slug: str, kind: str) -> None:
    before = list(backbone(kind).state_dict())
    run = train(slug, kind, max_steps=2)
    assert list(run.model.state_dict()) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in run.model.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_frozen_backbone_changes_in_a_probe(kind: str) -> None:
    model = backbone(kind)
    model.requires_grad_(False)
    head: nn.Module = model.get_classifier()  # type: ignore[operator]
    head.requires_grad_(True)
    learns = {id(tensor) for tensor in head.state_dict(keep_vars=True).values()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    retinue.fit(model, retinue.train.Supervised(), data(), max_steps=3, batch_size=8, progress=False)
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert torch.equal(tensor, before[name]) != (id(tensor) in learns), name


@pytest.mark.parametrize(("slug", "scale"), SCALES)
def test_recipes_bind_to_signatures(slug: str, scale: str) -> None:
    bound = recipes.bind(recipes.load(slug, scale))
    assert bound.recipe.blocks()


@pytest.mark.parametrize(("slug", "scale"), SCALES)
def test_wrong_arguments_are_refused_by_name(slug: str, scale: str) -> None:
    recipe = recipes.load(slug, scale)
    for block in recipe.blocks():
        with pytest.raises(ArgumentError, match="such_an_argument_does_not_exist"):
            recipes.bind(recipes.load(slug, scale, {f"{block}.such_an_argument_does_not_exist": 1}))


@pytest.mark.parametrize("slug", [one.slug for one in READY])
def test_the_laptop_recipe_starts(slug: str, tmp_path: Path) -> None:
    recipe = recipes.load(slug)
    if recipe.procedure is None:
        changes = {"fit.epochs": None, "fit.max_steps": 2, "fit.batch_size": 8, "data.train_images": 160, "data.test_images": 30}
        if recipe.data["name"] != "digits" and not maker(recipe.data["name"]):  # the recipe's own set need not be on this machine
            changes |= {"data.name": "digits", "data.channels": 3}
        run = recipes.bind(recipes.load(slug, changes=changes)).run(tmp_path, progress=False)
        assert run.steps == 2
