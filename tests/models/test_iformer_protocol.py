"""iFormer behind timm's protocol, with weights in the official layout, under compilers and exporters, and its recipes."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from support import images, reductions
from torch import Tensor, nn

from retinue.cli import recipes
from retinue.engine.optim import Schedule
from retinue.errors import CheckpointError
from retinue.models import create_model
from retinue.models.iformer_weights import from_official, to_official

TINY: dict[str, Any] = {"depths": [1, 2, 1, 1], "embed_dims": [12, 16, 20, 24], "num_heads": [3, 4, 5, 6], "low_heads": [1, 2, 2, 4, 5]}


def small(**options: Any) -> Any:
    return create_model("iformer", **{"num_classes": 5, "input_size": 64, **TINY, **options})


def randomised(model: Any) -> Any:
    """Fresh norms are all alike and fresh layer scales hide their blocks: something swapped would go unnoticed."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var") or "layer_scale" in name or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point():
            tensor.normal_(0, 0.2)
    return model.eval()


OFFICIAL_BLOCK = [
    *("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "attn.high_mixer.conv1.weight", "attn.high_mixer.proj1.weight"),
    *("attn.high_mixer.proj2.weight", "attn.high_mixer.proj2.bias", "attn.low_mixer.qkv.weight", "attn.low_mixer.qkv.bias"),
    *("attn.conv_fuse.weight", "attn.proj.weight", "attn.proj.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"),
]


def official_names(depths: list[int]) -> set[str]:
    """Write out the names of a published file, as the page lists them."""
    names = {f"pos_embed{k}" for k in range(1, 5)} | {f"{layer}.{kind}" for layer in ("norm", "head") for kind in ("weight", "bias")}
    pairs = [("patch_embed.proj1", "patch_embed.norm1"), ("patch_embed.proj2", "patch_embed.norm2")]
    pairs += [(f"patch_embed{k}.proj", f"patch_embed{k}.norm") for k in (2, 3, 4)]
    for proj, norm in pairs:
        names |= {f"{proj}.weight", f"{proj}.bias"}
        names |= {f"{norm}.{kind}" for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    for k, depth in enumerate(depths, start=1):
        scales = ["layer_scale_1", "layer_scale_2"] if k > 2 else []
        names |= {f"blocks{k}.{j}.{name}" for j in range(depth) for name in (*OFFICIAL_BLOCK, *scales)}
    return names


@pytest.mark.parametrize(("variant", "entries"), [("small", 373), ("base", 593), ("large", 707)])
def test_every_official_name_has_its_place(variant: str, entries: int) -> None:
    with torch.device("meta"):
        model: Any = create_model(f"iformer_{variant}")
    official = to_official(model)
    names = official_names([len(stage.blocks) for stage in model.stages])
    assert official.keys() == names
    assert len(names) == entries
    back = from_official(official, model)
    assert back.keys() == model.state_dict().keys()
    assert all(back[name] is tensor for name, tensor in zip(model.state_dict(), official.values(), strict=True))  # both in our order
    assert official["blocks1.0.attn.low_mixer.qkv.weight"].shape == (96, 32)
    assert official["pos_embed3"].shape == (1, 14, 14, {"small": 320, "base": 384, "large": 448}[variant])


def official_network(w: dict[str, Tensor], x: Tensor, depths: list[int], heads: list[int], low_heads: list[int]) -> Tensor:
    """The page's network once more, step by step, on tensors in the official layout."""

    def conv_bn(x: Tensor, proj: str, norm: str) -> Tensor:
        x = F.conv2d(x, w[f"{proj}.weight"], w[f"{proj}.bias"], stride=2, padding=1)
        shape = (1, -1, 1, 1)
        x = (x - w[f"{norm}.running_mean"].view(shape)) / (w[f"{norm}.running_var"].view(shape) + 1e-5).sqrt()
        return x * w[f"{norm}.weight"].view(shape) + w[f"{norm}.bias"].view(shape)

    def layer_norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def mixer(x: Tensor, p: str, head_size: int, low: int, pool: int) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        split = x.shape[1] - low * head_size
        half = split // 2
        u = F.conv2d(x[:, :half], w[f"{p}.high_mixer.conv1.weight"])
        u = F.gelu(F.conv2d(u, w[f"{p}.high_mixer.proj1.weight"], padding=1, groups=u.shape[1]))
        v = F.max_pool2d(x[:, half:split], 3, 1, 1)
        v = F.gelu(F.conv2d(v, w[f"{p}.high_mixer.proj2.weight"], w[f"{p}.high_mixer.proj2.bias"]))
        z = F.avg_pool2d(x[:, split:], pool) if pool > 1 else x[:, split:]
        side = z.shape[2:]
        tokens = z.permute(0, 2, 3, 1).flatten(1, 2)
        qkv = F.linear(tokens, w[f"{p}.low_mixer.qkv.weight"], w[f"{p}.low_mixer.qkv.bias"])
        q, k, v_low = qkv.view(len(x), -1, 3, low, head_size).permute(2, 0, 3, 1, 4)
        attended = (q @ k.transpose(2, 3) * head_size**-0.5).softmax(-1) @ v_low
        attended = attended.transpose(2, 3).reshape(len(x), low * head_size, *side)
        y = torch.cat([u, v, F.interpolate(attended, scale_factor=float(pool))], 1)
        y = y + F.conv2d(y, w[f"{p}.conv_fuse.weight"], padding=1, groups=y.shape[1])
        return F.conv2d(y, w[f"{p}.proj.weight"], w[f"{p}.proj.bias"]).permute(0, 2, 3, 1)

    rest = iter(low_heads)
    x = F.gelu(conv_bn(x, "patch_embed.proj1", "patch_embed.norm1"))
    x = conv_bn(x, "patch_embed.proj2", "patch_embed.norm2").permute(0, 2, 3, 1)
    for k, depth in enumerate(depths, start=1):
        if k > 1:
            x = conv_bn(x.permute(0, 3, 1, 2), f"patch_embed{k}.proj", f"patch_embed{k}.norm").permute(0, 2, 3, 1)
        table = w[f"pos_embed{k}"].permute(0, 3, 1, 2)
        x = x + F.interpolate(table, size=x.shape[1:3], mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
        for j in range(depth):
            p = f"blocks{k}.{j}"
            change = mixer(layer_norm(x, f"{p}.norm1"), f"{p}.attn", x.shape[-1] // heads[k - 1], next(rest), 2 if k < 3 else 1)
            x = x + w.get(f"{p}.layer_scale_1", 1) * change
            hidden = F.gelu(F.linear(layer_norm(x, f"{p}.norm2"), w[f"{p}.mlp.fc1.weight"], w[f"{p}.mlp.fc1.bias"]))
            x = x + w.get(f"{p}.layer_scale_2", 1) * F.linear(hidden, w[f"{p}.mlp.fc2.weight"], w[f"{p}.mlp.fc2.bias"])
    return F.linear(layer_norm(x, "norm").mean((1, 2)), w["head.weight"], w["head.bias"])


@pytest.mark.parametrize("size", [64, 128])
@torch.no_grad()
def test_weights_in_the_official_layout_give_the_official_logits(size: int) -> None:
    source = randomised(small(input_size=64, stem_stride=4, official=True))
    weights = {name: tensor.clone() for name, tensor in to_official(source).items()}
    ours = randomised(small(input_size=size, stem_stride=4)).eval()
    ours.load_state_dict(from_official(weights, ours))
    x = images(2, 3, size, size)
    expected = official_network(weights, x, TINY["depths"], TINY["num_heads"], TINY["low_heads"])
    assert expected.std() > 0.3
    torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_small_network_gives_the_official_logits() -> None:
    torch.manual_seed(0)
    ours: Any = create_model("iformer_small").eval()
    for name, tensor in ours.state_dict().items():
        if name.endswith("running_var") or "layer_scale" in name:
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            tensor.normal_(0, 0.2)
    plan = ([3, 3, 9, 3], [3, 6, 10, 12], [1] * 3 + [3] * 3 + [7] * 4 + [9] * 5 + [11] * 3)
    x = images(1, 3, 64, 64)
    expected = official_network(to_official(ours), x, *plan)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-4)


def test_positions_are_interpolated_to_the_networks_size() -> None:
    weights = to_official(randomised(small()))
    taken = from_official(weights, small(input_size=128, stem_stride=2))
    expected = F.interpolate(weights["pos_embed2"].permute(0, 3, 1, 2), size=(32, 32), mode="bilinear", align_corners=False)
    assert torch.equal(taken["stages.1.pos_embed"], expected.permute(0, 2, 3, 1))


def test_a_network_for_small_images_takes_the_stages_that_it_has() -> None:
    with torch.device("meta"):
        weights, ours = to_official(create_model("iformer_small")), create_model("iformer_small", input_size=32)
    taken = from_official(weights, ours)
    published = set(map(id, weights.values()))
    tables = {f"stages.{i}.pos_embed" for i in range(3)}  # interpolated
    assert {name for name, tensor in taken.items() if id(tensor) not in published} - tables == {
        "tail.weight",
        "tail.bias",
        "head.fc.weight",
        "head.fc.bias",
    }
    assert taken["stages.2.blocks.8.mlp.fc1.weight"] is weights["blocks3.8.mlp.fc1.weight"]


def test_a_classifier_of_other_classes_keeps_what_it_has() -> None:
    source, ours = randomised(small()), small(num_classes=3)
    before = ours.head.fc.weight.clone()
    ours.load_state_dict(from_official(to_official(source), ours))
    assert torch.equal(ours.head.fc.weight, before)
    assert torch.equal(ours.tail.weight, source.tail.weight)
    headless = small(num_classes=0).eval()
    headless.load_state_dict(from_official(to_official(source), headless))
    x = images(1, 3, 64, 64)
    assert torch.equal(headless(x), source.forward_head(source.forward_features(x), pre_logits=True))


def test_weights_of_another_network_are_refused_with_the_tensors_name() -> None:
    weights = to_official(small())
    with pytest.raises(CheckpointError, match=r'the network lacks the tensor "fc\.weight"'):
        from_official({**weights, "fc.weight": torch.ones(1)}, small())
    with pytest.raises(CheckpointError, match=r'the checkpoint lacks the tensor "stages\.1\.blocks\.1\.norm1\.weight"'):
        from_official({name: tensor for name, tensor in weights.items() if not name.startswith("blocks2.1")}, small())
    with pytest.raises(
        CheckpointError, match=r'"stem\.0\.weight" has shape \(6, 3, 3, 3\) in the checkpoint and \(9, 3, 3, 3\) in the network'
    ):
        from_official(weights, small(embed_dims=[18, 16, 20, 24]))
    with pytest.raises(CheckpointError, match=r'"stages\.0\.pos_embed" has shape \(1, 8, 8, 5\) in the checkpoint and \(1, 32, 32, 12\)'):
        from_official({**weights, "pos_embed1": torch.zeros(1, 8, 8, 5)}, small())


def test_timm_builds_it_by_name_and_takes_its_pyramid() -> None:
    model: Any = timm.create_model("retinue_iformer", in_chans=1, num_classes=7, drop_rate=0.4, drop_path_rate=0.1, **TINY)
    assert model.head.drop.p == 0.4
    assert model(images(2, 1, 64, 64)).shape == (2, 7)
    assert (model.default_cfg["classifier"], model.default_cfg["first_conv"], model.default_cfg["crop_pct"]) == ("head.fc", "stem.0", 0.9)
    pyramid: Any = timm.create_model("retinue_iformer", features_only=True, in_chans=1, **TINY)
    assert reductions(pyramid) == [4, 8, 16, 32]
    maps = pyramid(images(1, 1, 96, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [(12, 24, 16), (16, 12, 8), (20, 6, 4), (24, 3, 2)]
    assert not any("head" in key or "tail" in key for key in pyramid.state_dict())


def test_parameters_are_sorted_by_depth() -> None:
    from timm.models._manipulate import group_with_matcher

    model = small()
    groups = group_with_matcher(model.named_parameters(), model.group_matcher(), reverse=True)
    assert groups["stem.3.weight"] == 0
    names = ("stages.0.blocks.0.norm1.bias", "stages.1.blocks.0.norm1.bias", "stages.1.blocks.1.norm1.bias", "tail.weight")
    depths = [groups[name] for name in names]
    assert depths == sorted(set(depths))
    assert groups["stages.1.pos_embed"] == groups["stages.1.downsample.0.weight"] == groups["stages.1.blocks.0.norm1.bias"]
    assert len(group_with_matcher(model.named_parameters(), model.group_matcher(coarse=True))) == 6


def test_the_paper_recipe_has_the_papers_numbers() -> None:
    recipe = recipes.load("iformer", "paper")
    fit = recipe.fit
    assert (recipe.model["name"], recipe.model["drop_path_rate"], recipe.data["input_size"]) == ("iformer_small", 0.2, 224)
    assert (fit["batch_size"] * fit["devices"], fit["optimizer"], fit["lr"], fit["weight_decay"]) == (1024, "adamw", 1e-3, 0.05)
    assert "clip_grad" not in fit
    assert "ema" not in fit


def test_the_learning_rate_warms_up_falls_and_stays_at_its_lowest_for_ten_epochs() -> None:
    fit = recipes.load("iformer", "paper").fit
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=fit["lr"])
    schedule = Schedule(
        optimizer, fit["schedule"], steps=310 * 4, steps_per_epoch=4, warmup_epochs=fit["warmup_epochs"], **fit["schedule_args"]
    )
    rates = []
    for epoch in (0, 150, 300, 309):
        schedule.set(4 * epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    assert fit["epochs"] == 310
    assert rates == pytest.approx([1e-6, (1e-3 + 1e-6) / 2, 1e-6, 1e-6], rel=1e-6)
