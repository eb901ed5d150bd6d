"""Guidance: the page's layer map, what is captured, the loss by hand, what may move, and what is refused."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from support import images, same
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

import retinue
from retinue.data import Batch, Data, from_arrays
from retinue.distill.guidance import Guidance, guide_noise, map_layers
from retinue.distill.guidance_layers import watching
from retinue.engine import Objective, train_mode
from retinue.engine.seeds import seed_all
from retinue.errors import ArgumentError, ShapeError
from retinue.metrics import linear_cka, rsa
from retinue.models import adapt, create_model, tiny
from retinue.models.guidance_targets import deep_fcn, row_transformer, vanilla_rnn
from retinue.models.tiny import KINDS
from retinue.train import Supervised


def net(*widths: int, seed: int = 0, outputs: int = 3, shape: tuple[int, int, int] = (1, 4, 4)) -> nn.Sequential:
    """Linear layers with ReLU between them; their names are 1, 3, 5, ..."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    before = shape[0] * shape[1] * shape[2]
    for width in widths:
        layers += [nn.Linear(before, width), nn.ReLU(inplace=True)]
        before = width
    return nn.Sequential(*layers, nn.Linear(before, outputs))


def batch(count: int = 12, classes: int = 3, shape: tuple[int, int, int] = (1, 4, 4)) -> Batch:
    shown = images(count, *shape)
    return Batch(shown, torch.arange(count) % classes, torch.arange(count), (shown,))


