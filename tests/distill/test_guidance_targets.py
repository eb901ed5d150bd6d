"""The untrainable networks: the page's numbers of parameters, their layers, and what is refused."""

import math
from typing import Any

import pytest
import torch
import torchvision
from support import images, parameters
from torch import nn
from torch.testing import assert_close

from retinue.errors import ArgumentError, ShapeError
from retinue.models import config, create_model
from retinue.models.guidance_targets import RowReader, deep_fcn, plain_resnet50, row_transformer, sine_waves, vanilla_rnn, wide_fcn

SMALL: dict[str, dict[str, Any]] = {
    "deep_fcn": {"depth": 3, "width": 8},
    "wide_fcn": {"width": 8},
    "plain_resnet50": {"depths": [1, 1], "width": 4},
    "vanilla_rnn": {"depth": 2, "width": 8, "embed_dim": 4},
    "row_transformer": {"depth": 2, "width": 8, "num_heads": 2},
}


def test_the_pages_numbers_of_parameters() -> None:
    with torch.device("meta"):
        assert parameters(deep_fcn()) == 359_788_520
        assert parameters(wide_fcn()) == 1_375_609_832
        assert parameters(plain_resnet50()) == 22_780_456
        rnn = vanilla_rnn(num_classes=1000)
    # an embedding of 3 * 224 numbers, a layer 256 -> 512, three of 512 -> 512 with two biases each, and the classifier
    assert parameters(rnn) == (672 + 1) * 256 + 512 * (256 + 512 + 2) + 3 * 512 * (512 + 512 + 2) + 513 * 1000


def test_the_deep_network_has_48_hidden_layers_of_the_pages_widths() -> None:
    with torch.device("meta"):
        network = deep_fcn()
    widths = [layer.out_features for layer in network.modules() if isinstance(layer, nn.Linear)]
    assert widths == [2048, *[1024] * 47, 1000]
    assert [type(part).__name__ for part in network.layers[0]] == ["Linear", "BatchNorm1d", "ReLU", "Dropout"]  # type: ignore[arg-type]
    norm: Any = network.layers[0][1]  # type: ignore[index]
    assert (norm.eps, norm.momentum) == (1e-5, 0.1)


def test_the_plain_resnet_is_torchvisions_without_its_shortcuts() -> None:
    theirs = torchvision.models.resnet50(num_classes=7).eval()
    ours = plain_resnet50(num_classes=7).eval()
    wanted = [(name, value) for name, value in theirs.state_dict().items() if "downsample" not in name]
    mine = ours.state_dict()
    assert len(mine) == len(wanted)
    assert [tuple(value.shape) for value in mine.values()] == [tuple(value.shape) for _, value in wanted]
    ours.load_state_dict({name: value for name, (_, value) in zip(mine, wanted)})
    for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        for block in stage:
            block.downsample = _Nothing()  # a shortcut that adds nothing
    x = images(1, 3, 64, 64)
    assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)  # fifty layers of float32 in another order


class _Nothing(nn.Module):
    def forward(self, x: torch.Tensor) -> float:
        return 0.0


def test_a_recurrent_network_reads_rows_from_the_top_and_a_pixel_column_is_a_sequence() -> None:
    model = vanilla_rnn(2, 6, 4, num_classes=3, in_chans=2, input_size=(5, 3)).eval()
    x = images(4, 2, 5, 3)
    by_hand = x.permute(0, 2, 1, 3).reshape(4, 5, 6) @ model.embed.weight.T + model.embed.bias
    for layer in model.layers:
        state = torch.zeros(4, 6)
        states = []
        for row in by_hand.unbind(1):
            state = torch.tanh(row @ layer.weight_ih_l0.T + layer.bias_ih_l0 + state @ layer.weight_hh_l0.T + layer.bias_hh_l0)  # type: ignore[operator, union-attr]
            states.append(state)
        by_hand = torch.stack(states, 1)
    assert_close(model(x), model.head(by_hand[:, -1]), rtol=0, atol=1e-6)
    assert vanilla_rnn(num_classes=2, in_chans=1, input_size=(32, 1))(images(2, 1, 32, 1)).shape == (2, 2)


def test_the_transformer_knows_the_places_of_the_rows() -> None:
    model = row_transformer(1, 8, 2, num_classes=3, in_chans=1, input_size=(6, 4)).eval()
    x = images(2, 1, 6, 4)
    assert not torch.allclose(model(x), model(x.flip(2)), atol=1e-3)
    model.waves = None
    assert_close(model(x), model(x.flip(2)), rtol=0, atol=1e-5)


def test_the_encoding_of_places_by_hand() -> None:
    waves = sine_waves(3, 4)
    expected = torch.tensor([math.sin(2), math.cos(2), math.sin(2 / 100), math.cos(2 / 100)])  # 10000^(2/4) = 100
    assert_close(waves[2], expected, rtol=0, atol=1e-6)
    assert waves[0].tolist() == [0, 1, 0, 1]
    assert sine_waves(3, 5).shape == (3, 5)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [8, (9, 6), 80])
def test_small_ones_exist_for_any_images_and_have_timms_protocol(name: str, size: Any) -> None:
    model: Any = create_model(name, num_classes=5, in_chans=1, input_size=size, **SMALL[name]).eval()
    x = images(2, 1, *((size, size) if isinstance(size, int) else size))
    assert model(x).shape == (2, 5)
    features = model.forward_features(x)
    assert torch.equal(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert model.get_classifier().out_features == 3
    made = config(model)
    assert made is not None
    create_model(made["name"], **made["arguments"]).load_state_dict(model.state_dict())
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)


def test_the_plain_resnets_stem_keeps_the_size_of_small_images() -> None:
    assert plain_resnet50([1], 4, input_size=64).adaptation == ["stem: 7x7 of stride 2 and pooling -> 3x3 of stride 1"]
    assert plain_resnet50([1], 4, input_size=64).forward_features(images(1, 3, 64, 64)).shape == (1, 16, 64, 64)
    assert plain_resnet50([1, 1], 4, input_size=96).forward_features(images(1, 3, 96, 96)).shape == (1, 32, 12, 12)
    assert not plain_resnet50([1], 4, input_size=96).adaptation


def test_what_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^deep_fcn: `depth` must be at least 1, got 0\.$"):
        deep_fcn(depth=0)
    with pytest.raises(ArgumentError, match=r"^wide_fcn: `width` must be at least 1, got -3\.$"):
        wide_fcn(width=-3)
    with pytest.raises(ArgumentError, match=r"^wide_fcn: `drop_rate` must lie in \[0, 1\), got 1\. It is the share of outputs dropped\.$"):
        wide_fcn(width=4, drop_rate=1)
    with pytest.raises(ArgumentError, match=r"^plain_resnet50: `depths` is empty\. Give the number of bottlenecks of each stage"):
        plain_resnet50([])
    with pytest.raises(ArgumentError, match=r"^plain_resnet50: every entry of `depths` must be at least 1, got \[2, 0\]\.$"):
        plain_resnet50([2, 0])
    with pytest.raises(ArgumentError, match=r"^row_transformer: `width` must be a multiple of `num_heads`, got 10 and 4\.$"):
        row_transformer(width=10, num_heads=4)
    reader: RowReader = vanilla_rnn(1, 4, 4, num_classes=2, in_chans=1, input_size=4)
    with pytest.raises(ShapeError, match=r"must be of shape \(1, 4, 4\), got \(1, 5, 4\)\. Build the network with this `input_size`"):
        reader(images(1, 1, 5, 4))
