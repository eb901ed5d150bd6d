"""ResNet-RS: the scaling rules, the recipe switch by switch, and pseudo-labels."""

import dataclasses
import inspect
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support import images
from torch import nn

import retinue
from retinue import views
from retinue.cli import recipes
from retinue.engine.optim import Schedule, make_optimizer
from retinue.errors import ArgumentError
from retinue.models import RSRecipe, count_macs, pseudo_label, resnet_rs, scaling_advisor, tiny
from retinue.models.resnet_rs_training import POINTS, scale, training_steps

STEPS, WARMUP = 109_475, 1563


def rates(settings: dict[str, Any], steps: int, warmup: int, *at: int) -> list[float]:
    """Ask the engine's schedule for learning rates, with an epoch as one update."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings["lr"])
    arguments = {**settings["schedule_args"], "num_epochs": steps - warmup} if "warmup_prefix" in settings["schedule_args"] else {}
    schedule = Schedule(optimizer, settings["schedule"], steps=steps, steps_per_epoch=1, warmup_epochs=warmup, **arguments)
    found = []
    for step in at:
        schedule.set(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_steps_of_the_papers_training() -> None:
    assert training_steps() == (STEPS, WARMUP)
    assert training_steps(epochs=350, dataset_size=4096) == (350, 5)
    assert training_steps(epochs=2, dataset_size=4096) == (2, 2)


def test_the_learning_rate_warms_up_and_falls_over_what_remains() -> None:
    settings = RSRecipe.preset("rs").fit()
    assert settings["lr"] == 1.6
    assert settings["schedule_args"] == {"warmup_prefix": True, "num_epochs": 345}
    found = rates(settings, STEPS, WARMUP, 0, 782, WARMUP, 54_737, STEPS)
    assert found[0] == 0
    assert [round(rate, 6) for rate in found[1:4]] == [0.800512, 1.6, 0.818211]
    assert found[4] == 0
    # the later official configuration lays the warm-up over a cosine of all steps
    later = {**settings, "schedule_args": {}}
    assert rates(later, 109_200, 1560, 54_600)[0] == pytest.approx(0.8, rel=1e-12)


def test_the_baseline_falls_in_three_steps() -> None:
    settings = RSRecipe.preset("baseline").fit(batch_size=256)
    assert (settings["lr"], settings["weight_decay"], settings["ema"], settings["views"]) == (0.1, 1e-4, None, "flip")
    assert settings["schedule_args"]["decay_milestones"] == pytest.approx([30, 60, 80])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = Schedule(optimizer, "multistep", steps=180, steps_per_epoch=2, warmup_epochs=5, **settings["schedule_args"])
    found = []
    for step in (5, 58, 60, 118, 120, 160):  # timm falls one update early
        schedule.set(step)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx([0.05, 0.1, 0.01, 0.01, 0.001, 0.0001])


def test_the_additive_study_sets_one_switch_at_a_time() -> None:
    recipe = RSRecipe.preset("rs")
    study = list(recipe.ablate())
    assert [name for name, _ in study] == [
        "baseline", "+ cosine learning rate", "+ more epochs", "+ moving average of the weights", "+ label smoothing", "+ stochastic depth",
        "+ RandAugment", "+ dropout", "+ less weight decay", "+ squeeze-excite", "+ ResNet-D",
    ]  # fmt: skip
    assert study[0][1] == RSRecipe.preset("baseline")
    assert study[-1][1] == recipe
    for (_, before), (_, after) in pairwise(study):
        changed = [field.name for field in dataclasses.fields(RSRecipe) if getattr(before, field.name) != getattr(after, field.name)]
        assert len(changed) == 1


def test_a_recipe_gives_arguments_that_fit() -> None:
    recipe = RSRecipe.preset("rs", epochs=30, randaug=7)
    settings = recipe.fit(batch_size=512, views="crop(4), flip")
    assert set(settings) <= set(inspect.signature(retinue.fit).parameters)
    assert settings["lr"] == 0.2
    assert settings["views"] == "crop(4), flip, randaugment(2, 7)"
    views.parse(settings["views"])
    assert recipe.fit(views="")["views"] == "randaugment(2, 7)"
    assert RSRecipe.preset("baseline").fit(views="")["views"] is None
    make_optimizer(settings["optimizer"], [nn.Parameter(torch.zeros(1))], lr=0.1, weight_decay=0.0, momentum=settings["momentum"])
    assert retinue.train.Supervised(**recipe.objective()).label_smoothing == 0.1
    model = resnet_rs(width_mult=0.125, depths=[1, 1, 1, 1], **recipe.model(), **recipe.architecture())
    assert (model.drop_rate, model.stages[3][0].drop_path.drop_prob) == (0.25, 0.1)
    timms: Any = retinue.create_model("timm:resnet18", input_size=32, **recipe.model())  # any other network takes it too
    assert timms.drop_rate == 0.25
    assert RSRecipe(**recipe.to_dict()) == recipe


@pytest.mark.parametrize("scale", recipes.SCALES)
def test_every_setting_of_the_recipes_fits_what_it_names(scale: str) -> None:
    bound = recipes.bind(recipes.load("resnet-rs", scale))
    assert bound.target is retinue.train.Supervised


def test_the_paper_recipe_is_the_preset() -> None:
    paper, preset = recipes.load("resnet-rs", "paper"), RSRecipe.preset("rs")
    whole = paper.fit["batch_size"] * paper.fit["devices"]
    assert whole == 4096
    view = "random_resized_crop(256, scale=(0.08, 1.0), ratio=(0.75, 1.3333)), flip"
    told = {**preset.fit(whole, view), "batch_size": paper.fit["batch_size"]}
    assert {name: paper.fit[name] for name in told} == told
    assert preset.model() == {name: paper.model[name] for name in preset.model()}
    assert paper.objective["label_smoothing"] == preset.label_smoothing


def test_it_trains_any_backbone() -> None:
    data = retinue.data.open("digits", train_images=64, test_images=20)
    recipe = RSRecipe.preset("rs", epochs=2, warmup_epochs=1, ema=0.5)
    run = retinue.fit(
        tiny("bare", in_chans=1), retinue.train.Supervised(**recipe.objective()), data, progress=False, **recipe.fit(32, views="crop(1)")
    )
    assert run.steps == 4


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.5])
def test_smoothed_cross_entropy_of_uniform_logits_is_the_log_of_the_classes(eps: float) -> None:
    loss = F.cross_entropy(torch.zeros(3, 10), torch.tensor([0, 4, 9]), label_smoothing=eps)
    assert abs(loss.item() - math.log(10)) < 1e-6


def test_the_rules_grow_depth_in_long_trainings_and_width_in_short_ones() -> None:
    assert [scale(20e9, epochs).grow for epochs in (350, 101, 100, 32, 31, 10)] == ["depth", "depth", "either", "either", "width", "width"]
    deep, wide = scale(20.1e9), scale(20.1e9, epochs=10)
    assert (deep.depth, deep.input_size, deep.width_mult) == (200, 256, 1.0)
    assert (wide.depth, wide.input_size) == (50, 256)
    assert wide.width_mult > 1.8
    assert scale(20.1e9) == scaling_advisor(350, 1_281_167, 20.1e9) == retinue.models.resnet_rs.scale(20.1e9)


def test_a_wider_network_costs_about_what_was_promised() -> None:
    advice = scale(4e9, epochs=10)
    with torch.device("meta"):
        model = retinue.create_model(**advice.model())
    assert abs(count_macs(model, advice.input_size) / 4e9 - 1) < 0.05
    assert abs(advice.macs / 4e9 - 1) < 0.002


@given(st.floats(2.3e9, 1e11), st.floats(101, 1000))
def test_advice_never_exceeds_the_budget_and_grows_with_it(budget: float, epochs: float) -> None:
    advice, more = scale(budget, epochs), scale(budget * 1.5, epochs)
    assert advice.macs <= budget
    assert 160 <= advice.input_size <= more.input_size <= 320
    assert advice.depth <= more.depth
    assert advice.drop_rate <= more.drop_rate
    assert advice.magnitude <= more.magnitude


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_a_budget_of_a_point_buys_that_point(point: Any) -> None:
    advice = scale(point.macs)
    assert (advice.depth, advice.input_size, advice.magnitude, advice.drop_rate, advice.drop_path_rate) == (
        point.depth, point.input_size, point.magnitude, point.drop_rate, point.drop_path_rate,
    )  # fmt: skip


def test_advice_says_why() -> None:
    small = scaling_advisor(350, 10_000, 1e9)
    assert small.width_mult < 1
    assert (small.steps, small.warmup_steps) == (855, 12)
    told = " ".join(small.notes)
    for word in ("scale the depth", "narrower", "160 to 320 px", "RandAugment 10", "10,000 images overfitting sets in"):
        assert word in told
    assert "return less and less" in " ".join(scale(1e12).notes)
    assert len(scale(5e9).notes) == 3


def test_budgets_that_cannot_be_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"scaling_advisor: `budget` must be positive, got 0\. A budget is in multiply-adds"):
        scale(0)
    with pytest.raises(ArgumentError, match=r"`epochs` must be positive, got -1"):
        scale(1e9, epochs=-1)
    with pytest.raises(ArgumentError, match=r"`dataset_size` must be positive, got 0"):
        scale(1e9, dataset_size=0)


REFUSED = [
    ({"ema": 1.0}, r"RSRecipe: `ema` must lie strictly between 0 and 1, got 1\.0\. It is the decay; None is without\."),
    ({"ema": 0.0}, r"`ema` must lie strictly between 0 and 1, got 0\.0"),
    ({"randaug": 31}, r"`randaug` must lie between 0 and 30, got 31\. It is the magnitude; None is without\."),
    ({"randaug": -1}, r"`randaug` must lie between 0 and 30, got -1"),
    ({"dropout": 1.0}, r"`dropout` must lie in \[0, 1\), got 1\.0\. 0 switches it off\."),
    ({"stochastic_depth": -0.1}, r"`stochastic_depth` must lie in \[0, 1\), got -0\.1"),
    ({"label_smoothing": 1}, r"`label_smoothing` must lie in \[0, 1\), got 1"),
    ({"warmup_epochs": 5, "epochs": 5}, r"`warmup_epochs` must lie in \[0, epochs\), got 5 of 5 epochs"),
    ({"weight_decay": -1.0}, r"`weight_decay` and `lr` must not be negative, got -1\.0 and 0\.1"),
]


@pytest.mark.parametrize(("switches", "message"), REFUSED)
def test_switches_that_cannot_be_are_refused_by_name(switches: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        RSRecipe(**switches)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r'RSRecipe: no preset is called "basline"\. Did you mean baseline\?'):
        RSRecipe.preset("basline")  # type: ignore[arg-type]


class Teacher(nn.Module):
    """Knows three classes: its logits are the image's first three pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(x.flatten(1)[:, :3])