@pytest.fixture
def data() -> Data:
    """Forty-eight images of 4 px in three classes: each brightens another row."""
    pixels = torch.randint(0, 120, (48, 4, 4), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(48) % 3
    pixels[torch.arange(48), labels] += 100
    return from_arrays(pixels.byte().numpy(), labels, split=["train"] * 24 + ["val"] * 12 + ["test"] * 12, name="rows")


@torch.no_grad()
def outputs(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    """What each linear layer but the last gives, before its ReLU."""
    found = []
    for layer in model[:-1]:
        x = layer(x.clone())
        if isinstance(layer, nn.Linear):
            found.append(x.clone())
    return found


# --- the layer map ---------------------------------------------------------------------------------------------------------------------


def test_the_pages_layer_maps() -> None:
    assert map_layers(5, 50) == [0, 12, 24, 37, 49]
    assert map_layers(3, 6) == [0, 2, 5]
    assert map_layers(4, 2) == [0, 0, 1, 1]
    assert map_layers(17, 48) == [0, 3, 6, 9, 12, 15, 18, 21, 24, 26, 29, 32, 35, 38, 41, 44, 47]


@given(st.integers(1, 60), st.integers(1, 60))
def test_the_map_rises_from_the_first_layer_to_the_last(n_guide: int, n_target: int) -> None:
    places = map_layers(n_guide, n_target)
    assert len(places) == n_guide
    assert places == sorted(places)
    assert places[0] == 0
    assert places[-1] == (n_target - 1 if n_guide > 1 else 0)
    assert map_layers(n_guide, n_guide) == list(range(n_guide))


def test_no_layers_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^map_layers: guide and target need one layer each at least, got 0 and 4\.$"):
        map_layers(0, 4)


# --- what is captured ------------------------------------------------------------------------------------------------------------------


def captured(model: nn.Module, x: Tensor, layers: list[str] | None = None) -> dict[str, Tensor]:
    with torch.no_grad(), watching(model, layers, lambda rows: rows.clone(), len(x)) as seen:
        model(x)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return seen


def test_layers_are_taken_in_the_order_in_which_they_run_before_their_activation_and_without_the_logits() -> None:
    model, x = net(6, 5), images(4, 1, 4, 4)
    seen = captured(model, x)
    assert list(seen) == ["1", "3"]
    for mine, theirs in zip(seen.values(), outputs(model, x)):
        assert torch.equal(mine, theirs), "an in-place ReLU must not reach what was kept"
        assert (mine < 0).any()


def test_a_resnet_gives_its_twenty_convolutions_and_the_pooled_map() -> None:
    model = torchvision.models.resnet18(num_classes=5).eval()
    seen = captured(model, images(2, 3, 32, 32))
    assert len(seen) == 21
    assert list(seen)[:2] == ["conv1", "layer1.0.conv1"]
    assert list(seen)[-1] == "avgpool"
    theirs = create_feature_extractor(model, ["conv1", "layer3.0.downsample.0", "avgpool"])(images(2, 3, 32, 32))
    for name, value in theirs.items():
        assert torch.equal(seen[name], value)


def test_a_vision_transformer_of_torchvision_gives_attention_mlps_and_the_pooled_token() -> None:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(16, 8, 2, 2, 12, 24, num_classes=4).eval()
    x = images(2, 3, 16, 16)
    nodes = [f"encoder.layers.encoder_layer_{i}.{part}" for i in range(2) for part in ("self_attention", "mlp")]
    seen = captured(model, x)
    assert list(seen) == [*nodes, "pooled"]
    theirs = create_feature_extractor(model, [*nodes[1::2], "getitem_5"])(x)
    for name in nodes[1::2]:
        assert torch.allclose(seen[name], theirs[name], atol=1e-6)
    assert torch.allclose(seen["pooled"], theirs["getitem_5"], atol=1e-6)
    assert list(captured(nn.Sequential(model), x))[-1] == "pooled"


def test_named_layers_are_paired_in_the_order_in_which_they_were_named() -> None:
    assert list(captured(net(6, 5, 4), images(2, 1, 4, 4), ["5", "1"])) == ["5", "1"]


def test_sequences_of_recurrent_layers_and_of_a_transformer_are_whole() -> None:
    x = images(3, 1, 7, 5)
    shape: dict[str, Any] = {"num_classes": 2, "in_chans": 1, "input_size": (7, 5)}
    rnn = captured(vanilla_rnn(2, 6, 4, **shape), x)
    assert {name: tuple(value.shape) for name, value in rnn.items()} == {"embed": (3, 7, 4), "layers.0": (3, 7, 6), "layers.1": (3, 7, 6)}
    transformer = captured(row_transformer(2, 8, 2, **shape).eval(), x)
    assert {"layers.0", "layers.0.self_attn", "layers.0.linear2", "layers.1.norm2"} <= set(transformer)
    assert all(tuple(value.shape[:2]) == (3, 7) for value in transformer.values())


def test_time_before_batch_and_windows_become_one_row_an_image() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time_first, self.windows, self.head = nn.RNN(4, 6), nn.Linear(4, 5), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.windows(x[:, 0].reshape(-1, 2, 4))  # two windows of each image, one after the other
            return self.head(self.time_first(x[:, 0].transpose(0, 1))[0][-1])

    model, x = Windows(), images(3, 1, 4, 4)
    seen = captured(model, x)
    assert torch.allclose(seen["windows"].flatten(1), model.windows(x[:, 0]).flatten(1))
    assert torch.allclose(seen["time_first"], model.time_first(x[:, 0].transpose(0, 1))[0].transpose(0, 1))
    with pytest.raises(ShapeError, match="the layer windows gives 6 rows for 4 images, so none belongs to one image"):
        with watching(model, ["windows"], lambda rows: rows, 4):
            model(x)


def test_layers_that_do_not_exist_or_do_not_run_are_refused() -> None:
    model = create_model("small_convnet", widths=[4, 4], in_chans=1)
    with pytest.raises(ArgumentError, match=r'no layer of Network is called "stages\.0\.con"\. Did you mean stages\.0\.conv'):
        captured(model, images(2, 1, 8, 8), ["stages.0.con"])
    idle: Any = net(4)
    idle.spare = nn.Linear(2, 2)
    idle.forward = lambda x: idle[:-1](x)
    with pytest.raises(ArgumentError, match="the layer spare of Sequential did not run"):
        captured(idle, images(2, 1, 4, 4), ["1", "spare"])
    with pytest.raises(ArgumentError, match=r"Sequential has no layer to compare beside its last one\. Name the layers by hand"):
        captured(net(), images(2, 1, 4, 4))


# --- the loss --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("distance", "alike"), [("cka", linear_cka), ("rsa", rsa)])
def test_the_loss_is_cross_entropy_and_the_sum_over_guide_layers(distance: Any, alike: Any) -> None:
    target, guide, shown = net(6, 5, 4), net(7, 8, seed=1), batch()
    numbers = Guidance(guide, alpha=0.5, distance=distance)(target, shown)
    a, b = outputs(target, shown.images), outputs(guide, shown.images)
    summed = (1 - alike(a[0], b[0])) + (1 - alike(a[2], b[1]))  # a sum, not a mean; first with first, last with last
    task = F.cross_entropy(target(shown.images), shown.labels).detach()
    assert float(numbers["loss"].detach()) == pytest.approx(float(task + 0.5 * summed), abs=1e-5)
    assert float(numbers["task"]) == pytest.approx(float(task), abs=1e-6)
    assert float(numbers["guidance"]) == pytest.approx(float(0.5 * summed), abs=1e-5)


def test_the_deeper_guide_counts_all_its_layers_or_the_last_of_each() -> None:
    target, guide, x = net(6, 5), net(7, 8, 9, 6, seed=1), images(12, 1, 4, 4)
    a, b = outputs(target, x), outputs(guide, x)
    apart = [1 - linear_cka(a[place], b[i]) for i, place in enumerate(map_layers(4, 2))]
    _, every, alike = Guidance(guide).loss(target, x)
    assert list(alike) == ["1 ~ 1", "1 ~ 3", "3 ~ 5", "3 ~ 7"]
    assert float(every) == pytest.approx(float(sum(apart)), abs=1e-5)
    _, last, alike = Guidance(guide, many_to_one="last").loss(target, x)
    assert list(alike) == ["1 ~ 3", "3 ~ 7"]
    assert float(last) == pytest.approx(float(apart[1] + apart[3]), abs=1e-5)
    assert float(alike["3 ~ 7"]) == pytest.approx(1 - float(apart[3]), abs=1e-5)


def test_layers_can_be_paired_by_name_and_compared_by_ones_own_distance() -> None:
    target, guide, x = net(6, 5), net(6, 5, seed=1), images(12, 1, 4, 4)
    objective = Guidance(guide, guide_layers=["3"], target_layers=["3"], distance=lambda a, b: (a - b).square().mean())
    _, distance, alike = objective.loss(target, x)
    assert list(alike) == ["3 ~ 3"]
    assert float(distance) == pytest.approx(float((outputs(target, x)[1] - outputs(guide, x)[1]).square().mean()), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_the_target_is_no_distance_away(kind: Any) -> None:
    target = adapt(tiny(kind), input_size=32).eval()
    _, distance, alike = Guidance(copy.deepcopy(target)).loss(target, images(8, 3, 32, 32))
    assert abs(float(distance)) < 1e-5
    assert len(alike) >= 2


def test_places_of_a_sequence_are_compared_together_or_one_by_one() -> None:
    shape: dict[str, Any] = {"num_classes": 2, "in_chans": 1, "input_size": (7, 5)}
    target, guide, x = vanilla_rnn(2, 6, 4, **shape), row_transformer(1, 8, 2, **shape), images(9, 1, 7, 5)
    layers: dict[str, Any] = {"target_layers": ["layers.1"], "guide_layers": ["layers.0"]}
    a, b = captured(target, x)["layers.1"], captured(guide.eval(), x)["layers.0"]
    together, apart = Guidance(guide, **layers), Guidance(guide, token_wise=True, **layers)
    assert float(together.loss(target, x)[1]) == pytest.approx(float(1 - linear_cka(a.flatten(1), b.flatten(1))), abs=1e-5)
    by_hand = [float(linear_cka(a[:, i], b[:, i])) for i in range(7)]
    _, distance, alike = apart.loss(target, x)
    assert float(distance) == pytest.approx(7 - sum(by_hand), abs=1e-5)
    assert float(alike["layers.1 ~ layers.0"]) == pytest.approx(sum(by_hand) / 7, abs=1e-5)
    with pytest.raises(ShapeError, match=r"`token_wise` needs layers with as many places, got layers\.1 with \(7,\) and 1 with \(\)"):
        Guidance(net(4, shape=(1, 7, 5)), token_wise=True, target_layers=["layers.1"]).loss(target, x)


def test_without_weight_the_gradients_are_those_of_cross_entropy_bit_for_bit() -> None:
    shown, found = batch(), []
    for objective in (Guidance(net(7, seed=1), alpha=0.0), Supervised()):
        target = net(6, 5)
        objective(target, shown)["loss"].backward()
        found.append([parameter.grad for parameter in target.parameters()])
    assert same(*found)


def test_guidance_ends_after_its_steps_and_the_guide_is_not_run_any_more() -> None:
    target, guide, shown = net(6), net(7, seed=1), batch()
    objective = Guidance(guide, guide_steps=2)
    losses = [dict(objective.losses(target, shown, step))["model"] for step in range(3)]
    assert losses[0]["guidance"] == losses[1]["guidance"] > 0
    assert losses[2]["guidance"] == 0
    assert torch.equal(losses[2]["loss"], F.cross_entropy(target(shown.images), shown.labels))
    guide.forward = None  # type: ignore[method-assign, assignment]
    dict(objective.losses(target, shown, 2))


def test_the_target_runs_once_and_its_batch_norms_move_once() -> None:
    target = create_model("small_convnet", widths=[4, 4], in_chans=1, num_classes=3).train()
    Guidance(net(7, seed=1))(target, batch())
    assert [int(norm.num_batches_tracked) for norm in target.modules() if isinstance(norm, nn.BatchNorm2d)] == [1, 1]


def test_the_noise_probe_shows_the_guide_other_images() -> None:
    noise = guide_noise(images(64, 1, 16, 16))
    assert noise.min() == 0
    assert noise.max() == 1
    assert abs(float((noise == 0).float().mean()) - 0.5) < 0.02, "half of a normal is below 0"
    target, guide, x = net(6), net(7, seed=1), images(12, 1, 4, 4)
    torch.manual_seed(3)
    found = Guidance(guide, noise=True).loss(target, x)[1]
    torch.manual_seed(3)
    shown = guide_noise(x)
    assert float(found) == pytest.approx(float(1 - linear_cka(outputs(target, x)[0], outputs(guide, shown)[0])), abs=1e-5)


def test_soft_labels_are_learned_where_a_view_mixed_images() -> None:
    target, shown = net(6), batch()
    shown.targets = torch.full((12, 3), 1 / 3)
    numbers = Guidance(net(7, seed=1))(target, shown)
    assert torch.equal(numbers["task"], F.cross_entropy(target(shown.images), shown.targets))


def test_it_stacks_with_another_objective() -> None:
    target, guide, shown = net(6), net(7, seed=1), batch()
    task = Supervised(label_smoothing=0.2)
    numbers = Guidance(guide, task=task)(target, shown)
    assert torch.equal(numbers["task"], task(target, shown)["loss"])
    assert float(numbers["loss"]) == pytest.approx(float(numbers["task"] + numbers["guidance"]), abs=1e-6)

    class Follows(Supervised):
        monitor, mode = "loss", "min"
        steps = 0

        def after_step(self, model: nn.Module, step: int) -> None:
            self.steps = step

    follows = Follows()
    objective = Guidance(guide, task=follows)
    objective.after_step(target, 5)
    assert (objective.monitor, objective.mode, follows.steps) == ("loss", "min", 5)


# --- training --------------------------------------------------------------------------------------------------------------------------


def small(seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return deep_fcn(**{"depth": 3, "width": 8, "drop_rate": 0.0, "num_classes": 3, "in_chans": 1, "input_size": 4, **options})


def settings(**changes: Any) -> dict[str, Any]:
    return {"max_steps": 5, "batch_size": 8, "lr": 1e-2, "progress": False, "log_every": 1, **changes}


def test_nothing_of_the_guide_moves_and_nothing_stays_in_either_network(data: Data) -> None:
    guide = create_model("small_convnet", widths=[4, 6], in_chans=1, num_classes=3).train()
    before = {name: tensor.clone() for name, tensor in guide.state_dict().items()}
    target = small()
    keys = list(target.state_dict())
    run = retinue.fit(target, Guidance(guide), data, **settings())
    assert same(before, dict(guide.state_dict())), "batch-norm statistics and counters too"
    assert all(parameter.grad is None for parameter in guide.parameters())
    assert not guide.training
    assert list(run.model.state_dict()) == keys
    assert not any(module._forward_hooks or module._forward_pre_hooks for net in (run.model, guide) for module in net.modules())
    moved = run.history[-1]
    assert moved["val/similarity/layers.0.0 ~ stem.0.conv"] > 0
    assert {"train/loss", "train/task", "train/guidance", "train/top1", "val/top1", "val/loss", "val/ece"} <= set(moved)


def test_the_guide_rests_whatever_mode_the_objective_is_in() -> None:
    guide = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Dropout(), nn.Linear(4, 3))
    objective = Guidance(guide).train()
    assert objective.training
    assert not any(module.training for module in guide.modules())
    train_mode(objective)
    assert not any(module.training for module in guide.modules())


def test_guidance_raises_the_similarity(data: Data) -> None:
    guide, apart = create_model("small_convnet", widths=[4, 6, 8], in_chans=1, num_classes=3), []
    for alpha in (0.0, 3.0):
        target = retinue.fit(small(), Guidance(guide, alpha=alpha), data, **settings(max_steps=60)).model
        apart.append(float(Guidance(guide).loss(target, data.preprocessing.normalize(data.train.images()))[1]))
    assert apart[1] < apart[0] - 0.3, apart


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guide", ["timm:resnet18", "timm:vit_tiny_patch16_224"])
def test_any_backbone_can_be_target_of_any_guide(kind: Any, guide: str) -> None:
    digits = retinue.data.open("digits", input_size=32, channels=3, train_images=24, test_images=20)
    small_guides = {
        "timm:resnet18": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "stem_width": 8},
        "timm:vit_tiny_patch16_224": {"embed_dim": 16, "depth": 2, "num_heads": 2},
    }
    seed_all(0)
    objective = Guidance(guide, digits, guide_args=small_guides[guide])
    model = adapt(tiny(kind), input_size=32)
    run = retinue.fit(model, objective, digits, **settings(max_steps=1))
    assert run.steps == 1
    assert all(torch.isfinite(torch.tensor(value)) for value in run.metrics.values())


class Stop(BaseException):
    pass


def test_stopped_and_resumed_is_uninterrupted_with_a_random_guide_and_an_end_of_guidance(data: Data, tmp_path: Path) -> None:
    def train(folder: str, stop_at: int = -1) -> Any:
        seed_all(1)
        objective = Guidance("small_convnet", data, guide_args={"widths": [4, 6]}, guide_steps=3)

        def after_step(model: nn.Module, step: int) -> None:
            if step == stop_at:
                raise Stop

        objective.after_step = after_step  # type: ignore[method-assign]
        return retinue.fit(small(), objective, data, **settings(run_dir=tmp_path / folder, checkpoint_every=2, loggers=("csv",)))

    whole = train("whole")
    with pytest.raises(Stop):
        train("stopped", stop_at=4)
    resumed = train("stopped")
    assert same(dict(whole.model.state_dict()), dict(resumed.model.state_dict()))
    assert (tmp_path / "whole" / "metrics.csv").read_bytes() == (tmp_path / "stopped" / "metrics.csv").read_bytes()


def test_a_guide_from_a_run_sees_images_normalised_as_in_its_own_training(data: Data, tmp_path: Path) -> None:
    other = retinue.data.open("digits", input_size=4, train_images=20, mean=(0.25,), std=(0.5,), val_fraction=0.0)
    model = create_model("small_convnet", widths=[4, 6], in_chans=1, input_size=4, num_classes=10)
    retinue.fit(model, Supervised(), other, **settings(max_steps=1, run_dir=tmp_path / "guide"))
    objective = Guidance(str(tmp_path / "guide"))
    target = small()
    objective.check(target, data)
    x = data.preprocessing.normalize(data.test.images())
    theirs = retinue.load(tmp_path / "guide")
    as_in_training = Guidance(theirs).loss(target, x, guide_images=(data.preprocessing.denormalize(x) - 0.25) / 0.5)
    assert float(objective.loss(target, x)[1]) == pytest.approx(float(as_in_training[1]), abs=1e-5)


def test_collapsed_features_count_as_unlike_and_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    target, shown = net(6, 5), batch()
    nn.init.zeros_(target[1].weight)  # type: ignore[arg-type]
    objective = Guidance(net(7, 8, seed=1))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            _, distance, alike = objective.loss(target, shown.images)
    assert alike["1 ~ 1"] == alike["3 ~ 3"] == 0
    assert distance == 2
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert told[0].startswith("Guidance: one of the layers 1 ~ 1 gives the same features for every image, so their similarity counts as 0.")
    loss = objective(target, shown)["loss"]
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in target.parameters() if parameter.grad is not None)


# --- what is refused -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"alpha": -1.0}, r"^Guidance: `alpha` must be 0 or more, got -1\.0\. The paper has 1\.$"),
        ({"guide_steps": -1}, r"^Guidance: `guide_steps` must be 0 or more, or None for no end, got -1\.$"),
        ({"many_to_one": "first"}, r'no `many_to_one` is called "first"\. There is all, last\.$'),
        ({"distance": "cca"}, r'no `distance` is called "cca"\. Did you mean cka'),
        ({"guide_layers": []}, r'^Guidance: `guide_layers` must be "auto" or a list of names of layers, got \[\]\.$'),
        ({"target_layers": "1"}, r"^Guidance: `target_layers` must be \"auto\" or a list of names of layers, got '1'\.$"),
        ({"guide_args": {"depth": 3}}, r"`guide_args` are options of a guide given by name; yours is a module\. Leave them out\.$"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        Guidance(net(4), **arguments)


def test_one_image_and_unequal_numbers_of_images_are_refused() -> None:
    objective = Guidance(net(4))
    with pytest.raises(ShapeError, match=r"needs two images of a batch at least, got 1\. Raise `batch_size`\."):
        objective(net(4), batch(1))
    with pytest.raises(ShapeError, match=r"guide and target must see as many images, got 3 and 4\. Similarity is of the same images\."):
        objective.loss(net(4), images(4, 1, 4, 4), guide_images=images(3, 1, 4, 4))


def test_networks_that_do_not_fit_the_data_are_refused_before_training(data: Data) -> None:
    with pytest.raises(ArgumentError, match=r"the guide \(MLP\) cannot take the images of rows, 4x4 px with 1 channels\. Build both"):
        retinue.fit(small(), Guidance(small(input_size=8)), data, **settings())
    with pytest.raises(ArgumentError, match=r"the guide \(Network\) cannot take the images of rows, 4x4 px with 1 channels"):
        retinue.fit(small(), Guidance(create_model("small_convnet", widths=[4], in_chans=3)), data, **settings())
    with pytest.raises(ArgumentError, match=r"the target \(MLP\) cannot take the images"):
        Guidance(small()).check(small(input_size=8), data)
    with pytest.raises(ArgumentError, match=r"the model has 5 outputs and rows has 3 classes\. Build it with num_classes=3\."):
        retinue.fit(small(num_classes=5), Guidance(small()), data, **settings())
    with pytest.raises(ArgumentError, match=r'no layer of MLP is called "layers\.9"'):
        retinue.fit(small(), Guidance(small(), guide_layers=["layers.9"]), data, **settings())
    target = small()
    with pytest.raises(ArgumentError, match=r"the guide is the network that learns\. Give a copy of it, or another network"):
        retinue.fit(target, Guidance(target), data, **settings())


def test_auxiliary_logits_ask_for_a_task_that_learns_from_them() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net(6)

        def forward(self, x: Tensor) -> Any:
            logits = self.body(x)
            return logits, logits

    with pytest.raises(ArgumentError, match=r"returns auxiliary logits too\. Give task=retinue\.train\.Supervised\(\)"):
        Guidance(net(7, seed=1))(Two(), batch())
    task: Objective = Supervised()
    assert Guidance(net(7, seed=1), task=task)(Two(), batch())["guidance"] > 0
