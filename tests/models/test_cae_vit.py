"""cae: its encoder, against the paper's counts, positions by hand, and timm's vision transformer."""

import math
from typing import Any

import pytest
import timm
import torch
from support import images, parameters
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor, nn

import retinue
from retinue.errors import ArgumentError, CheckpointError
from retinue.models import config, pooled_features, untrained
from retinue.models.cae_attention import CrossAttention, SelfAttention, sincos_positions
from retinue.models.cae_vit import cae_vit, for_fine_tuning, from_official, initialise, to_timm

SMALL: dict[str, Any] = {"input_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}


def small(**changes: Any) -> Any:
    return retinue.create_model("cae_vit", **{"num_classes": 3, **SMALL, **changes})


@pytest.mark.parametrize(("variant", "count"), [("small", 21_594_624), ("base", 85_656_576), ("large", 303_124_480)])
def test_encoders_have_the_papers_numbers_of_parameters(variant: str, count: int) -> None:
    with torch.device("meta"):
        model = retinue.create_model(f"cae_{variant}_patch16_224", num_classes=0)
    assert parameters(model) == count
    assert model.patch_embed.grid_size == (14, 14)


def test_positions_of_a_grid_of_two_by_two() -> None:
    table = sincos_positions((2, 2), 8)
    sine, cosine = [0.84147098, 0.00999983], [0.54030231, 0.99995]
    still = [0.0, 0.0, 1.0, 1.0]
    by_hand = [still + still, still + sine + cosine, sine + cosine + still, sine + cosine + sine + cosine]
    torch.testing.assert_close(table, torch.tensor(by_hand), rtol=0, atol=1e-6)


def test_positions_are_those_of_timm_in_another_order() -> None:
    theirs = build_sincos2d_pos_embed([3, 5], 16, interleave_sin_cos=False).view(15, 2, 2, 4)  # all sines, then all cosines
    torch.testing.assert_close(sincos_positions((3, 5), 16), theirs.transpose(1, 2).flatten(1), rtol=0, atol=1e-6)


def test_the_class_token_has_no_position_and_patches_have_that_of_their_cell() -> None:
    model = small()
    with torch.no_grad():
        model.patch_embed.proj.weight.zero_()
        model.patch_embed.proj.bias.zero_()
        tokens = model._pos_embed(model.patch_embed(torch.zeros(1, 3, 16, 16)))
    assert torch.equal(tokens[0, 0], model.cls_token[0, 0])
    assert torch.equal(tokens[0, 1:], sincos_positions((4, 4), 16))
    assert "pos_embed" not in model.state_dict()


def test_attention_is_torchs_with_a_bias_of_zero_on_keys() -> None:
    ours, torchs = CrossAttention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    queries, keys, values = images(2, 3, 8), images(2, 5, 8, seed=1), images(2, 5, 8, seed=2)
    with torch.no_grad():
        for bias in (ours.q_bias, ours.v_bias):
            nn.init.normal_(bias)
        torchs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]))
        torchs.in_proj_bias.copy_(torch.cat([ours.q_bias, torch.zeros(8), ours.v_bias]))
        torchs.out_proj.load_state_dict(ours.proj.state_dict())
        torch.testing.assert_close(ours(queries, keys, values), torchs(queries, keys, values)[0], rtol=0, atol=1e-6)
        self_attention = SelfAttention(8, 2)
        self_attention.qkv.weight.copy_(torchs.in_proj_weight)
        for name in ("q_bias", "v_bias"):
            getattr(self_attention, name).copy_(getattr(ours, name))
        self_attention.proj.load_state_dict(ours.proj.state_dict())
        torch.testing.assert_close(self_attention(keys), ours(keys, keys, keys), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_timms_network_computes_the_same_with_our_tensors(pool: str) -> None:
    model = small(global_pool=pool)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("_bias", "gamma", ".bias")):
                nn.init.normal_(parameter)
    peer: Any = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3, init_values=0.1,
        global_pool=pool, fc_norm=False,
    )  # fmt: skip
    peer.load_state_dict(to_timm(model))
    x = images(2, 3, 16, 16)
    torch.testing.assert_close(peer.eval()(x), model.eval()(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(peer.forward_features(x), model.forward_features(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_published_names_are_understood(prefix: str) -> None:
    model, other = small(), small()
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter)
    names = {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}
    published: dict[str, Tensor] = {"teacher.norm.weight": torch.zeros(16)} if prefix else {}
    for name, tensor in model.state_dict().items():
        if not name.startswith("head."):
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            published[prefix + name] = tensor
    other.load_state_dict(from_official(published, other))
    x = images(2, 3, 16, 16)
    torch.testing.assert_close(other.forward_features(x), model.forward_features(x), rtol=0, atol=0)


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r'lacks the tensor "cls_token"\. The network must have the published variant'):
        from_official({}, small())
    tensors = small(embed_dim=8).state_dict()
    with pytest.raises(CheckpointError, match=r'"cls_token" has shape \(1, 1, 8\) in the checkpoint and \(1, 1, 16\) in the network'):
        from_official(tensors, small())


def test_it_has_timms_protocol() -> None:
    model = small()
    x = images(2, 3, 16, 16)
    assert model.forward_features(x).shape == (2, 17, 16)
    torch.testing.assert_close(pooled_features(model, x), model.forward_features(x)[:, 1:].mean(1))
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    assert [tap["module"] for tap in model.feature_info] == ["blocks.0", "blocks.1"]
    assert [m.shape for m in model.forward_intermediates(x, intermediates_only=True)] == [(2, 16, 4, 4)] * 2
    again = untrained(model)
    assert config(again) == config(model)
    assert timm.create_model("retinue_cae_small_patch16_224", num_classes=0, depth=1).num_classes == 0


def test_another_size_of_images_gets_the_positions_of_its_grid() -> None:
    model = small()
    model.set_input_size((24, 16))
    assert torch.equal(model.pos_embed[0], sincos_positions((6, 4), 16))
    assert model(images(1, 3, 24, 16)).shape == (1, 3)


@pytest.mark.parametrize(("side", "patch"), [(16, 2), (28, 4), (32, 4), (64, 8), (224, 16), (384, 16), (5, 1)])
def test_the_patch_leaves_seven_on_a_side(side: int, patch: int) -> None:
    model = retinue.create_model("cae_vit", num_classes=0, input_size=side, embed_dim=8, depth=1, num_heads=1)
    assert model.patch_embed.patch_size == (patch, patch)
    assert bool(model.adaptation) == (patch != 16)


def test_xavier_and_scaled_weights() -> None:
    model = small(embed_dim=64, num_heads=4, depth=3)
    bound = math.sqrt(6 / (64 + 256))
    weight = model.blocks[0].mlp.fc1.weight
    assert 0.95 * bound < weight.detach().abs().max().item() <= bound
    initialise(model, "scaled")
    assert model.blocks[1].mlp.fc1.weight.detach().abs().max().item() <= 0.02
    for number, block in enumerate(model.blocks, start=1):
        for layer in (block.attn.proj, block.mlp.fc2):
            largest = layer.weight.detach().abs().max().item()
            assert 0.9 * 0.02 / math.sqrt(2 * number) < largest <= 0.02 / math.sqrt(2 * number) + 1e-9
    assert not model.blocks[0].mlp.fc2.bias.any()
    assert 0 < model.cls_token.detach().abs().max().item() <= 0.02


@pytest.mark.parametrize("name", ["cae_vit", "timm:vit_tiny_patch16_224"])
def test_the_head_of_fine_tuning_is_mean_then_norm_then_linear(name: str) -> None:
    options = {"input_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    model: Any = retinue.create_model(name, num_classes=0, **options)
    tuned: Any = for_fine_tuning(model, 5, drop_path_rate=0.1).eval()
    x = images(2, 3, 16, 16)
    tokens = model.eval().forward_features(x)
    blocks = tuned.forward_features(x)
    torch.testing.assert_close(model.norm(blocks), tokens, rtol=0, atol=1e-6)  # the norm before the mean is gone
    torch.testing.assert_close(tuned(x), tuned.head(tuned.fc_norm(blocks[:, 1:].mean(1))), rtol=0, atol=1e-6)
    assert tuned.blocks[1].drop_path1.drop_prob == pytest.approx(0.1)
    assert config(tuned) is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 3}, r"16x16 px cannot be cut into patches of 3x3\. Choose a `patch_size` that divides both sides, such as 2"),
        ({"embed_dim": 6, "num_heads": 2}, r"the width must be a multiple of 4, got 6"),
        ({"num_heads": 3}, r"the width must be a multiple of the number of heads, got 16 and 3"),
        ({"depth": 0}, r"`depth` must be at least 1, got 0"),
        ({"drop_path_rate": 1.0}, r"`drop_path_rate` must lie in \[0, 1\), got 1\.0"),
        ({"init": "xavir"}, r'no `init` is called "xavir"\. Did you mean xavier'),
        ({"global_pool": "max"}, r'no `global_pool` is called "max"'),
        ({"dept": 3}, r'no option is called "dept"\. Did you mean depth'),
    ],
)
def test_arguments_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        small(**options)


def test_a_network_without_tokens_has_no_such_head() -> None:
    with pytest.raises(ArgumentError, match=r"must be a plain vision transformer from retinue\.create_model, got SmallConvNet|got Network"):
        for_fine_tuning(retinue.models.tiny("ours"), 3)
    assert cae_vit(num_classes=2, **SMALL).num_classes == 2
