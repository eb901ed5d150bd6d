"""SWS's transformers: exact checks of the paper's sizes and maps, tied weights, descendants, learngene files, and what is refused."""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm.layers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import images, parameters
from timm.models.vision_transformer import VisionTransformer
from timm.utils import ModelEmaV3
from torch import nn
from torch.testing import assert_close

from retinue.errors import ArgumentError, CheckpointError
from retinue.grow.sws import (
    StageSharedViT,
    descend,
    initialise_descendant,
    load_learngene,
    save_learngene,
    share_stages,
    stage_map,
)
from retinue.models import config, create_model, tiny

SMALL: dict[str, Any] = {"patch_size": 2, "embed_dim": 16, "num_heads": 2, "mlp_ratio": 2.0, "init": "torch"}


def auxiliary(stages: tuple[int, ...] = (2, 3, 1), **options: Any) -> Any:
    """Build a small shared transformer whose every tensor has values of its own."""
    torch.manual_seed(0)
    model = create_model("stage_shared_vit", stages=list(stages), num_classes=5, in_chans=1, input_size=8, **{**SMALL, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


# --- the paper's numbers --------------------------------------------------------------------------------------------------------------


def test_parameters_are_the_papers() -> None:
    with torch.device("meta"):
        built = {name: create_model(name) for name in ("sws_aux_small", "sws_aux_base")}
        small, base = ([parameters(create_model(f"sws_des_{s}", depth=d)) for d in (6, 8, 10, 12)] for s in ("small", "base"))
        assert parameters(create_model("sws_des_small", depth=16)) == 29_147_752
    assert [parameters(model) for model in built.values()] == [9_628_648, 36_951_016]
    assert small == [11_403_112, 14_952_040, 18_500_968, 22_049_896]
    assert sum(small) == 66_906_016
    assert base == [44_038_888, 58_214_632, 72_390_376, 86_566_120]
    aux: Any = built["sws_aux_small"]
    assert (len(aux.blocks), aux.stages, aux.blocks[0].attn.num_heads) == (16, [3, 3, 4, 3, 3], 6)
    assert parameters(aux.blocks[0]) == 1_774_464
    assert parameters(built["sws_aux_base"].blocks[0]) == 7_087_872
    assert sum(tensor.numel() for tensor in aux.state_dict().values()) == 9_628_648  # what is stored
    with torch.device("meta"):
        assert parameters(create_model("sws_descendant", embed_dim=192, num_heads=3, depth=2).blocks[1]) == 444_864


def test_there_are_as_many_sets_of_parameters_as_stages() -> None:
    model = auxiliary()
    for name, _ in model.blocks[0].named_parameters():  # both norms, attention and MLP
        ids = [id(block.get_parameter(name)) for block in model.blocks]
        assert ids[0] == ids[1] != ids[2] == ids[3] == ids[4] != ids[5]
    assert len({id(p) for p in model.blocks.parameters()}) == 3 * 12


def test_maps_are_the_official_one_and_the_rules() -> None:
    assert stage_map(12, 5) == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4]
    assert stage_map(12, (3, 3, 4, 3, 3)) == stage_map(12, 5)
    assert [[stage_map(depth, 5).count(s) for s in range(5)] for depth in (6, 8, 10)] == [[2, 1, 1, 1, 1], [2, 2, 2, 1, 1], [2, 2, 2, 2, 2]]


@given(st.integers(1, 12), st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_a_map_never_falls_covers_all_stages_and_has_the_depth(stages: int, more: int) -> None:
    layers = stage_map(stages + more, stages)
    assert layers == sorted(layers)
    assert set(layers) == set(range(stages))
    assert len(layers) == stages + more
    counts = [layers.count(stage) for stage in range(stages)]
    assert max(counts) - min(counts) <= 1


# --- tied weights ---------------------------------------------------------------------------------------------------------------------


def test_a_descendant_of_the_same_depth_computes_the_same() -> None:
    model, x = auxiliary(), images(4, 1, 8, 8)
    for descendant in (descend(model), initialise_descendant(model, layer_map=[0, 0, 1, 1, 1, 2]), descend(model, [2, 3, 1])):
        assert type(descendant) is VisionTransformer
        assert_close(descendant.eval()(x), model(x), atol=1e-5, rtol=0)


def test_the_network_unrolls_its_stages_by_hand() -> None:
    model, x = auxiliary((2, 1)), images(3, 1, 8, 8)
    tokens = model.patch_embed(x) + model.pos_embed
    for block in (model.blocks[0], model.blocks[0], model.blocks[2]):
        tokens = block(tokens)
    assert_close(model(x), model.head(model.norm(tokens).mean(1)))
    assert_close(model.forward_head(model.forward_features(x)), model(x))
    other = descend(model, official_pooling=True).eval()
    assert_close(other(x), model.head(model.norm(tokens.mean(1))))  # timm's order: the mean before the norm
    assert (other.fc_norm.weight == model.norm.weight).all()
    assert not torch.allclose(other(x), model(x), atol=1e-3)


def test_the_gradient_of_a_stage_is_the_sum_of_those_of_its_layers() -> None:
    model, x = auxiliary().double(), images(4, 1, 8, 8).double()
    plain: Any = descend(model).eval()
    for net in (model, plain):
        net(x).square().sum().backward()
    start = 0
    for count in model.stages:
        for name, parameter in model.blocks[start].named_parameters():
            each = [plain.blocks[start + i].get_parameter(name).grad for i in range(count)]
            assert_close(parameter.grad, torch.stack(each).sum(0))
        start += count
    assert_close(model.pos_embed.grad, plain.pos_embed.grad)


def test_layers_of_a_descendant_are_copies() -> None:
    model = auxiliary()
    descendant: Any = initialise_descendant(model, 6)
    kept, other = model.blocks[0].mlp.fc1.weight.clone(), descendant.blocks[1].mlp.fc1.weight.clone()
    assert torch.equal(descendant.blocks[0].mlp.fc1.weight, other)
    with torch.no_grad():
        for parameter in descendant.blocks[0].parameters():
            parameter.add_(1)
        descendant.pos_embed.add_(1)
    assert torch.equal(descendant.blocks[1].mlp.fc1.weight, other)
    assert torch.equal(model.blocks[0].mlp.fc1.weight, kept)
    assert not hasattr(descendant, "stage_plan")
    assert len(list(descendant.parameters())) == len(descendant.state_dict())


@pytest.mark.parametrize("depth", [3, 5, 9])
def test_every_layer_begins_with_the_weights_of_its_stage(depth: int) -> None:
    model = auxiliary()
    descendant: Any = initialise_descendant(model, depth)
    first = [0, 2, 5]  # of each stage
    assert len(descendant.blocks) == len(descendant.feature_info) == depth
    for block, stage in zip(descendant.blocks, stage_map(depth, 3)):
        for name, tensor in block.state_dict().items():
            assert torch.equal(tensor, model.blocks[first[stage]].state_dict()[name])
    for name in ("patch_embed.proj.weight", "pos_embed", "norm.weight", "head.weight", "head.bias"):
        assert torch.equal(descendant.get_parameter(name), model.get_parameter(name))


def test_drop_path_follows_the_layers_not_the_stages() -> None:
    model = auxiliary((2, 3), drop_path_rate=0.4)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert [getattr(block.drop_path2, "drop_prob", 0.0) for block in descend(model, 3).blocks] == pytest.approx([0, 0.2, 0.4])
    assert [type(block.drop_path1) for block in descend(model, 3, drop_path_rate=0.0).blocks] == [nn.Identity] * 3
    other: Any = share_stages(tiny_with_drop())
    wide = [getattr(block.drop_path1, "drop_prob", 0.0) for block in descend(other, 5).blocks]
    assert wide == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def tiny_with_drop() -> nn.Module:
    return create_model("timm:test_vit", num_classes=5, input_size=32, drop_path_rate=0.4)


def test_shared_tensors_stand_in_a_state_once_and_come_back_tied() -> None:
    model = auxiliary()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not any(name.startswith(("blocks.1.", "blocks.3.", "blocks.4.")) for name in state)
    assert set(model.learngene()) == set(state)
    other = auxiliary()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(state, assign=True)
    assert other.blocks[1].mlp.fc1.weight is other.blocks[0].mlp.fc1.weight
    x = images(2, 1, 8, 8)
    assert torch.equal(other(x), model(x))
    with pytest.raises(RuntimeError, match=r"Missing key.*blocks\.0\.norm1\.weight"):
        other.load_state_dict({name: tensor for name, tensor in state.items() if name != "blocks.0.norm1.weight"})
    nested = nn.Sequential(model)
    nested.load_state_dict(nested.state_dict())
    twin = copy.deepcopy(model)
    assert twin.blocks[4].mlp.fc1.weight is twin.blocks[2].mlp.fc1.weight is not model.blocks[2].mlp.fc1.weight


def test_a_moving_average_moves_once_a_step() -> None:
    model = auxiliary()
    ema: Any = ModelEmaV3(model, decay=0.5)
    before = model.blocks[2].norm1.weight.detach().clone()
    with torch.no_grad():
        model.blocks[2].norm1.weight.add_(1)
    ema.update(model)
    assert_close(ema.module.blocks[4].norm1.weight.detach(), before + 0.5)  # 0.875 if each of three layers were counted


# --- files and other images -----------------------------------------------------------------------------------------------------------


def test_a_learngene_goes_through_a_file_that_holds_each_tensor_once(tmp_path: Path) -> None:
    model, path, x = auxiliary(), tmp_path / "learngene.safetensors", images(2, 1, 8, 8)
    save_learngene(model, path)
    assert torch.equal(load_learngene(path)(x), model(x))
    assert path.stat().st_size < 4 * parameters(model) + 8000  # names and plan beside
    a, b = initialise_descendant(path, 9), initialise_descendant(model, 9)
    assert torch.equal(a.eval()(x), b.eval()(x))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    save_learngene(auxiliary(), tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "torn.safetensors").write_bytes(content[:1000])
    for bad in (tmp_path / "torn.safetensors", tmp_path / "missing.safetensors"):
        with pytest.raises(CheckpointError, match=r"is no whole learngene .*Write one: save_learngene\(model, path\)"):
            load_learngene(bad)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written"):
        save_learngene(auxiliary(), tmp_path / "file" / "b.safetensors")


def test_positions_are_interpolated_only_where_that_is_asked_for() -> None:
    model = auxiliary()
    with pytest.raises(ArgumentError, match=r"images of 16x12 px are 8x6 tokens, and the learngene has positions of 4x4.*interpolate=True"):
        initialise_descendant(model, 6, input_size=(16, 12))
    larger: Any = initialise_descendant(model, 6, input_size=(16, 12), interpolate=True).eval()
    assert larger(images(2, 1, 16, 12)).shape == (2, 5)
    expected = timm.layers.resample_abs_pos_embed(model.pos_embed, (8, 6), (4, 4), num_prefix_tokens=0)
    assert_close(larger.pos_embed, expected)
    made = config(larger)
    assert made is not None
    create_model(made["name"], **made["arguments"]).load_state_dict(larger.state_dict())
    assert initialise_descendant(model, 6, input_size=8)(images(1, 1, 8, 8)).shape == (1, 5)
    with pytest.raises(ArgumentError, match="images of 9x9 px cannot be cut into patches of 2x2"):
        initialise_descendant(model, 6, input_size=9, interpolate=True)


def test_another_task_needs_a_fresh_head() -> None:
    model = auxiliary()
    with pytest.raises(ArgumentError, match=r"classifier has 5 classes and cannot serve 7. Take a fresh one: reuse_head=False"):
        initialise_descendant(model, 6, num_classes=7)
    other: Any = initialise_descendant(model, 6, num_classes=7, reuse_head=False)
    assert (other.num_classes, other.head.weight.shape) == (7, (7, 16))
    assert config(other)["arguments"]["num_classes"] == 7  # type: ignore[index]
    fresh: Any = initialise_descendant(model, 6, reuse_head=False)
    assert fresh.num_classes == 5
    assert not torch.equal(fresh.head.weight, model.head.weight)
    assert torch.equal(fresh.pos_embed, model.pos_embed)


# --- what is refused ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "layer_map", "told"),
    [
        (2, None, r"2 layers cannot hold one layer of each of the 3 stages. Take `depth` 3 or more, or .*`layer_map`"),
        (None, [0, 2, 1], r"must stand in their order, got \[0, 2, 1\]. Sort it: \[0, 1, 2\]"),
        (None, [0, 1, 3], r"`layer_map` must name stages from 0 to 2, got \[0, 1, 3\]"),
        (None, [], r"`layer_map` must name stages from 0 to 2, got \[\]"),
        (4, [0, 1, 2], r"`layer_map` has 3 layers and the depth is 4"),
        ([1, 2], None, r"the number of layers of each of the 3 stages, at least 1, or their sum, got \[1, 2\]"),
        ([1, 0, 2], None, r"at least 1, or their sum, got \[1, 0, 2\]"),
    ],
)
def test_depths_and_maps_that_cannot_be(depth: Any, layer_map: Any, told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        initialise_descendant(auxiliary(), depth, layer_map)


def test_an_explicit_map_may_leave_out_stages_and_a_control_may_mix_them() -> None:
    model = auxiliary()
    assert len(initialise_descendant(model, layer_map=[0, 2]).blocks) == 2  # type: ignore[arg-type]
    mixed: Any = descend(model, layer_map=[2, 0, 1], any_order=True)
    assert torch.equal(mixed.blocks[0].mlp.fc1.weight, model.blocks[5].mlp.fc1.weight)


@pytest.mark.parametrize(("name", "value"), [("embed_dim", 32), ("num_heads", 4), ("patch_size", 4), ("mlp_ratio", 4.0)])
def test_width_heads_and_patch_are_the_learngenes(name: str, value: Any) -> None:
    model = auxiliary()
    with pytest.raises(ArgumentError, match=rf"`{name}` is the learngene's, {model.shape[name]}, and cannot change"):
        initialise_descendant(model, 6, **{name: value})
    assert len(initialise_descendant(model, 6, **{name: model.shape[name]}).blocks) == 6  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"stages": [2, 0]}, r"`stages` must be the layers of each stage, at least 1, got \[2, 0\]"),
        ({"stages": []}, r"`stages` must be the layers of each stage"),
        ({"num_heads": 3}, r"`embed_dim` must be a multiple of `num_heads`, got 16 and 3"),
        (
            {"patch_size": 3},
            r"images of 8x8 px cannot be cut into patches of 3x3. Choose a `patch_size` that divides both sides, such as 1",
        ),
        ({"init": "deit"}, r'no `init` is called "deit"'),
        ({"drop_path_rate": 1.0}, r"`drop_path_rate` must lie in \[0, 1\), got 1.0"),
    ],
)
def test_networks_that_cannot_be_built(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        create_model("stage_shared_vit", num_classes=5, in_chans=1, input_size=8, **{**SMALL, **options})


def test_other_mistakes_are_named() -> None:
    with pytest.raises(ArgumentError, match=r"sws_descendant: `depth` must be at least 1, got 0"):
        create_model("sws_descendant", depth=0)
    with pytest.raises(ArgumentError, match=r"this VisionTransformer shares no weights, so it has no learngene.*share_stages\(model\)"):
        initialise_descendant(tiny("timm_vit"), 3)
    with pytest.raises(ArgumentError, match=r'no option of a descendant is called "drop_pat_rate". Did you mean drop_path_rate'):
        initialise_descendant(auxiliary(), 3, drop_pat_rate=0.1)
    with pytest.raises(ArgumentError, match=r"stage_map: there must be one stage at least, got 0"):
        stage_map(4, 0)


@pytest.mark.parametrize("option", [{"act_layer": torch.nn.ReLU}, {"qk_norm": True}, {"init_values": 1e-5}])
def test_options_that_a_descendant_would_not_inherit_are_refused(option: dict[str, Any]) -> None:
    told = rf'StageSharedViT: no option is called "{next(iter(option))}"\..* For any other transformer of timm: share_stages\(model\)\.'
    with pytest.raises(ArgumentError, match=told):
        StageSharedViT(8, 2, 16, 2, (2, 1), num_classes=3, in_chans=1, **option)


def test_networks_by_name_are_built_on_the_meta_device_and_for_small_images() -> None:
    with torch.device("meta"):
        small: Any = create_model("sws_des_small", depth=2, num_classes=0, in_chans=1, input_size=(14, 21))
        assert small(torch.empty(2, 1, 14, 21, device="meta")).shape == (2, 384)
    assert small.adaptation == ["patch_size 16 -> 1: 14x21 tokens"]
    with pytest.raises(ArgumentError, match=r'no option is called "depht"\. Did you mean depth'):
        create_model("sws_des_small", depht=3)


def test_the_classes_own_door_builds_the_same_network() -> None:
    torch.manual_seed(3)
    model = StageSharedViT(8, 2, 16, 2, (2, 1), num_classes=3, in_chans=1)
    assert float(model.blocks[0].attn.qkv.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    torched = StageSharedViT(8, 2, 16, 2, (2, 1), init="torch", num_classes=3, in_chans=1)
    assert float(torched.blocks[0].attn.qkv.weight.detach().std()) == pytest.approx(1 / (3 * 16) ** 0.5, rel=0.1)  # uniform to 1 / sqrt(16)
    assert float(torched.pos_embed.detach().std()) == pytest.approx(0.02, rel=0.2)
    assert [type(block.norm1) for block in model.blocks] == [timm.layers.LayerNorm] * 3
