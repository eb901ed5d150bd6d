"""ScatSimCLR's encoder: its figures, timm's protocol, the official weights, and what it refuses."""

import json
from typing import Any

import pytest
import timm
import torch
from support import images, parameters, reductions
from torch import Tensor, nn
from torch.testing import assert_close

import retinue
from retinue.errors import ArgumentError, CheckpointError, ShapeError
from retinue.models import config, feature_size, pooled_features
from retinue.models.scatsimclr import from_official, official_name, scatsimclr
from retinue.pretrain.scatsimclr import projection

TINY: dict[str, Any] = {"L": 2, "stem_width": 8, "stages": [[8, 1], [12, 2]], "pool": 2}
FIGURES = [  # blocks, and the page's parameters of the adapter with 8 and with 16 angles
    (8, 1_466_144, 1_645_856), (12, 3_380_096, 4_817_792), (16, 4_561_792, 5_999_488), (30, 9_603_584, 11_041_280),
    (45, 10_693_248, 12_130_944),
]  # fmt: skip


def small(**options: Any) -> Any:
    return retinue.create_model("scatsimclr", **{"input_size": 16, "num_classes": 5, **TINY, **options})


def official(model: nn.Module) -> dict[str, Tensor]:
    """Give the weights the official names, with what else an official file holds."""
    own = {official_name(name): tensor for name, tensor in model.state_dict().items() if official_name(name)}
    head = projection(48, out_dim=4).state_dict()
    norm = {f"_scatnet_bn.{name}": tensor for name, tensor in nn.BatchNorm2d(27).state_dict().items()}
    extra = {"_scatnet.tensor0": torch.zeros(1), **norm}
    return {**extra, **own, **{f"l{int(name[0]) // 2 + 1}{name[1:]}": tensor for name, tensor in head.items()}}  # type: ignore[dict-item]


@pytest.mark.parametrize(("blocks", "eight", "sixteen"), FIGURES)
def test_the_pages_figures(blocks: int, eight: int, sixteen: int) -> None:
    with torch.device("meta"):
        for angles, expected in ((8, eight), (16, sixteen)):
            model: Any = retinue.create_model(f"scatsimclr{blocks}", num_classes=0, L=angles, input_size=32)
            assert parameters(model) == expected
            assert sum(isinstance(module, timm.models.resnet.BasicBlock) for module in model.modules()) == blocks
        with_norm = scatsimclr(blocks, 0, L=16, input_size=32, normalize_scattering=True)
    assert parameters(with_norm) == sixteen + 1734


@pytest.mark.parametrize("side", [16, 28, 32, 96])
def test_there_are_2048_features_at_any_size(side: int) -> None:
    with torch.device("meta"):
        model = scatsimclr(8, 0, in_chans=1, L=2, input_size=side)
        assert (model.num_features, feature_size(model)) == (2048, 2048)
        assert model(torch.empty(2, 1, side, side)).shape == (2, 2048)
        assert scatsimclr(8, 0).stem[0].scattering.shape == (96, 96)


def test_the_features_are_the_maps_values_at_four_by_four_places_channel_by_channel() -> None:
    model = small(pool=4).eval()
    x = images(2, 3, 16, 16)
    last = model.forward_intermediates(x)[1][-1]
    assert last.shape == (2, 12, 4, 4)
    assert_close(pooled_features(model, x), last.flatten(1))
    assert_close(pooled_features(small(pool=2).eval(), x).shape, torch.Size([2, 48]))


def test_the_stem_is_the_transform_and_one_convolution() -> None:
    model = small().eval()
    x = images(2, 3, 16, 16)
    stem = model.stem
    expected = stem[1].bn(nn.functional.conv2d(stem[0].scattering(x), stem[1].conv.weight, padding=1)).relu()
    assert_close(model.forward_intermediates(x, indices=[0], intermediates_only=True)[0], expected)
    assert not [name for name in model.state_dict() if "scattering" in name], "the filters are not saved"
    block = model.stages[1][0]
    assert [block.downsample[0].kernel_size, block.downsample[0].bias, model.stages[1][1].downsample] == [(1, 1), None, None]


def test_a_norm_of_the_coefficients_is_an_option() -> None:
    model = small(normalize_scattering=True).train()
    x = images(8, 3, 16, 16)
    coefficients = model.stem[0](x)
    assert_close(coefficients.mean((0, 2, 3)), torch.zeros(27), rtol=0, atol=1e-5)
    assert coefficients[:, 5].std() > 0.9, "of maps far smaller than the average's"
    assert model.stem[0].scattering(x)[:, 5].std() < 0.2


