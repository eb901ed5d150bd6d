"""Any network of timm's at any image size: adapted where it can be, said how, and refused by name where it cannot."""

import logging
from typing import Any

import pytest
import timm
import torch
from support import images, reductions
from torch import nn

import retinue
from retinue.errors import ArgumentError
from retinue.models import config, create_model, feature_size, pooled_features, timm_networks
from retinue.models.small_images import last_sides

CONVOLUTIONAL = {
    "resnet18": {"channels": [8, 8, 16, 16], "stem_width": 8},
    "resnext50_32x4d": {"layers": [1, 1, 1, 1]},
    "resnet50d": {"layers": [1, 1, 1, 1]},
    "resnetaa50": {"layers": [1, 1, 1, 1]},
    "regnety_002": {},
    "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small": {},
    "efficientnet_b0": {},
    "tf_efficientnet_b0": {},
    "convnext_atto": {},
    "densenet121": {"growth_rate": 8, "block_config": [2, 2, 2, 2]},
    "vgg11": {},
    "ghostnet_050": {},
    "mnasnet_050": {},
    "inception_v3": {},
    "xception41": {},
    "dla34": {},
    "repvgg_a0": {},
    "poolformer_s12": {},
    "inception_next_tiny": {"depths": [1, 1, 1, 1]},
    "resnetv2_50": {"layers": [1, 1, 1, 1]},
    "tresnet_m": {},
}
WITH_ATTENTION = {
    "vit_tiny_patch16_224": {"depth": 2},
    "deit_tiny_distilled_patch16_224": {"depth": 2},
    "swin_tiny_patch4_window7_224": {"depths": [1, 1, 1, 1]},
    "swinv2_tiny_window8_256": {"depths": [1, 1, 1, 1]},
    "cait_xxs24_224": {"depth": 2},
    "coatnet_0_224": {},
    "levit_128s": {},
    "pvt_v2_b0": {},
    "mobilevit_xxs": {},
    "davit_tiny": {},
    "convmixer_768_32": {},
}


def on_meta(name: str, size: Any = None, **options: Any) -> Any:
    with torch.device("meta"):
        return create_model(f"timm:{name}", num_classes=10, input_size=size, **options)


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


OFTEN = ("resnet18", "resnetaa50", "regnety_002", "mobilenetv3_small_050", "convnext_atto", "densenet121", "vgg11", "inception_v3")
OFTEN += ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "coatnet_0_224", "levit_128s")


@pytest.mark.parametrize(
    ("name", "size"), [(name, 32) for name in {**CONVOLUTIONAL, **WITH_ATTENTION}] + [(name, size) for name in OFTEN for size in (28, 64)]
)
def test_any_family_fits_small_images(name: str, size: int) -> None:
    options = {**CONVOLUTIONAL, **WITH_ATTENTION}[name]
    model = on_meta(name, size, **options)
    sides, trouble = last_sides(model, 3, (size, size))
    assert trouble == ""
    assert min(sides) >= 4
    if name in CONVOLUTIONAL:
        assert max(sides) <= 8, "no stride is lowered that need not be"
        assert any("stride" in note for note in model.adaptation)
        assert shapes(model) == shapes(on_meta(name, **options)), "published weights still load"
        stated = reductions(model)
        assert stated == sorted(stated)
        assert abs(size / stated[-1] - sides[0]) <= 1.2, "feature_info states the strides that are left"


@pytest.mark.parametrize(
    "name", ["resnet18", "regnety_002", "mobilenetv3_small_050", "vit_tiny_patch16_224", "coatnet_0_224", "levit_128s"]
)
def test_adapted_networks_compute_and_have_the_protocol(name: str) -> None:
    model: Any = create_model(f"timm:{name}", num_classes=5, in_chans=1, input_size=32, **{**CONVOLUTIONAL, **WITH_ATTENTION}[name]).eval()
    x = images(2, 1, 32, 32)
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == (2, 5)
        assert torch.equal(model.forward_head(model.forward_features(x)), logits)
        assert pooled_features(model, x).shape == (2, feature_size(model))
        assert not torch.equal(logits[0], logits[1])
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)


