"""scatsimclr: the joint loss and its parts, on any backbone, and what they refuse."""

import math
from typing import Any

import pytest
import torch
from support import parameters
from torch import nn
from torch.testing import assert_close

import retinue
from retinue.data import Batch, Data, views
from retinue.engine import Supervised
from retinue.errors import ArgumentError, ShapeError
from retinue.losses.contrastive import nt_xent
from retinue.models import adapt, pooled_features, tiny
from retinue.models.scatsimclr import scatsimclr
from retinue.pretrain.jigsaw import JigsawPretext
from retinue.pretrain.rotnet import rotate_batch
from retinue.pretrain.scatsimclr import PretextRegularized, RotationPretext, ScatSimCLR, projection
from retinue.pretrain.simclr_v2 import SimCLRv2

KINDS = ("ours", "timm_cnn", "timm_vit", "bare")
FIT: dict[str, Any] = {"max_steps": 2, "batch_size": 6, "lr": 0.05, "progress": False}
SMALL: dict[str, Any] = {"out_dim": 8, "hidden_dim": 16}
JIGSAW: dict[str, Any] = {"permutations": 5, "tile_dim": 8, "hidden_dim": 16}


def digits(**options: Any) -> Data:
    return retinue.data.open(
        "digits", **{"input_size": 32, "channels": 3, "train_images": 24, "test_images": 20, "val_fraction": 0.01, **options}
    )


def backbone(kind: Any = "ours") -> Any:
    torch.manual_seed(0)
    return adapt(tiny(kind), input_size=32)


def batch_of(*shown: torch.Tensor) -> Batch:
    return Batch(shown[0], torch.zeros(len(shown[0]), dtype=torch.int64), torch.arange(len(shown[0])), shown)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_the_heads_have_the_pages_numbers_of_parameters() -> None:
    class Encoder(nn.Module):
        num_features = 2048

    assert parameters(projection(2048)) == 4_458_624
    assert parameters(RotationPretext(Encoder()).head) == 1_115_268
    with torch.device("meta"):
        assert parameters(JigsawPretext(Encoder())) == 20_070_947
        assert parameters(scatsimclr(8, 0, input_size=32)) + parameters(projection(2048)) == 6_104_480


def test_the_head_is_two_layers_without_norm() -> None:
    head = projection(3, 4, 2)
    h = torch.randn(5, 3)
    first, second = head[0], head[2]
    assert_close(head(h), (h @ first.weight.T + first.bias).clamp_min(0) @ second.weight.T + second.bias)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_pretext_the_loss_is_nt_xent(kind: Any) -> None:
    model = backbone(kind).eval()
    one, two = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)
    head: Any = None
    for options in ({"pretext": None}, {"weight": 0.0}):
        torch.manual_seed(1)
        objective = ScatSimCLR(model, temperature=0.5, **SMALL, **options).eval()  # type: ignore[arg-type]
        head = objective.ssl_loss.head
        z1, z2 = (head(pooled_features(model, images)) for images in (one, two))
        assert_close(objective(model, batch_of(one, two))["loss"], nt_xent(z1, z2, 0.5))
        assert objective.pretext is None
    assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU, nn.Linear]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pretext", ["rotation", "jigsaw"])
def test_the_loss_is_the_weighted_sum_of_both(kind: Any, pretext: Any) -> None:
    model = backbone(kind).eval()
    objective = ScatSimCLR(
        model, digits(), pretext=pretext, pretext_args=JIGSAW if pretext == "jigsaw" else None, weight=0.3, **SMALL
    ).eval()
    shown = [torch.rand(3, 3, 32, 32) for _ in objective.views or ()]
    numbers = objective(model, batch_of(*shown))
    contrast = objective.ssl_loss(model, batch_of(*shown[:2]))["loss"]
    assert objective.pretext is not None
    guessed = objective.pretext(model, batch_of(*shown[2:]))["loss"]
    assert_close(numbers["loss"], contrast + 0.3 * guessed)
    assert (numbers["ssl_loss"], numbers["pretext_loss"]) == (contrast, guessed)


