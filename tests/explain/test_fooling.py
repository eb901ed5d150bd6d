"""Searches for fooling images: the archive's laws, log-odds, any backbone, resuming, the ascent by hand, and what is refused."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import parameters
from torch import Tensor, nn
from torch.testing import assert_close

import retinue
from retinue.data import Preprocessing
from retinue.engine import checkpoint
from retinue.errors import ArgumentError, CheckpointError, NonFiniteError, ShapeError
from retinue.explain.fooling import Ascent, DirectEncoding, FoolingResult, Judge, MapElites, fool
from retinue.explain.fooling_judge import log_odds, probability
from retinue.models.lenet import lenet
from retinue.models.tiny import KINDS, tiny

GREY = Preprocessing((8, 8), 1, mean=(0.3,), std=(0.4,))
COLOUR = Preprocessing((32, 32), 3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def linear(seed: int = 0, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def quick(model: Any, encoding: Any = "direct", **changes: Any) -> FoolingResult:
    return fool(model, encoding, **{"image_shape": (1, 8, 8), "generations": 12, "population": 20, **changes})


def same(a: FoolingResult, b: FoolingResult) -> bool:
    pairs = [(a.images, b.images), (a.log_odds, b.log_odds), (a.history, b.history), *((a.steps[name], b.steps[name]) for name in a.steps)]
    return all(torch.equal(one, other) for one, other in pairs)


# --- confidence ------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=2, max_size=5), st.floats(-100, 100))
def test_log_odds_are_those_of_the_softmax(row: list[float], shift: float) -> None:
    z = torch.tensor([row], dtype=torch.float64)
    p = z.softmax(1)
    rest = torch.stack([torch.cat([p[0, :c], p[0, c + 1 :]]).sum() for c in range(len(row))])[None]
    assert_close(log_odds(z, "logits"), p.log() - rest.log(), rtol=1e-8, atol=1e-8)
    assert_close(log_odds(z + shift, "logits"), log_odds(z, "logits"), rtol=1e-9, atol=1e-9)
    assert_close(log_odds(z, "logits").sigmoid(), p, rtol=1e-9, atol=1e-12)


def test_log_odds_do_not_saturate() -> None:
    z = torch.tensor([[50.0, 0.0, 0.0], [60.0, 0.0, 0.0]])
    assert z.softmax(1)[:, 0].tolist() == [1.0, 1.0]
    found = log_odds(z, "logits")[:, 0]
    assert_close(found, torch.tensor([50.0, 60.0], dtype=torch.float64) - math.log(2))
    assert_close(log_odds(torch.tensor([[0.25, 0.75]]), "probabilities")[0], torch.tensor([-math.log(3), math.log(3)], dtype=torch.float64))
    one = log_odds(torch.tensor([[2.0]]), "logits")
    assert_close(one, torch.tensor([[-2.0, 2.0]], dtype=torch.float64))
    assert_close(probability(torch.tensor([[2.0]]), "logits"), one.sigmoid().float())
    assert bool(torch.isfinite(log_odds(torch.tensor([[0.0, 1.0]]), "probabilities")).all())


def test_images_are_normalised_as_the_model_was_trained() -> None:
    seen: list[Tensor] = []

    class Watcher(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x.flatten(1)[:, :3]

    images = torch.rand(2, 1, 8, 8)
    model: Any = Watcher()
    Judge(model)(images)
    assert torch.equal(seen[-1], images)  # nobody says anything
    model.preprocessing = GREY
    Judge(model)(images)
    assert_close(seen[-1], (images - 0.3) / 0.4)
    Judge(model, preprocessing=Preprocessing((8, 8), 1, mean=(0.0,), std=(2.0,)))(images)
    assert_close(seen[-1], images / 2)
    published = timm.create_model("resnet18")
    judge = Judge(published)
    assert judge.normalisation is not None
    assert judge.normalisation.mean == published.pretrained_cfg["mean"]


# --- the archive -----------------------------------------------------------------------------------------------------------------------


def test_every_cell_takes_what_is_strictly_better_in_it() -> None:
    """Images are single pixels, and the cells want dark and bright: one individual may fill both at the start."""
    shown: list[Tensor] = []

    def evaluate(images: Tensor) -> Tensor:
        shown.append(images.flatten())
        return torch.stack([-images.flatten(), images.flatten()], 1)

    search = MapElites(DirectEncoding((1, 1, 1)), evaluate, population=8, seed=3)
    for generation in range(6):
        search.step()
        everything = torch.cat(shown)
        assert search.generation == generation
        assert search.fitness.tolist() == [-everything.min().item(), everything.max().item()]
        best = [float(search.encoding.render([genome])) for genome in search.genomes]
        assert best == [everything.min().item(), everything.max().item()]
    assert [len(part) for part in shown] == [8] * 6  # all children at once


def test_a_model_that_says_the_same_of_everything_keeps_the_first_individual() -> None:
    result = quick(lambda images: torch.zeros(len(images), 3))
    first = DirectEncoding((1, 8, 8)).random(20, np.random.default_rng(retinue.engine.seeds.mix(0, 0)))[0]
    assert all((genome == first).all() for genome in result.genomes)
    assert_close(result.confidence, torch.full((3,), 1 / 3, dtype=torch.float64))


@pytest.mark.parametrize("encoding", ["direct", "cppn"])
def test_confidence_never_falls_and_is_that_of_the_images(encoding: str) -> None:
    model = linear()
    result = quick(model, encoding, generations=25)
    assert (result.history.diff(dim=0) >= 0).all()
    assert result.history[-1].mean() > result.history[0].mean()
    assert torch.equal(result.history[-1], result.confidence)
    said = model(result.images).softmax(1).diagonal().double()
    assert_close(result.confidence, said, rtol=0, atol=1e-6)
    assert torch.equal((result.images * 255).round() / 255, result.images)
    assert result.median == pytest.approx(float(result.confidence.median()))
    few = quick(model, encoding, classes=[2, 0])
    assert few.classes == [2, 0]
    assert few.images.shape == (2, 1, 8, 8)
    for limit, rows in result.steps.items():
        for column, row in enumerate(rows.tolist()):
            assert row == next((i for i, p in enumerate(result.history[:, column]) if p > float(limit)), -1)


def test_the_number_of_images_asked_about_at_a_time_does_not_matter() -> None:
    calls: list[int] = []
    model = linear()

    def watched(images: Tensor) -> Tensor:
        calls.append(len(images))
        return model(images).detach()

    few = quick(watched, batch_size=8)
    assert set(calls) == {1, 8, 4}
    assert_close(few.log_odds, quick(model).log_odds, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("encoding", ["direct", "cppn", "gradient"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_backbone_can_be_fooled_and_is_left_as_it_was(kind: Any, encoding: str) -> None:
    torch.manual_seed(0)
    model = tiny(kind, num_classes=4).train()
    model.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = fool(model, encoding, generations=3, population=6, preprocessing=COLOUR, image_shape=(3, 32, 32))  # type: ignore[arg-type]
    assert result.images.shape == (4, 3, 32, 32)
    assert (result.confidence >= result.history[0] - 1e-12).all()
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_trained_run_is_fooled_as_it_is_loaded(tmp_path: Path) -> None:
    data = retinue.data.open("digits", train_images=300)
    model = retinue.create_model("small_convnet", widths=[16, 32], num_classes=10, in_chans=1, input_size=8)
    retinue.fit(model, retinue.train.Supervised(), data, epochs=12, lr=5e-3, run_dir=tmp_path, progress=False)
    loaded = retinue.load(tmp_path)
    found = fool(loaded, generations=15, population=40)
    assert found.images.shape == (10, 1, 8, 8)
    said = retinue.engine.prediction.probabilities(loaded, found.images.mul(255).round().byte())
    assert_close(said.diagonal().double(), found.confidence, rtol=0, atol=1e-4)
    assert found.median > float(found.history[0].median()) + 0.05


# --- resuming --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["direct", "cppn", "gradient"])
@pytest.mark.parametrize("cut", [0, 3, 7])
def test_cut_and_resumed_is_uncut_bit_for_bit(encoding: str, cut: int, tmp_path: Path) -> None:
    model = linear()
    whole = quick(model, encoding, seed=5)
    quick(model, encoding, seed=5, generations=cut, run_dir=tmp_path)
    assert same(quick(model, encoding, seed=5, run_dir=tmp_path), whole)
    assert same(quick(model, encoding, seed=5, run_dir=tmp_path), whole)  # and nothing is done twice
    assert not same(quick(model, encoding, seed=6), whole)


@pytest.mark.parametrize("encoding", ["direct", "cppn"])
def test_a_search_killed_between_two_savings_goes_on(encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, steps = linear(), MapElites.step

    def dies(self: MapElites) -> None:
        if self.generation == 9:
            raise KeyboardInterrupt
        steps(self)

    whole = quick(model, encoding)
    monkeypatch.setattr(MapElites, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        quick(model, encoding, run_dir=tmp_path, save_every=4)
    assert checkpoint.read(tmp_path / "state").tensors["history"].shape == (9, 3)
    monkeypatch.setattr(MapElites, "step", steps)
    assert same(quick(model, encoding, run_dir=tmp_path), whole)


def test_an_interrupted_write_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = linear()
    whole = quick(model)
    quick(model, generations=4, run_dir=tmp_path)
    renamed = Path.rename

    def dies(self: Path, target: Any) -> Path:
        if self.name.startswith(checkpoint.WRITING):
            raise KeyboardInterrupt
        return renamed(self, target)

    monkeypatch.setattr(Path, "rename", dies)  # the old state is moved aside, the new one not yet in its place
    with pytest.raises(KeyboardInterrupt):
        quick(model, run_dir=tmp_path, save_every=4)
    monkeypatch.setattr(Path, "rename", renamed)
    assert not (tmp_path / "state").exists()
    assert same(quick(model, run_dir=tmp_path), whole)


def test_another_search_in_the_folder_is_refused(tmp_path: Path) -> None:
    quick(linear(), run_dir=tmp_path)
    with pytest.raises(CheckpointError, match=r"holds another search, whose seed is 0 and not 1\. Give another `run_dir`"):
        quick(linear(), run_dir=tmp_path, seed=1)
    with pytest.raises(CheckpointError, match=r"holds another search, whose model is "):
        quick(linear(seed=1), run_dir=tmp_path)
    with pytest.raises(CheckpointError, match=r"holds another search, whose options is "):
        quick(linear(), run_dir=tmp_path, mutation_rate=0.5)
    with pytest.raises(CheckpointError, match=r"is at generation 12 already\. Ask for as many generations"):
        quick(linear(), run_dir=tmp_path, generations=3)
    altered = tmp_path / "state" / "model.safetensors"
    altered.write_bytes(altered.read_bytes()[:-1] + b"\x00")
    with pytest.raises(CheckpointError, match=r"was altered after it was written"):
        quick(linear(), run_dir=tmp_path)


# --- gradient ascent -------------------------------------------------------------------------------------------------------------------


def test_a_step_of_the_ascent_by_hand() -> None:
    """One pixel, logits (0, w v): p = sigmoid(w v) and dp/dv = w p (1 - p); the step makes the wanted progress."""
    w = 1.7
    judge = Judge(lambda images: torch.cat([0 * images.flatten(1), w * images.flatten(1)], 1))
    ascent = Ascent((1, 1, 1), judge, [1], start="zero")
    assert ascent.pixels().item() == 0.5
    ascent.step()
    p = 1 / (1 + math.exp(-w * 0.5))
    assert ascent.history[0].sigmoid().item() == pytest.approx(p, rel=1e-6)
    ascent.step()
    g = w * p * (1 - p)
    wanted = min(0.03, 0.1 * (1 - p))
    x = 0.99 * wanted / g**2 * g
    assert ascent.x.item() == pytest.approx(x, rel=1e-5)
    assert ascent.history[1].sigmoid().item() == pytest.approx(1 / (1 + math.exp(-w * (0.5 + x))), rel=1e-5)


def test_the_ascent_stops_where_it_is_flat_and_clips_to_pixels() -> None:
    flat = Ascent((1, 2, 2), Judge(lambda images: images.flatten(1)[:, :2] * 0), [0, 1], start="uniform")
    flat.step()
    before = flat.x.clone()
    flat.step()
    assert torch.equal(flat.x, before)
    steep = quick(lambda images: torch.stack([images.sum((1, 2, 3)) - 32, 32 - images.sum((1, 2, 3))], 1) / 10, "gradient", generations=200)
    assert steep.images.min() >= 0
    assert steep.images.max() <= 1
    assert steep.confidence.min() > 0.99


def test_the_ascent_reaches_what_a_classifier_can_be_sure_of() -> None:
    model: Any = linear()
    model[1].weight.data *= 5
    result = quick(model, "gradient", generations=100, preprocessing=GREY)
    assert result.median > 0.99
    assert (result.steps["top1"] >= 0).all()
    assert (result.steps["top1"] <= result.steps["0.99"]).all()
    assert_close(model(GREY.normalize(result.images)).softmax(1).diagonal().double(), result.confidence, rtol=0, atol=1e-6)
    for options in ({"blur_every": 4}, {"drop_small": 20.0}, {"drop_useless": 20.0}, {"drop_useless": 20.0, "useless_by_size": True}):
        other = quick(model, "gradient", generations=100, preprocessing=GREY, **options)
        assert not torch.equal(other.images, result.images)
        assert other.confidence.min() > 0.3


def test_useless_pixels_are_set_to_the_mean() -> None:
    judge = Judge(linear())
    half = Ascent((1, 8, 8), judge, [0], start="uniform", drop_small=50.0)
    x, g = torch.arange(-4.0, 4.0).view(1, 1, 2, 4), torch.ones(1, 1, 2, 4)
    assert half._regularised(x, g).flatten().tolist() == [-4, -3, -2, 0, 0, 0, 2, 3]
    useful = Ascent((1, 8, 8), judge, [0], drop_useless=50.0)
    assert useful._regularised(x, g).flatten().tolist() == [0, 0, 0, 0, 0, 1, 2, 3]


# --- the network of the paper, and what is refused -------------------------------------------------------------------------------------


def test_lenet_has_the_parameters_of_caffes() -> None:
    model = lenet()
    assert parameters(model) == 431_080
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert lenet(num_classes=11, in_chans=3, input_size=32)(torch.rand(1, 3, 32, 32)).shape == (1, 11)
    with pytest.raises(ArgumentError, match=r"lenet: images must be at least 16x16 px, got 8x8"):
        lenet(input_size=8)


SHARES = nn.Sequential(linear(), nn.Softmax(1))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: quick(linear(), "pixels"), ArgumentError, r'no encoding is called "pixels"\. There is cppn, direct, gradient'),
        (lambda: quick(linear(), population=21), ArgumentError, r"`population` must be an even number of at least 2, got 21\. Parents"),
        (lambda: quick(linear(), population=0), ArgumentError, r"an even number of at least 2, got 0"),
        (lambda: quick(linear(), generations=-1),
         ArgumentError, r"`generations` must be 0 or more and `save_every` at least 1, got -1 and 10"),
        (lambda: quick(linear(), classes=[3]), ArgumentError, r"`classes` must lie in 0 to 2, as the model has 3 classes, got \[3\]"),
        (lambda: quick(linear(), classes=[]), ArgumentError, r"`classes` must lie in 0 to 2"),
        (lambda: quick(linear(), batch_size=0), ArgumentError, r"`batch_size` must be at least 1, got 0"),
        (lambda: quick(linear(), outputs="odds"), ArgumentError, r'no `outputs` is called "odds"'),
        (lambda: quick(SHARES), ArgumentError, r"sum to 1, so they are probabilities and no logits\. Say so: outputs=\"probabilities\""),
        (lambda: quick(linear(), outputs="probabilities"),
         ArgumentError, r"are no probabilities, the first row sums to .* say outputs=\"logits\""),
        (lambda: quick(linear(), eta_mutations=3),
         ArgumentError, r'fool \(direct\): no option is called "eta_mutations"\. Did you mean eta_mutation'),
        (lambda: quick(linear(), "gradient", decay=2), ArgumentError, r"`decay` must lie in \[0, 1\], got 2"),
        (lambda: quick(linear(), "gradient", start="noise"), ArgumentError, r'no `start` is called "noise"'),
        (lambda: quick(linear(), "gradient", blur_radius=0.1), ArgumentError, r"`blur_radius` at least 0\.3, got .* and 0\.1"),
        (lambda: quick(lambda x: torch.zeros(len(x), 2), "gradient"),
         ArgumentError, r"the model gives no gradient.*encoding=\"direct\" or \"cppn\""),
        (lambda: fool(linear(), generations=1), ArgumentError, r"does not say which images it takes\. Give image_shape="),
        (lambda: fool(tiny("ours"), generations=1),
         ArgumentError, r"small_convnet does not say how its images are normalised\. Give preprocessing="),
        (lambda: Judge(timm.create_model("resnet18", in_chans=1)),
         ArgumentError, r"the model takes 1 channel\(s\) and its settings have the mean of 3"),
        (lambda: quick(lambda x: torch.full((len(x), 2), math.nan)),
         NonFiniteError, r"returned values that are not finite\. Check its weights"),
        (lambda: quick(lambda x: x), ShapeError, r"must return one row of logits for each of 1 images, got \(1, 1, 8, 8\)"),
        (lambda: quick(linear(), image_shape=(1, 9, 9)),
         ShapeError, r"the model takes no images of shape \(1, 9, 9\): .*another `image_shape`"),
    ],
)  # fmt: skip
def test_what_is_refused(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_probabilities_are_taken_as_such() -> None:
    assert_close(quick(SHARES, outputs="probabilities").confidence, quick(SHARES[0]).confidence, rtol=0, atol=1e-5)