@pytest.mark.parametrize("name", ["resnet18", "regnety_002", "mobilenetv3_small_050", "convnext_atto", "densenet121"])
def test_the_maps_of_the_pyramid_have_the_stated_strides(name: str) -> None:
    model = create_model(f"timm:{name}", num_classes=5, input_size=32, features_only=True, **CONVOLUTIONAL[name]).eval()
    with torch.no_grad():
        maps = model(images(1, 3, 32, 32))
    assert [32 // one.shape[-1] for one in maps] == reductions(model)
    assert maps[-1].shape[-1] == 4
    assert model.adaptation
    rebuilt = config(model)
    assert rebuilt is not None
    assert shapes(create_model(rebuilt["name"], **rebuilt["arguments"])) == shapes(model)


def test_a_small_resnet_is_the_one_that_people_change_by_hand() -> None:
    options = CONVOLUTIONAL["resnet18"]
    model: Any = create_model("timm:resnet18", num_classes=10, input_size=32, **options).eval()
    by_hand: Any = timm.create_model("resnet18", num_classes=10, **options).eval()
    by_hand.conv1.stride = (1, 1)
    by_hand.maxpool = nn.Identity()
    by_hand.load_state_dict(model.state_dict())
    x = images(2, 3, 32, 32)
    assert torch.equal(model(x), by_hand(x))
    assert model.adaptation == ["conv1: stride 2 -> 1", "maxpool: stride 2 -> 1 (removed)"]


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_without_a_size_it_is_timms_own_network(name: str) -> None:
    options = {**CONVOLUTIONAL, **WITH_ATTENTION}[name]
    torch.manual_seed(0)
    ours: Any = create_model(f"timm:{name}", num_classes=7, **options).eval()
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=7, **options).eval()
    x = images(1, 3, 224, 224)
    assert torch.equal(ours(x), theirs(x))
    assert ours.adaptation == []


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "coatnet_0_224"])
def test_at_its_own_size_nothing_is_changed(name: str) -> None:
    options = {**CONVOLUTIONAL, **WITH_ATTENTION}[name]
    model = on_meta(name, 224, **options)
    assert model.adaptation == []
    assert shapes(model) == shapes(on_meta(name, **options))


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("vit_tiny_patch16_224", 32, ["img_size -> 32x32", "patch_size 16 -> 4: 8x8 tokens"]),
        ("vit_tiny_patch16_224", (32, 48), ["img_size -> 32x48", "patch_size 16 -> 4: 8x12 tokens"]),
        ("vit_tiny_patch16_224", 64, ["img_size -> 64x64", "patch_size 16 -> 8: 8x8 tokens"]),
        ("vit_tiny_patch16_224", 112, ["img_size -> 112x112"]),
        ("swin_tiny_patch4_window7_224", 28, ["img_size -> 28x28", "patch_size 4 -> 1: 28x28 tokens"]),  # 28, 14, 7 and 4 wide
        ("swin_tiny_patch4_window7_224", 64, ["img_size -> 64x64", "patch_size 4 -> 2: 32x32 tokens", "window_size 7 -> 4"]),
        ("xcit_nano_12_p16_224", 32, ["img_size -> 32x32", "patch_size 16 -> 8: 4x4 tokens"]),  # timm has 8 and 16 alone
        ("levit_128s", 64, ["built for 256x256 px, then:", "stem.conv1.linear: stride 2 -> 1", "stem.conv2.linear: stride 2 -> 1"]),
        (
            "maxvit_tiny_tf_224",
            64,  # windows and grids of 4x4, as for the larger image
            ["built for 128x128 px, then:", "stem.conv1: stride 2 -> 1"],
        ),
        ("convnext_atto", 32, ["stem.0: stride 4 -> 1"]),
        ("convnext_atto", 64, ["stem.0: stride 4 -> 2"]),
    ],
)
def test_what_was_changed_is_said(name: str, size: Any, said: list[str]) -> None:
    assert on_meta(name, size, **WITH_ATTENTION.get(name, {})).adaptation == said


