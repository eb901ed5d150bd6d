"""The networks of SimCLRv2: parameter counts, the layers that TensorFlow pads in its way, and the fine-tuned classifier."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from support import images, parameters, reductions
from torch import nn
from torch.testing import assert_close

import retinue
from retinue.engine import train_mode
from retinue.errors import ArgumentError
from retinue.models import tiny
from retinue.models.projection import ProjectedClassifier, ProjectionHead, projected_classifier
from retinue.models.simclr_resnet import SamePool, SelectiveKernel, ShortcutPool, simclr_resnet

COUNTS = {
    (50, 1, False): 23_508_032, (50, 1, True): 35_215_584, (50, 2, False): 93_907_072, (50, 2, True): 140_306_048,
    (101, 1, False): 42_500_160, (101, 1, True): 64_662_304, (152, 1, False): 58_143_808, (152, 1, True): 88_940_896,
    (152, 2, False): 232_253_568, (152, 2, True): 353_398_528, (152, 3, True): 794_704_160,
}  # fmt: skip


@pytest.mark.parametrize(("depth", "width", "sk"), COUNTS)
def test_the_encoders_have_the_parameters_of_the_table(depth: int, width: int, sk: bool) -> None:
    with torch.device("meta"):
        network = simclr_resnet(depth, width, 0.0625 if sk else 0.0, num_classes=0)
    assert parameters(network) == COUNTS[depth, width, sk]


def test_the_small_stem() -> None:
    with torch.device("meta"):
        network = simclr_resnet(18, small_stem=True, num_classes=0)
        assert parameters(simclr_resnet(18, num_classes=0, input_size=32)) == parameters(network) == 11_173_056
    assert reductions(network) == [1, 1, 2, 4, 8]
    assert network.adaptation == ["stem: 3x3 without stride or pooling"]


@pytest.mark.parametrize(("width", "count"), [(2048, 8_659_072), (4096, 34_095_232), (6144, 76_308_608)])
def test_the_heads_have_the_parameters_of_the_page(width: int, count: int) -> None:
    with torch.device("meta"):
        assert parameters(ProjectionHead(width)) == count


@pytest.mark.parametrize(("sk", "side"), [(0.0, 64), (0.0625, 64), (0.0625, 33)])
def test_the_pyramid_has_the_shapes_it_states(sk: float, side: int) -> None:
    network: Any = retinue.create_model("simclr_resnet", sk_ratio=sk, num_classes=5, input_size=side).eval()
    x = images(2, 3, side, side)
    last, maps = network.forward_intermediates(x)
    assert [(tap["num_chs"], -(-side // tap["reduction"])) for tap in network.feature_info] == [tuple(m.shape[1:3]) for m in maps]
    assert [m.shape[1] for m in maps] == [64, 256, 512, 1024, 2048]
    assert network(x).shape == (2, 5)
    assert torch.equal(last, network.forward_features(x))


def test_a_block_begins_as_its_shortcut() -> None:
    network: Any = simclr_resnet(50, sk_ratio=0.0625, small_stem=True, num_classes=0).eval()
    x = images(1, 64, 6, 6).relu()
    first, second = network.stages[0][0], network.stages[0][1]
    assert_close(first(x), first.shortcut(x).relu())
    y = images(1, 256, 6, 6).relu()
    assert torch.equal(second(y), y)


def test_without_selective_kernels_it_is_the_usual_resnet() -> None:
    """At an odd side both pool alike; timm has no projection in the first stage of a ResNet-18, so a bottleneck is compared."""
    ours: Any = simclr_resnet(50, num_classes=7).eval()
    theirs = timm.create_model("resnet50", num_classes=7).eval()
    names = {"stem.0.conv": "conv1", "stem.0.bn": "bn1", "head.fc": "fc"}
    for i in range(4):
        for j, block in enumerate(ours.stages[i]):
            for k in range(3):
                names |= {f"stages.{i}.{j}.convs.{k}.conv": f"layer{i + 1}.{j}.conv{k + 1}"}
                names |= {f"stages.{i}.{j}.convs.{k}.bn": f"layer{i + 1}.{j}.bn{k + 1}"}
            if len(list(block.shortcut.parameters())):
                names |= {f"stages.{i}.{j}.shortcut.conv": f"layer{i + 1}.{j}.downsample.0"}
                names |= {f"stages.{i}.{j}.shortcut.bn": f"layer{i + 1}.{j}.downsample.1"}
    own = ours.state_dict()
    theirs.load_state_dict({f"{names[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": value for name, value in own.items()})
    for network in (ours, theirs):
        torch.manual_seed(0)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data.fill_(0.7)
    x = images(1, 3, 65, 65)
    assert_close(ours(x), theirs(x))


def test_pools_pad_below_and_on_the_right() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert SamePool(3, 2)(-x)[0, 0].tolist() == [[0, -2], [-8, -10]], "windows begin at 0 and 2: the last one has two cells a side"
    odd = torch.arange(25.0).view(1, 1, 5, 5)
    assert torch.equal(SamePool(3, 2)(odd), F.max_pool2d(odd, 3, 2, 1)), "at odd sides as everywhere"
    mean = ShortcutPool(1)(x)[0, 0]
    assert mean[0, 0] == (0 + 1 + 4 + 5) / 4
    assert mean[0, 3] == (3 + 7) / 2, "what is added at stride 1 is not counted"
    assert mean[3, 3] == 15
    assert torch.equal(ShortcutPool(2)(x), F.avg_pool2d(x, 2))
    assert ShortcutPool(2)(odd)[0, 0, 2, 2] == 24 / 4, "what is added at stride 2 is counted"
    assert ShortcutPool(2)(odd).shape == (1, 1, 3, 3)


def test_a_selective_kernel_weighs_its_two_halves() -> None:
    torch.manual_seed(0)
    layer: Any = SelectiveKernel(8, 2, 0.0625).eval()
    assert layer.squeeze.conv.out_channels == 32, "32 at least"
    assert SelectiveKernel(1024, 1, 0.0625).squeeze.conv.out_channels == 64
    x = images(2, 8, 6, 6)
    one, two = layer.convs(x).chunk(2, 1)
    nn.init.zeros_(layer.select.weight)
    assert_close(layer(x), (one + two) / 2)
    nn.init.normal_(layer.select.weight)
    scores = layer.select(layer.squeeze((one + two).mean((2, 3), keepdim=True)))
    share = (scores[:, :8] - scores[:, 8:]).sigmoid()
    assert_close(layer(x), share * one + (1 - share) * two)


def test_weights_are_drawn_by_fan_in_and_cut_off() -> None:
    torch.manual_seed(0)
    weight = simclr_resnet(18, num_classes=0).stages[3][1].convs[0].conv.weight.detach()  # type: ignore[index, union-attr]
    deviation = (512 * 9) ** -0.5
    assert float(weight.std()) == pytest.approx(deviation, rel=0.01)
    assert float(weight.abs().max()) <= 2 * deviation / 0.8796 + 1e-6


def test_the_head_has_all_its_layers_and_ends_without_shift() -> None:
    torch.manual_seed(0)
    head = ProjectionHead(6, hidden_dim=5, out_dim=4)
    x = images(3, 6)
    layers = head(x, return_layers=True)
    assert [h.shape[1] for h in layers] == [6, 5, 5, 4]
    assert torch.equal(layers[0], x)
    assert float(layers[1].min()) >= 0
    assert float(layers[3].min()) < 0
    assert_close(layers[3].mean(0), torch.zeros(4))
    head.eval()
    for k in range(4):
        assert torch.equal(head.truncate(k)(x), head(x, return_layers=True)[k])
    assert [name for name, _ in head.layers[2].named_parameters()] == ["0.weight", "1.weight"]
    assert float(ProjectionHead(300).layers[0][0].weight.detach().std()) == pytest.approx(0.01, rel=0.02)  # type: ignore[index, union-attr, operator, arg-type]


@pytest.mark.parametrize("from_layer", [0, 1, 3])
@pytest.mark.parametrize("kind", ["ours", "timm_cnn", "timm_vit", "bare"])
def test_a_fresh_classifier_answers_zero_whatever_it_sees(kind: Any, from_layer: int) -> None:
    model = ProjectedClassifier(tiny(kind), ProjectionHead(32, out_dim=8), from_layer, num_classes=7)
    x = images(2, 3, 32, 32)
    assert model(x).abs().max() == 0
    hidden = model.forward_head(model.forward_features(x), pre_logits=True)
    assert hidden.shape == (2, 8 if from_layer == 3 else 32)
    nn.init.normal_(model.get_classifier().weight)  # type: ignore[arg-type]
    assert_close(model.eval()(x), model.get_classifier()(model.forward_head(model.forward_features(x), pre_logits=True)))
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)


def test_the_classifier_is_rebuilt_by_name() -> None:
    arguments: dict[str, Any] = {"backbone": "small_convnet", "backbone_args": {"widths": [8, 8]}, "from_layer": 2, "out_dim": 5}
    arguments["num_layers"] = 2
    model: Any = retinue.create_model("projected_classifier", num_classes=3, input_size=16, **arguments)
    assert model.head_hidden_size == 5
    assert set(model.state_dict()) >= {"fc.weight", "projection.0.0.weight", "projection.1.1.weight", "backbone.stem.0.conv.weight"}
    assert projected_classifier("mlp", {"widths": [4]}, num_classes=2, in_chans=1, input_size=8)(images(2, 1, 8, 8)).shape == (2, 2)


@pytest.mark.parametrize(
    ("after_block", "frozen"),
    [(-1, ""), (0, "stem."), (1, "stem. stages.0."), (3, "stem. stages.0. stages.1. stages.2."), (4, "stem. stages.")],
)
def test_what_is_frozen_stays_in_evaluation(after_block: int, frozen: str) -> None:
    network = simclr_resnet(18, small_stem=True, num_classes=0)
    model = ProjectedClassifier(network, ProjectionHead(512), num_classes=3)
    model.freeze(after_block)
    for switch in (train_mode, ProjectedClassifier.train):
        switch(model)
        for name, parameter in model.named_parameters():
            still = name.startswith("backbone.") and name.removeprefix("backbone.").startswith(tuple(frozen.split()))
            assert parameter.requires_grad != (still and bool(frozen)), name
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                still = bool(frozen) and name.removeprefix("backbone.").startswith(tuple(frozen.split()))
                assert module.training != still, name
    model.freeze(-1)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 26}, r"`depth` must be one of 18, 34, 50, 101, 152, 200, got 26\."),
        ({"width_multiplier": 0}, r"`width_multiplier` must be 1 or a larger whole number, got 0\. It is 1 to 3\."),
        ({"width_multiplier": 1.5}, r"`width_multiplier` must be 1 or a larger whole number, got 1\.5"),
        ({"sk_ratio": -0.1}, r"`sk_ratio` must lie in \[0, 1\], got -0\.1\. The paper has 0\.0625\."),
        ({"depth": 34, "sk_ratio": 0.0625}, r"bottlenecks, which depth 34 has none of, got sk_ratio=0\.0625\. Take depth=50 or m"),
    ],
)
def test_networks_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^simclr_resnet: .*{message}"):
        retinue.create_model("simclr_resnet", **options)


def test_heads_and_places_that_cannot_be_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^ProjectionHead: `num_layers` must be at least 1, got 0\. The paper has 3 layers, the "):
        ProjectionHead(8, num_layers=0)
    with pytest.raises(ArgumentError, match=r"^ProjectionHead: there are layers 0 \(the features\) to 3, got 4\. The paper takes 1\."):
        ProjectedClassifier(tiny("ours"), ProjectionHead(32), from_layer=4)
    model = ProjectedClassifier(tiny("bare"), ProjectionHead(32))
    with pytest.raises(ArgumentError, match=r"^freeze: `after_block` must lie between -1 \(all learns\) and 4 \(the encoder is .*, got 5"):
        model.freeze(5)
    with pytest.raises(
        ArgumentError, match=r"^freeze: Adapted does not say what its stages are \(group_matcher\), got `after_block` 2\. Take -1"
    ):
        model.freeze(2)
    model.freeze(4)
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