def test_four_draws_are_turned_by_four_angles_and_the_head_guesses_which() -> None:
    model = backbone().eval()
    rotation = RotationPretext(model).eval()
    assert [layer.out_features for layer in rotation.head if isinstance(layer, nn.Linear)] == [512, 128, 4]
    assert [layer.p for layer in rotation.head if isinstance(layer, nn.Dropout)] == [0.5, 0.5]
    draws = [torch.rand(2, 3, 32, 32) for _ in range(4)]
    turned = torch.cat([torch.rot90(images, k, (2, 3)) for k, images in enumerate(draws)])
    logits = rotation.head(pooled_features(model, turned))
    expected = nn.functional.cross_entropy(logits, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    assert_close(rotation(model, batch_of(*draws))["loss"], expected)
    same = rotation(model, batch_of(draws[0]))["loss"]
    assert_close(same, rotation(model, batch_of(*[draws[0]] * 4))["loss"])


def test_a_flip_behind_a_quarter_turn_makes_it_the_other_one() -> None:
    image = torch.rand(1, 1, 5, 5)
    turned = rotate_batch(image)[0]
    of_mirrored = rotate_batch(image.flip(-1))[0]
    assert torch.equal(turned[1].flip(-1), of_mirrored[3])
    assert torch.equal(turned[3].flip(-1), of_mirrored[1])


def test_a_head_of_zeros_pays_log_four() -> None:
    model = backbone()
    rotation = RotationPretext(model)
    nn.init.zeros_(rotation.head[-1].weight), nn.init.zeros_(rotation.head[-1].bias)
    numbers = rotation(model, batch_of(torch.rand(1, 3, 32, 32)))
    assert numbers["loss"].item() == pytest.approx(math.log(4), abs=3e-7)


def test_the_views_are_two_of_the_contrast_and_those_of_the_pretext() -> None:
    data = digits()
    rotation = ScatSimCLR(backbone(), data, **SMALL)
    assert rotation.views is not None
    assert len(rotation.views) == 6
    assert set(map(repr, rotation.views)) == {repr(rotation.views[0])}
    expected = "random_resized_crop((32, 32), (0.08, 1.0), (3/4, 4/3), 'bicubic'), flip(0.5), color_jitter(0.8, 0.8, 0.8, 0.2, p=0.8), "
    assert rotation.views[0] == views.parse(f"{expected}grayscale(0.2), gaussian_blur(3, (0.1, 2.0), 0.5)"), "blurred at 32 px as well"
    late = ScatSimCLR(backbone(), pretext="jigsaw", pretext_args=JIGSAW, **SMALL)
    assert late.views is None
    late.check(backbone(), data)
    assert [repr(view) for view in late.views or ()][1:] == [repr(rotation.views[0]), ""]
    batch = next(iter(data.train.loader(4, views=late.views).batches()))
    assert torch.equal(batch.views[2], data.preprocessing.normalize(data.train.images(range(4)))), "tiles are normalised, as views are"


@pytest.mark.parametrize("pretext", ["rotation", "jigsaw"])
def test_evaluation_averages_each_loss_as_it_does_by_itself(pretext: Any) -> None:
    data, model = digits(), backbone().eval()
    objective = ScatSimCLR(model, data, pretext=pretext, pretext_args=JIGSAW if pretext == "jigsaw" else None, **SMALL)
    split = data.train.subset(range(7))
    assert objective.pretext is not None
    found = objective.evaluate(model, split.loader(4, views=objective.views))
    contrast = objective.ssl_loss.evaluate(model, split.loader(4, views=objective.ssl_loss.views))
    assert found["ssl_loss"] == contrast["loss"]
    assert found["positive_cosine"] == contrast["positive_cosine"]
    shown = objective.pretext.beside((objective.views or ())[0])
    assert found["pretext_loss"] == objective.pretext.evaluate(model, split.loader(4, views=shown))["loss"]
    assert found["loss"] == pytest.approx(found["ssl_loss"] + 0.3 * found["pretext_loss"])
    assert objective.evaluate(model, split.subset([0]).loader(4, views=objective.views)) == {}, "one image has no negatives"
    alone = ScatSimCLR(model, data, pretext=None, **SMALL)
    assert set(alone.evaluate(model, split.loader(4, views=alone.views))) == {"loss", "positive_cosine"}


@pytest.mark.parametrize("pretext", ["rotation", "jigsaw"])
def test_the_papers_network_learns_and_resumes_bit_for_bit(pretext: Any, tmp_path: Any) -> None:
    options: dict[str, Any] = {"pretext": pretext, "pretext_args": JIGSAW if pretext == "jigsaw" else None, **SMALL}

    def parts() -> tuple[nn.Module, ScatSimCLR]:
        torch.manual_seed(0)
        model = scatsimclr(8, 0, input_size=16, L=2, stem_width=4, stages=[[4, 1]], pool=2)
        return model, ScatSimCLR(model, **options)

    class Stop(BaseException):
        pass

    settings = {**FIT, "checkpoint_every": 1}
    model, objective = parts()
    start = state(model), state(objective)
    whole = retinue.fit(model, objective, digits(input_size=16), **settings, run_dir=tmp_path / "whole")
    learned = [name for name, _ in whole.model.named_parameters()]
    assert all(not torch.equal(whole.model.state_dict()[name], start[0][name]) for name in learned)
    assert all(not torch.equal(whole.objective.state_dict()[name], start[1][name]) for name, _ in objective.named_parameters())
    assert list(whole.model.state_dict()) == list(start[0])

    model, objective = parts()
    follow = objective.after_step

    def stop(model: nn.Module, step: int) -> None:
        follow(model, step)
        if step == 2:
            raise Stop

    objective.after_step = stop  # type: ignore[method-assign]
    with pytest.raises(Stop):
        retinue.fit(model, objective, digits(input_size=16), **settings, run_dir=tmp_path / "stopped")
    resumed = retinue.fit(*parts(), digits(input_size=16), **settings, run_dir=tmp_path / "stopped")
    for one, other in ((whole.model, resumed.model), (whole.objective, resumed.objective)):
        again = other.state_dict()
        assert all(torch.equal(value, again[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("task", [RotationPretext, lambda model: JigsawPretext(model, **JIGSAW)])
def test_a_pretext_stands_beside_supervised_learning(task: Any) -> None:
    data, model = digits(), backbone()
    pretext = task(model)
    objective = PretextRegularized(Supervised(), pretext, weight=0.5)
    run = retinue.fit(model, objective, data, views="crop(2), flip", **FIT)
    assert {"top1", "loss", "ssl_loss", "pretext_loss"} <= set(run.metrics)
    assert run.metrics["loss"] == pytest.approx(run.metrics["ssl_loss"] + 0.5 * run.metrics["pretext_loss"])
    batch = next(iter(data.train.loader(4).batches()))
    objective.eval(), run.model.eval()
    guessed = pretext(run.model, batch)["loss"]
    assert_close(objective(run.model, batch)["loss"], Supervised()(run.model, batch)["loss"] + 0.5 * guessed)


def test_two_tasks_have_a_weight_each() -> None:
    data, model = digits(), backbone()
    inner = ScatSimCLR(model, data, pretext="rotation", weight=0.3, **SMALL)
    both = PretextRegularized(inner, JigsawPretext(model, **JIGSAW), weight=0.1)
    assert len(both.views or ()) == 7
    numbers = retinue.fit(model, both, data, **{**FIT, "max_steps": 1}).metrics
    assert {"turn_accuracy", "jigsaw_accuracy", "positive_cosine"} <= set(numbers)
    assert numbers["loss"] == pytest.approx(numbers["ssl_loss"] + 0.1 * numbers["pretext_loss"])


def test_the_memory_of_simclr_v2_is_kept_up_beside_a_pretext() -> None:
    model = backbone()
    contrast = SimCLRv2(model, out_dim=4, memory=6, memory_decay=0.5)
    before = state(contrast.slow or nn.Module())
    retinue.fit(model, PretextRegularized(contrast, RotationPretext(model)), digits(), **FIT)
    assert any(not torch.equal(value, before[name]) for name, value in state(contrast.slow or nn.Module()).items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretext": "rotatoin"}, r'ScatSimCLR: no `pretext` is called "rotatoin"\. Did you mean rotation\?'),
        (
            {"pretext": ["rotation", "jigsaw"]},
            r'`pretext` must be "rotation", "jigsaw", or None without `pretext_args`, got \[.*For two tasks',
        ),
        ({"pretext": None, "pretext_args": {"grid": 3}}, r"or None without `pretext_args`, got None and \{'grid': 3\}"),
        ({"pretext_args": {"grid": 3}}, r'ScatSimCLR: rotation: no argument is called "grid"\. There is drop_rate, widths\.'),
        ({"weight": -0.1}, r"PretextRegularized: `weight` must be 0 or more, got -0\.1\. The paper has 0\.3; 0 leaves the task out\."),
        ({"out_dim": 0}, r"ScatSimCLR: `out_dim` must be at least 1, got 0\. The paper has 2048 and 128\."),
        ({"hidden_dim": 0}, r"ScatSimCLR: `hidden_dim` must be at least 1, got 0"),
        ({"temperature": 0.0}, r"`temperature` must be above 0, got 0\.0"),
    ],
)
def test_objectives_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ScatSimCLR(backbone(), **options)


def test_what_cannot_be_trained_is_refused() -> None:
    model = backbone()
    with pytest.raises(
        ArgumentError, match=r"`pretext` must be a RotationPretext or a JigsawPretext, got Supervised\. For two tasks, put one"
    ):
        PretextRegularized(Supervised(), Supervised())  # type: ignore[arg-type]
    objective = ScatSimCLR(model, digits(), **SMALL)
    with pytest.raises(
        ShapeError, match=r"a batch needs 6 views of each image, got 2\. Give the objective's own to the loader: split\.loader"
    ):
        objective(model, batch_of(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)))
    with pytest.raises(ShapeError, match=r"square images, got height=16 and width=32"):
        retinue.fit(model, ScatSimCLR(model, **SMALL), digits(input_size=(16, 32)), **FIT)
    turning = ScatSimCLR(model, shown_as="crop(2), rotate(180)", **SMALL)
    with pytest.raises(ArgumentError, match=r"destroys what is to be guessed: how far an image was turned"):
        retinue.fit(model, turning, digits(), **FIT)
    with pytest.raises(ArgumentError, match=r"destroys what is to be guessed"):
        retinue.fit(model, PretextRegularized(Supervised(), RotationPretext(model)), digits(), views="vertical_flip", **FIT)