def test_the_protocol_agrees_with_itself_and_with_timm() -> None:
    model = small().eval()
    x = images(2, 3, 16, 16)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 1, 1)
    assert torch.equal(model.forward_head(features), model(x))
    assert model(x).shape == (2, 5)
    assert reductions(model) == [4, 4, 4]
    model.reset_classifier(0)
    assert torch.equal(model(x), features.flatten(1))
    theirs: Any = timm.create_model("retinue_scatsimclr8", num_classes=3, L=1, input_size=16, in_chans=1)
    assert theirs(images(2, 1, 16, 16)).shape == (2, 3)
    assert isinstance(theirs.get_submodule(theirs.pretrained_cfg["first_conv"]), nn.Conv2d)
    pyramid: Any = small(features_only=True, out_indices=[0, 1])
    assert [tuple(level.shape[1:]) for level in pyramid(x)] == [(8, 4, 4), (8, 4, 4)]


def test_its_arguments_build_it_again() -> None:
    model = small(in_chans=1, normalize_scattering=True)
    made = json.loads(json.dumps(config(model)))
    again = retinue.create_model(made["name"], **made["arguments"])
    again.load_state_dict(model.state_dict())
    x = images(2, 1, 16, 16)
    assert torch.equal(model.eval()(x), again.eval()(x))


def test_it_exports_with_any_batch(unchecked: None) -> None:
    model = small().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images(2, 3, 16, 16),), dynamic_shapes=({0: batch},), strict=False)
    x = images(5, 3, 16, 16)
    assert_close(program.module()(x), model(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_official_weights_go_in_by_name(normalize: bool) -> None:
    source, model = small(normalize_scattering=normalize), small(normalize_scattering=normalize)
    named, head = from_official({f"module.{name}": tensor for name, tensor in official(source).items()}, model)
    kept = model.head.fc.weight.clone()
    model.load_state_dict(named)
    assert torch.equal(model.head.fc.weight, kept)
    for name, tensor in source.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(model.state_dict()[name], tensor), name
    projection(48, out_dim=4).load_state_dict(head)
    with torch.device("meta"):
        published = scatsimclr(8, 0, L=8)
    names = [official_name(name) for name in published.state_dict()]
    assert names[0] == "_adapter_network.0.weight"
    assert {"_adapter_network.1.running_mean", "_adapter_network.3.0.downsample.0.weight", "_adapter_network.4.3.bn2.bias"} <= set(names)
    assert official_name("stem.0.norm.weight") == "_scatnet_bn.weight"


def test_other_weights_are_refused() -> None:
    tensors = official(small())
    lacking = {name: tensor for name, tensor in tensors.items() if name != "_adapter_network.4.1.conv2.weight"}
    with pytest.raises(CheckpointError, match=r'lacks the tensor "_adapter_network\.4\.1\.conv2\.weight"\. Build the network'):
        from_official(lacking, small())
    with pytest.raises(CheckpointError, match=r"conv1\.weight\" has shape \(8, 8, 3, 3\) in the checkpoint and \(4, 8, 3, 3\) in"):
        from_official(tensors, small(stages=[[4, 1], [12, 2]]))
    with pytest.raises(CheckpointError, match=r'no place for the tensor "_adapter_network\.5\.weight"\. Build it with the same number'):
        from_official({**tensors, "_adapter_network.5.weight": torch.zeros(1)}, small())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 9}, r"scatsimclr: `blocks` must be one of 8, 12, 16, 30, 45, got 9\. Or: stem_width=32, stages=\[\[32, 2\]"),
        ({"stages": [[8]], "stem_width": 4}, r"`stages` must be pairs \(channels, blocks\) beside a `stem_width`, got \[\[8\]\] and 4"),
        ({"stages": [[8, 2]], "stem_width": None}, r"got \[\[8, 2\]\] and None"),
        ({"pool": 0}, r"`pool` must be a whole number of places of at least 1, got 0\. The paper has 4\."),
        ({"J": 0}, r"scattering: `J` must be a whole number of at least 1, got 0"),
        ({"input_size": 3}, r"images of 3x3 px are smaller than the features of 2\^J = 4 px"),
    ],
)
def test_networks_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ArgumentError, ShapeError), match=message):
        small(**options)


def test_images_it_was_not_built_for_are_refused() -> None:
    model = small()
    with pytest.raises(ShapeError, match=r"built for images of 16x16 px in batches .*, got \(1, 3, 20, 16\)"):
        model(images(1, 3, 20, 16))
    with pytest.raises(ShapeError, match=r"at least 4x4 px, got 2x16"):
        model(images(1, 3, 2, 16))
    with pytest.raises(ShapeError, match=r"this network takes 3 channels, got 1\. Build it with in_chans=1\."):
        model(images(1, 1, 16, 16))