def test_pseudo_labels_are_the_teachers_shares_in_evaluation_mode() -> None:
    teacher = Teacher().train()
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]]))
    pictures = torch.zeros(2, 1, 2, 2)
    pictures.view(2, 4)[:, :3] = logits
    targets, kept = pseudo_label(teacher, pictures)
    torch.testing.assert_close(targets, torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]]))
    assert kept.tolist() == [True, True]
    assert teacher.training
    assert teacher.drop.training
    hard = pseudo_label(teacher, pictures, threshold=0.5, soft=False, num_classes=3)
    assert hard.targets.tolist() == [[1, 0, 0], [1, 0, 0]]
    assert hard.kept.tolist() == [True, False]


def test_pseudo_labels_do_not_depend_on_the_batches() -> None:
    torch.manual_seed(0)
    teacher = tiny("ours")
    x = images(7, 3, 32, 32)
    torch.testing.assert_close(pseudo_label(teacher, x, batch_size=3).targets, pseudo_label(teacher, x).targets, rtol=0, atol=1e-6)


def test_a_teacher_of_other_classes_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"the teacher knows 3 classes and the labelled set has 10\. Take a teacher of the same"):
        pseudo_label(Teacher(), torch.zeros(2, 1, 2, 2), num_classes=10)
    with pytest.raises(ArgumentError, match=r"`threshold` must lie in \[0, 1\], got 95\. It is a probability; None keeps all images\."):
        pseudo_label(Teacher(), torch.zeros(2, 1, 2, 2), threshold=95)
