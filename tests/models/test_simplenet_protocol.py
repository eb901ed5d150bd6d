"""SimpleNet behind timm's protocol, with the official layout of weights, under compilers and exporters, its recipes and its claim."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from support import images, reductions
from torch import Tensor, nn

import retinue
from retinue.claims import simplenet as claim
from retinue.claims.harness import Figures
from retinue.cli import recipes
from retinue.engine.optim import Schedule, make_optimizer
from retinue.errors import ArgumentError, CheckpointError
from retinue.models import config, create_model
from retinue.models.simplenet import PRESETS
from retinue.models.simplenet_weights import from_official

TINY = "8 6 p 6 12 p 16k 10"


def small(**options: Any) -> Any:
    return create_model("simplenet", **{"num_classes": 5, "layers": TINY, "input_size": 16, **options})


class Released(nn.Module):
    """The layout of the releases, built from a list: everything in one row, and no dropout slot behind the units that `bare` names.

    Args:
        layers: the list.
        bare: convolutions, counted from 0, without a slot.
        strided: convolutions of stride 2.
        pad_1x1: padding of 1x1 kernels.
    """

    def __init__(self, layers: str, bare: Sequence[int], strided: Sequence[int] = (), pad_1x1: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        row: list[nn.Module] = []
        chs, number = 3, 0
        for token in layers.split():
            if token == "p":
                row += [nn.MaxPool2d(2, 2), nn.Dropout2d(0.0)]
                continue
            kernel, out = (1 if "k" in token else 3), round(int(token.rstrip("k")) * scale)
            conv = nn.Conv2d(chs, out, kernel, 2 if number in strided else 1, 1 if kernel == 3 else pad_1x1)
            row += [conv, nn.BatchNorm2d(out), nn.ReLU()] + ([] if number in bare else [nn.Dropout2d(0.0)])
            chs, number = out, number + 1
        self.features = nn.Sequential(*row)
        self.classifier = nn.Linear(chs, 5)
        for name, tensor in self.state_dict().items():  # fresh norms are all alike: something swapped would go unnoticed
            if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 1:
                tensor.normal_(0, 0.2)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classifier(F.max_pool2d(x, x.shape[2:]).flatten(1))


def before_pools(layers: str) -> list[int]:
    tokens = layers.split()
    ends = [i for i, (token, after) in enumerate(itertools.pairwise(tokens)) if token != "p" and after == "p"]
    return [i - tokens[:i].count("p") for i in ends]


@pytest.mark.parametrize("preset", PRESETS)
@torch.no_grad()
def test_released_weights_compute_the_same_logits(preset: str) -> None:
    layers, cifar = PRESETS[preset], preset.startswith("cifar")
    scale = 1.0 if preset in ("cifar_310k", "cifar_460k") else 0.25
    # as in the releases: CIFAR units before a pool have no slot (the 512 of the extra pool has one), and the last one has none
    bare = [*(i for i in before_pools(layers) if layers.split()[i] != "512"), 12] if cifar else []
    theirs = Released(layers, bare, () if cifar else (0, 1, 3), scale=scale)
    ours = create_model(f"simplenet_{preset}", num_classes=5, scale=scale).eval()
    ours.load_state_dict(from_official(theirs.state_dict(), ours))  # type: ignore[arg-type]
    x = images(2, 3, *([32, 32] if cifar else [64, 96]))
    expected = theirs(x)
    assert expected.std() > 0.01
    torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_weights_from_before_april_2023_need_padded_1x1_kernels() -> None:
    layers, x = PRESETS["imagenet_5m"], images(1, 3, 64, 64)
    theirs = Released(layers, (), (0, 1, 2), pad_1x1=1, scale=0.25)
    for pad in (0, 1):
        ours = create_model("simplenet_imagenet_5m", num_classes=5, scale=0.25, stride_mode=1, pad_1x1=pad).eval()
        ours.load_state_dict(from_official(theirs.state_dict(), ours))  # type: ignore[arg-type]
        assert torch.allclose(ours(x), theirs(x), rtol=0, atol=1e-4) == bool(pad)


@torch.no_grad()
def test_the_first_release_has_no_slots_between_units_and_training_adds_a_prefix() -> None:
    theirs = Released(TINY, range(6))
    named = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items() if not name.endswith("num_batches_tracked")}
    ours = small().eval()
    ours.load_state_dict(from_official({"epoch": 3, "state_dict": named}, ours))
    x = images(2, 3, 16, 16)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)


def test_a_network_adapted_to_small_images_takes_released_weights() -> None:
    layers = PRESETS["cifar_310k"]
    theirs = Released(layers, before_pools(layers))
    ours: Any = create_model("simplenet_cifar_310k", num_classes=5, input_size=8)
    ours.load_state_dict(from_official(theirs.state_dict(), ours))
    assert torch.equal(ours.stages[-1][-1].conv.weight, theirs.state_dict()["features.52.weight"])


def test_a_classifier_of_other_classes_keeps_what_it_has() -> None:
    tensors, ours = Released(TINY, ()).state_dict(), small(num_classes=3)
    before = ours.head.fc.weight.clone()
    ours.load_state_dict(from_official(tensors, ours))
    assert torch.equal(ours.head.fc.weight, before)
    assert torch.equal(ours.stem[0].conv.weight, tensors["features.0.weight"])
    headless = small(num_classes=0)
    headless.load_state_dict(from_official(tensors, headless))


def test_weights_of_another_network_are_refused() -> None:
    tensors = Released(TINY, ()).state_dict()
    with pytest.raises(
        CheckpointError,
        match=r"pools behind the convolutions \[1, 3, 4\], the network behind \[1, 3\] \(counted from 0\)\. .* simplenet_cifar_5m_extra",
    ):
        from_official(Released("8 6 p 6 12 p 16k p 10", ()).state_dict(), small())
    with pytest.raises(CheckpointError, match=r"the checkpoint has 6 convolutions, the network has 7\. Build the preset whose release"):
        from_official(tensors, small(layers=TINY + " 10"))
    with pytest.raises(
        CheckpointError,
        match=r'"features\.0\.weight" has shape \(8, 3, 3, 3\) in the checkpoint and \(8, 1, 3, 3\) in the network\. ',
    ):
        from_official(tensors, small(in_chans=1))
    with pytest.raises(CheckpointError, match=r'the checkpoint lacks the tensor "features\.1\.running_mean"\. It must be a PyTorch'):
        from_official({name: tensor for name, tensor in tensors.items() if name != "features.1.running_mean"}, small())
    with pytest.raises(CheckpointError, match=r'the checkpoint lacks the tensor "classifier\.bias"'):
        from_official({name: tensor for name, tensor in tensors.items() if name != "classifier.bias"}, small())
    with pytest.raises(CheckpointError, match=r'the network has no place for the tensor "neck\.weight"'):
        from_official({**tensors, "neck.weight": torch.ones(1)}, small())


def test_timm_builds_it_by_name() -> None:
    model = timm.create_model("retinue_simplenet_cifar_310k", num_classes=7, in_chans=1)
    assert model(images(2, 1, 32, 32)).shape == (2, 7)
    with pytest.raises(ArgumentError, match=r"no weights were published for simplenet_cifar_310k"):
        create_model("simplenet_cifar_310k", pretrained=True)


@torch.no_grad()
def test_a_pyramid_has_the_stated_strides_and_channels() -> None:
    pyramid: Any = create_model("simplenet_imagenet_small_05", features_only=True, in_chans=1)
    assert reductions(pyramid) == [2, 4, 8, 16, 32]
    maps = pyramid(images(1, 1, 96, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [(32, 48, 32), (64, 24, 16), (64, 12, 8), (256, 6, 4), (128, 3, 2)]
    assert not any("head" in key for key in pyramid.state_dict())


@torch.no_grad()
def test_the_classifier_can_be_reset_in_every_way() -> None:
    model, x = small().eval(), images(2, 3, 16, 16)
    features = model.forward_features(x)
    model.reset_classifier(0)
    assert torch.equal(model(x), features.amax((2, 3)))
    model.reset_classifier(3, "avg")
    assert torch.equal(model(x), model.head.fc(features.mean((2, 3))))
    model.reset_classifier(4, "catavgmax")
    assert (model(x).shape, model.head_hidden_size) == ((2, 4), 20)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), features)


def test_its_arguments_build_it_again_from_json() -> None:
    model = small(in_chans=1, drop_rates={0: 0.1, 8: 0.4}, global_pool="avgmax", drop="channel")
    model.reset_classifier(3)
    made = config(model)
    assert made is not None
    again = create_model(made["name"], **json.loads(json.dumps(made["arguments"])))
    assert str(again) == str(model)
    again.load_state_dict(model.state_dict())
    x = images(2, 1, 16, 16)
    assert torch.equal(model.eval()(x), again.eval()(x))


def test_parameters_are_sorted_by_depth() -> None:
    from timm.models._manipulate import group_with_matcher

    model = small()
    groups = group_with_matcher(model.named_parameters(), model.group_matcher(), reverse=True)
    names = ("stem.0.conv.weight", "stages.0.0.bn.bias", "stages.1.1.conv.weight", "stages.1.2.bn.weight", "head.fc.weight")
    depths = [groups[name] for name in names]
    assert depths == sorted(set(depths))


def test_its_inference_form_folds_every_norm(unchecked: None) -> None:
    model = small(drop_rates=0.2).eval()
    fast = retinue.optimize(model, input_size=16)
    assert fast.notes == ["batch norms folded into the layers before them: 6"]
    x = images(2, 3, 16, 16)
    torch.testing.assert_close(fast(x), model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", recipes.SCALES)
def test_every_setting_of_the_recipes_fits_what_it_names(scale: str) -> None:
    recipe = recipes.load("simplenet", scale)
    assert recipes.bind(recipe).target.__name__ == "Supervised"
    assert create_model(**{"num_classes": 10, **recipe.model}).adaptation == []


def test_the_paper_recipe_has_the_solvers_numbers() -> None:
    recipe = recipes.load("simplenet", "paper")
    fit = recipe.fit
    assert (recipe.model["name"], recipe.model["drop_rates"]) == ("simplenet_cifar_5m", 0.2)
    assert fit["epochs"] * 50_000 // fit["batch_size"] == 400_000
    parameter = nn.Parameter(torch.zeros(1, 1))
    optimizer = make_optimizer(
        fit["optimizer"], [parameter], lr=fit["lr"], weight_decay=fit["weight_decay"], momentum=0.9, **fit["optimizer_args"]
    )
    assert isinstance(optimizer, torch.optim.Adadelta)
    group = optimizer.param_groups[0]
    assert (group["rho"], group["eps"], group["weight_decay"]) == (0.9, 1e-3, 5e-3)
    schedule = Schedule(optimizer, fit["schedule"], steps=400_000, steps_per_epoch=500, **fit["schedule_args"])
    rates = []
    for step in (0, 49_990, 50_000, 95_000, 253_000, 295_000, 320_000, 370_000, 399_999):
        schedule.set(step)
        rates.append(group["lr"])
    assert rates == pytest.approx([0.1, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-7], rel=1e-6)


def test_pooling_early_moves_nothing_but_the_pools() -> None:
    early = claim.pooled_early(claim.LAYERS)
    assert early == "64 p 32 p 32 p 32 p 32 32 64 64 64 128 256k 64k 64"
    counts = {name: sum(p.numel() for p in claim.network(name, 0).parameters()) for name in claim.NETWORKS}
    assert counts == {"simplenet": 312_362, "resnet20": 272_474, "early_pooling": 312_362}


@pytest.mark.parametrize(
    ("plain", "residual", "early", "passed"),
    [(0.60, 0.614, 0.579, (True, True)), (0.60, 0.616, 0.5, (False, True)), (0.60, 0.5, 0.581, (True, False))],
)
def test_the_rule_allows_a_point_and_a_half_and_demands_two(plain: float, residual: float, early: float, passed: tuple[bool, bool]) -> None:
    values = {"top1_simplenet": plain, "top1_resnet20": residual, "top1_early_pooling": early}
    figures = Figures([{name: value + np.float64(spread) for name, value in values.items()} for spread in (-0.01, 0.01)])
    assert tuple(claim.parts(figures).values()) == passed
    assert claim.shown(figures) == all(passed)