def test_what_was_changed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "retinue"):
        on_meta("convnext_atto", (32, 64))
    assert caplog.messages == ["timm:convnext_atto at 32x64 px: stem.0: stride 4 -> 1"]


def test_a_patch_or_size_that_the_user_gives_is_kept() -> None:
    model = on_meta("vit_tiny_patch16_224", 32, patch_size=8, depth=1)
    assert model.patch_embed.patch_size == (8, 8)
    assert model.adaptation == ["img_size -> 32x32"]
    model = on_meta("vit_tiny_patch16_224", 32, img_size=32, patch_size=2, depth=1)
    assert model.patch_embed.num_patches == 256
    assert model.adaptation == []


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "mixer_s16_224",
            32,
            r'"timm:mixer_s16_224" cannot be adapted to images of 32x32 px: timm does not build it with img_size=\(32, 32\), patch_size=4 '
            r"\(.*multiple values.*\)\. Enlarge them: input_size=64 works, or take a network that is convolutional throughout\.$",
        ),
        (
            "hrnet_w18_small",
            28,
            r'"timm:hrnet_w18_small" cannot .* 28x28 px: its layers do not fit together \(.*\)\. Enlarge them: input_size=32 works',
        ),
        ("vit_tiny_patch16_224", 3, r"its last map would be 3x3, and less than 4x4 is too coarse\. Enlarge them: input_size=32 works"),
    ],
)
def test_what_cannot_be_adapted_is_refused_by_name_with_a_way_out(name: str, size: int, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        on_meta(name, size)


def test_the_way_out_is_true_and_there_is_one_at_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_meta("mixer_s16_224", 64).adaptation == ["img_size -> 64x64"]
    monkeypatch.setattr(timm_networks, "_smallest", lambda *_: None)
    with pytest.raises(ArgumentError, match=r"Build it for its own size, without `input_size`, or take a network that is convolutional"):
        on_meta("mixer_s16_224", 32)


def test_nothing_is_printed_while_sizes_are_tried(capfd: pytest.CaptureFixture[str]) -> None:
    on_meta("densenet121", 28, **CONVOLUTIONAL["densenet121"])
    with pytest.raises(ArgumentError):
        on_meta("hrnet_w18_small", 28)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_wrong_names_and_options_are_refused() -> None:
    with pytest.raises(
        ArgumentError,
        match=r'^create_model: no network of timm is called "resnet181"\. Did you mean .*resnet1.*retinue\.list_models\("timm:\*"\)',
    ):
        create_model("timm:resnet181")
    with pytest.raises(ArgumentError, match=r'^timm:resnet18: no option is called "layer"\. Did you mean layers'):
        create_model("timm:resnet18", layer=[1, 1, 1, 1])
    with pytest.raises(ArgumentError, match=r'^timm:vit_tiny_patch16_224: no option is called "dept"\. Did you mean depth'):
        create_model("timm:vit_tiny_patch16_224", input_size=32, dept=1)
    with pytest.raises(ArgumentError, match=r'^create_model: timm cannot build "resnet18" with num_classes=10, in_chans=3, layers=7: '):
        create_model("timm:resnet18", num_classes=10, layers=7)
    with pytest.raises(ArgumentError, match=r'^create_model: timm cannot build "mixer_s16_224" with .*, patch_size=8: .*multiple values'):
        create_model("timm:mixer_s16_224", patch_size=8)


def test_timms_own_names_of_weights_are_names_too() -> None:
    model = on_meta("resnet18.a1_in1k", 32)
    assert retinue.models.config(model)["name"] == "timm:resnet18.a1_in1k"
    with pytest.raises(ArgumentError, match=r'timm cannot build "resnet18\.nobody" with .*: Invalid pretrained tag'):
        create_model("timm:resnet18.nobody")
