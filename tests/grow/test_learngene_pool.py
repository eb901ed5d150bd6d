"""The pool of learngenes: positions, stitches, sizes, the twelve networks, and what is refused."""

import copy
import re
import time
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from support import images, parameters
from timm.models.mlp_mixer import MlpMixer
from torch import nn
from torch.testing import assert_close
from twelve import CLASSES, FITS, NETWORKS, SIDE, network

import retinue
from retinue.errors import ArgumentError, ShapeError
from retinue.grow.learngene_distillation import LearngeneDistillation
from retinue.grow.learngene_pool import Configuration, LearngenePool, PoolTraining, stitch_pairs
from retinue.models.learngene_pool import learngene_pool, learngene_stitched
from retinue.models.macs import count_macs
from retinue.models.stitches import StitchedNetwork, block_outputs, least_squares, map_weight, tokens_of

HERE = FITS["learngene-pool"]


def vit(width: int = 32, depth: int = 3, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    given = {"num_classes": 10, "in_chans": 1, "input_size": 8, "patch_size": 2, "num_heads": 2, "mlp_ratio": 2, **options}
    return retinue.create_model("timm:vit_tiny_patch16_224", embed_dim=width, depth=depth, **given)


def stirred(model: Any, seed: int = 5) -> Any:
    """Give every parameter a value of its own, so that norms and zero biases count."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def pool_of(*widths: int, **options: Any) -> LearngenePool:
    return stirred(LearngenePool([vit(width, seed=i) for i, width in enumerate(widths)], **options))


def test_six_blocks_have_sixteen_positions_and_five_layers() -> None:
    expected = [
        (0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (1, 2, 1), (2, 1, 1), (2, 2, 1), (2, 3, 2), (3, 2, 2), (3, 3, 2), (3, 4, 3), (4, 3, 3),
        (4, 4, 3), (4, 5, 4), (5, 4, 4), (5, 5, 4),
    ]  # fmt: skip
    assert stitch_pairs(6) == expected
    assert [(len(stitch_pairs(n)), 1 + stitch_pairs(n)[-1][2]) for n in (3, 9, 12)] == [(7, 2), (25, 8), (34, 11)]
    assert stitch_pairs(3, window=1) == [(0, 0, 0), (1, 1, 1), (2, 2, 2)]
    assert stitch_pairs(5, window=2, stride=2) == [
        (0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (2, 2, 1), (2, 3, 1), (3, 2, 1), (3, 3, 1), (4, 4, 2),
    ]  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 14), st.integers(1, 5), st.integers(1, 3))
def test_a_position_belongs_to_the_first_window_that_has_it(depth: int, window: int, stride: int) -> None:
    if window > depth:
        return
    plan = stitch_pairs(depth, window, stride)
    assert len({(a, b) for a, b, _ in plan}) == len(plan)
    first = {
        (a, b): s for s in reversed(range(0, depth, stride)) for a in range(s, depth) for b in range(s, depth) if max(a, b) < s + window
    }
    assert {(a, b) for a, b, _ in plan} == set(first)
    starts = sorted({first[a, b] for a, b, _ in plan})
    assert all(starts[layer] == first[a, b] for a, b, layer in plan)
    if (window, stride) == (2, 1):
        assert len(plan) == 4 + 3 * (depth - 2)


@pytest.fixture(scope="module")
def paper() -> dict[int, LearngenePool]:
    """The paper's three sizes of 6 and of 9 blocks, without values."""
    names = [f"timm:deit_{size}_patch16_224" for size in ("tiny", "small", "base")]
    with torch.device("meta"):
        return {depth: learngene_pool([{"name": name, "depth": depth} for name in names]) for depth in (6, 9)}


def test_the_paper_s_parameters(paper: dict[int, LearngenePool]) -> None:
    six, nine = paper[6], paper[9]
    assert [parameters(net) for net in six.instances] == [3_048_232, 11_403_880, 44_040_424]
    assert [parameters(net) for net in nine.instances] == [4_382_824, 16_727_272, 65_304_040]
    assert [parameters(net.blocks[0]) for net in six.instances] == [444_864, 1_774_464, 7_087_872]
    assert [parameters(layer) for layer in six.stitches["0-2"]] == [148_224] * 5
    for pool, sizes in ((six, {(0, 0): 44_076_520, (5, 5): 10_861_480}), (nine, {(0, 0): 65_340_136, (8, 8): 12_196_072})):
        for (a, b), size in sizes.items():
            assert pool.num_params((0, 2, a, b)) == parameters(pool.build((0, 2, a, b))) == size
        assert parameters(pool) - parameters(pool.instances[1]) == {6: 47_829_776, 9: 70_872_656}[pool.depth]


def test_the_official_list_and_every_pair(paper: dict[int, LearngenePool]) -> None:
    for depth, count in ((6, 18), (9, 27)):
        assert len(paper[depth].configs) == count
        assert [str(config) for config in paper[depth].configs[:3]] == ["0", "2", "0.0-2.0"]
        assert all(config.alone or (config.front, config.back) == (0, 2) for config in paper[depth].configs)
    with torch.device("meta"):
        every = LearngenePool(list(paper[6].instances), pairs="all")
    assert len(every.configs) == 3 + 3 * 16
    assert sum(len(layers) for layers in every.stitches.values()) == 3 * 5
    assert LearngenePool([vit(8), vit(16), vit(24)], pairs=[(0, 1), [1, 2]]).pairs == [(0, 1), (1, 2)]


def test_a_configuration_is_what_timm_s_parts_compute() -> None:
    pool = pool_of(16, 32)
    narrow, wide = pool.instances
    x = images(3, 1, 8, 8)
    for a, b, layer in stitch_pairs(3):
        tokens = narrow.norm_pre(narrow.patch_drop(narrow._pos_embed(narrow.patch_embed(x))))
        for block in list(narrow.blocks)[: a + 1]:
            tokens = block(tokens)
        tokens = pool.stitches["0-1"][layer](tokens)
        for block in list(wide.blocks)[b:]:
            tokens = block(tokens)
        expected = wide.forward_head(wide.norm(tokens))
        assert torch.equal(pool(x, Configuration(0, 1, a, b)), expected)
        assert torch.equal(pool.build((0, 1, a, b)).eval()(x), expected)


def test_an_instance_alone_is_itself_and_evaluation_draws_nothing() -> None:
    pool = pool_of(16, 32)
    x = images(3, 1, 8, 8)
    assert torch.equal(pool(x, "0"), pool.instances[0](x))
    assert torch.equal(pool(x, "1"), pool.instances[1](x))
    assert torch.equal(pool(x), pool.instances[1](x))
    assert torch.equal(pool(x, "0.1-1.1"), pool(x, "0.1-1.1"))
    assert torch.equal(pool.forward_head(pool.forward_features(x)), pool(x))
    with torch.no_grad():
        each = [pool(x, config) for config in pool.configs]
        pool.train()
        torch.manual_seed(0)
        drawn = [next(i for i, y in enumerate(each) if torch.allclose(y, z)) for z in (pool(x) for _ in range(90))]
    assert {*drawn} == set(range(9))  # of 9 in 90 draws, one is left out once in 4,500 seeds


def test_equal_instances_with_the_identity_between_them_are_the_instance() -> None:
    one = stirred(vit(32))
    pool = LearngenePool([one, copy.deepcopy(one)]).eval()
    assert all(isinstance(layer, nn.Identity) for layer in pool.stitches["0-1"])
    x = images(3, 1, 8, 8)
    for a in (0, 1):
        assert torch.equal(pool(x, (0, 1, a, a + 1)), one(x))
    twice = copy.deepcopy(one)
    twice.blocks = nn.Sequential(one.blocks[0], one.blocks[1], one.blocks[1], one.blocks[2])
    assert torch.equal(pool(x, (0, 1, 1, 1)), twice(x))
    assert not torch.allclose(pool(x, (0, 1, 1, 1)), one(x))


def test_a_step_of_one_configuration_reaches_only_what_it_is_made_of() -> None:
    pool = pool_of(16, 32)
    pool(images(2, 1, 8, 8), (0, 1, 1, 2)).square().sum().backward()
    moved = {name for name, parameter in pool.named_parameters() if parameter.grad is not None}
    assert {name.split(".norm")[0].split(".attn")[0].split(".mlp")[0] for name in moved if ".blocks." in name} == {
        "instances.0.blocks.0", "instances.0.blocks.1", "instances.1.blocks.2",
    }  # fmt: skip
    assert {name for name in moved if "stitches" in name} == {"stitches.0-1.1.weight", "stitches.0-1.1.bias"}
    assert "instances.1.norm.weight" in moved
    assert not {"instances.0.norm.weight", "instances.0.head.weight", "instances.1.pos_embed", "instances.1.cls_token"} & moved


def test_least_squares_recovers_a_map_and_is_scikit_learn_s() -> None:
    generator = torch.Generator().manual_seed(0)
    known, wanted, shift = (torch.randn(*shape, generator=generator) for shape in ((50, 6), (6, 9), (9,)))
    weight, bias = least_squares(known, known @ wanted + shift)
    assert_close(weight, wanted.T, atol=1e-4, rtol=0)
    assert_close(bias, shift, atol=1e-4, rtol=0)
    noisy = torch.randn(50, 9, generator=generator)
    weight, bias = least_squares(known, noisy)
    peer = LinearRegression().fit(known.double().numpy(), noisy.double().numpy())
    assert_close(weight.double(), torch.from_numpy(peer.coef_), atol=1e-6, rtol=0)
    assert_close(bias.double(), torch.from_numpy(peer.intercept_), atol=1e-6, rtol=0)


def test_few_rows_are_told_and_fitted_with_a_ridge() -> None:
    known, targets = images(4, 8), images(4, 3, seed=1)
    with pytest.warns(UserWarning, match=r"4 tokens cannot determine 9 numbers for each output, so a ridge is used\. Give more images\."):
        weight, bias = least_squares(known, targets)
    assert float((known @ weight.T + bias - targets).abs().max()) < 0.05
    assert bool(torch.isfinite(weight).all())
    with pytest.raises(ShapeError, match="features and targets must be of the same tokens, got 4 and 3 rows"):
        least_squares(known, targets[:3])


def test_stitches_by_least_squares_target_what_enters_block_b() -> None:
    pool = pool_of(8, 16)
    batch = images(12, 1, 8, 8)
    pool.init_stitches("least_squares", batch=batch)
    narrow, wide = pool.instances
    with torch.no_grad():
        into = narrow.norm_pre(narrow._pos_embed(narrow.patch_embed(batch)))
        enters = [wide.norm_pre(wide._pos_embed(wide.patch_embed(batch)))]
        for block in wide.blocks:
            enters.append(block(enters[-1]))
        leaves = []
        for block in narrow.blocks:
            into = block(into)
            leaves.append(into)
    fits = []
    for a, b in ((1, 2), (2, 1), (2, 2)):  # of layer 1
        peer = LinearRegression().fit(leaves[a].flatten(0, 1).double().numpy(), enters[b].flatten(0, 1).double().numpy())
        fits.append((torch.from_numpy(peer.coef_), torch.from_numpy(peer.intercept_)))
    assert_close(pool.stitches["0-1"][1].weight.double(), sum(w for w, _ in fits) / 3, atol=1e-4, rtol=1e-4)
    assert_close(pool.stitches["0-1"][1].bias.double(), sum(b for _, b in fits) / 3, atol=1e-4, rtol=1e-4)
    seen = block_outputs(wide, batch)
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(seen, enters, strict=True))


def test_stitches_begin_with_the_learned_maps_turned_round() -> None:
    pool = pool_of(8, 16, 32, pairs="all")
    maps = {0: list(images(3, 8, 32)), 1: list(images(1, 16, 32, seed=1)), 2: list(images(1, 32, 32, seed=2))}
    before = {name: layer.bias.clone() for name, layer in pool.stitches.named_modules() if isinstance(layer, nn.Linear)}
    pool.init_stitches("distilled", maps)
    mean = (maps[0][0] + maps[0][1] + maps[0][2]) / 3
    for layer in pool.stitches["0-2"]:
        assert_close(layer.weight.detach(), mean.T)
    for layer in pool.stitches["0-1"]:  # to a width that is not the teacher's: up, and down by its own map
        assert_close(layer.weight.detach(), maps[1][0] @ mean.T)
    assert_close(pool.stitches["1-2"][0].weight.detach(), maps[1][0].T)
    assert all(torch.equal(pool.stitches.get_submodule(name).bias, bias) for name, bias in before.items())
    pool.init_stitches("pseudo_inverse", maps)
    assert_close(mean @ pool.stitches["0-2"][1].weight.detach(), torch.eye(8), atol=1e-5, rtol=0)
    assert pool.init_stitches("random") is pool
    assert float(pool.stitches["0-2"][0].weight.detach().abs().max()) <= 8**-0.5


@pytest.mark.parametrize("name", NETWORKS)
def test_the_twelve_go_through_or_are_refused_by_name_at_once(name: str) -> None:
    ancestry, instances = network(name), [network(name, seed) for seed in (1, 2)]
    if HERE[name]:
        for use in (lambda: LearngenePool(instances), lambda: LearngeneDistillation(instances[0], ancestry, points=["end"])):
            began = time.perf_counter()
            with pytest.raises(ArgumentError, match=re.escape(HERE[name])):
                use()
            assert time.perf_counter() - began < 1
        return
    data = retinue.data.open("digits", train_images=32, test_images=16, val_fraction=0.0, channels=3, input_size=SIDE)
    for instance in instances:
        objective = LearngeneDistillation(instance, copy.deepcopy(ancestry), points=["end"])
        retinue.fit(instance, objective, data, max_steps=1, batch_size=8, progress=False)
    pool = LearngenePool(instances)
    before = {key: tensor.clone() for key, tensor in pool.state_dict().items()}
    retinue.fit(pool, PoolTraining(ancestry), data, max_steps=1, batch_size=8, progress=False)
    assert any(not torch.equal(tensor, before[key]) for key, tensor in pool.state_dict().items())
    x = images(2, 3, SIDE, SIDE)
    for config in pool.configs:
        assert pool.build(config).eval()(x).shape == (2, CLASSES)


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("timm:vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg", "num_heads": 2, "patch_size": 4}, (1, 16, 24)),
        ("timm:vit_tiny_patch16_224", {"reg_tokens": 2, "init_values": 0.1, "num_heads": 2, "patch_size": 4, "fc_norm": True}, (3, 16, 16)),
        ("timm:deit_tiny_distilled_patch16_224", {"num_heads": 2, "patch_size": 8}, (3, 32, 32)),
        ("timm:beit_base_patch16_224", {"num_heads": 2, "patch_size": 8}, (3, 32, 32)),
        ("cae_vit", {"num_heads": 2, "patch_size": 4}, (2, 8, 12)),
    ],
)
def test_other_networks_of_equal_blocks(name: str, options: dict[str, Any], shape: tuple[int, int, int]) -> None:
    channels, *size = shape
    torch.manual_seed(0)
    common: dict[str, Any] = {"num_classes": 4, "in_chans": channels, "input_size": tuple(size), "depth": 3, **options}
    pool = LearngenePool([retinue.create_model(name, embed_dim=width, **common) for width in (16, 32)]).eval()
    x = images(2, *shape)
    assert pool.tokens[0].shape == shape
    for config in ("0", "0.0-1.1", "0.2-1.2"):
        ordinary = pool.build(config)
        made = ordinary.retinue_config
        again = retinue.create_model(made["name"], **made["arguments"]).eval()
        again.load_state_dict(ordinary.state_dict())
        assert torch.equal(again(x), pool(x, config))


def test_mixers_of_two_widths_are_stitched() -> None:
    torch.manual_seed(0)
    nets = [retinue.models.adapt(MlpMixer(4, 16, patch_size=4, num_blocks=3, embed_dim=width), input_size=16).eval() for width in (8, 16)]
    pool = LearngenePool(nets)
    x = images(2, 3, 16, 16)
    tokens = nets[0].blocks[0](nets[0].stem(x))
    tokens = nets[1].blocks[1:](pool.stitches["0-1"][0](tokens))
    assert torch.equal(pool(x, "0.0-1.1"), nets[1].forward_head(nets[1].norm(tokens)))
    assert not hasattr(pool.build("0.0-1.1"), "retinue_config")  # create_model cannot build it


def test_built_networks_have_the_protocol() -> None:
    net = pool_of(16, 32).build("0.1-1.1")
    x = images(2, 1, 8, 8)
    assert (net.num_classes, net.num_features, net.in_chans, net.num_prefix_tokens) == (10, 32, 1, 1)
    assert net.forward_features(x).shape == (2, 17, 32)
    assert net.forward_head(net.forward_features(x), pre_logits=True).shape == (2, 32)
    assert [(tap["module"], tap["num_chs"]) for tap in net.feature_info] == [
        ("front.blocks.0", 16), ("front.blocks.1", 16), ("back.blocks.0", 32), ("back.blocks.1", 32),
    ]  # fmt: skip
    assert all(isinstance(net.get_submodule(tap["module"]), timm.models.vision_transformer.Block) for tap in net.feature_info)
    net.reset_classifier(3)
    assert (net(x).shape, net.num_classes, net.get_classifier().out_features) == ((2, 3), 3, 3)
    assert retinue.models.config(net)["arguments"]["num_classes"] == 3
    features = retinue.create_model("learngene_stitched", **{**net.retinue_config["arguments"], "num_classes": 0})
    assert features(x).shape == (2, 32)
    assert {name for name, _ in net.front.named_children() if parameters(net.front.get_submodule(name))} == {"patch_embed", "blocks"}
    assert {name for name, _ in net.back.named_children() if parameters(net.back.get_submodule(name))} == {"blocks", "norm", "head"}


def test_copies_do_not_change_the_pool() -> None:
    pool = pool_of(16, 32)
    kept = {name: tensor.clone() for name, tensor in pool.state_dict().items()}
    net = pool.build("0.1-1.2")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    net.reset_classifier(2)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in pool.state_dict().items())


def test_multiply_adds_are_those_of_the_ordinary_network() -> None:
    pool = pool_of(16, 32)
    assert pool.num_macs("0.1-1.1") == count_macs(pool.build("0.1-1.1"), 8, in_chans=1)
    block = 17 * 16 * 16 * (3 + 1 + 2 * 2) + 2 * 17 * 17 * 16
    assert pool.num_macs("0") == 16 * 4 * 16 + 3 * block + 16 * 10
    pool.reset_classifier(4)
    assert {net.num_classes for net in (pool, *pool.instances)} == {4}


def test_both_networks_are_made_by_name() -> None:
    front, back = ({"name": "timm:vit_tiny_patch16_224", "embed_dim": width, "depth": 2, "num_heads": 2} for width in (16, 32))
    shape: dict[str, Any] = {"num_classes": 3, "in_chans": 1, "input_size": 16}
    assert retinue.create_model("learngene_stitched", front=front, back=back, last=0, first=1, **shape)(images(1, 1, 16, 16)).shape == (
        1,
        3,
    )
    with torch.device("meta"):
        assert parameters(learngene_stitched(num_classes=10)) > 20_000_000
    with pytest.raises(ArgumentError, match=r"a network must be \{\"name\": NAME, its options\}, got \{'depth': 2\}"):
        learngene_pool([{"depth": 2}])


class Fused(nn.Module):
    """A network in timm's names that adds the embedding again behind its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(1, 8, 2, 2), nn.Linear(8, 4)
        self.blocks = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        self.norm = nn.LayerNorm(8)
        self.num_features = self.num_classes = 8

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.norm(self.blocks(x) + x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return self.head(x.mean(1))

    def reset_classifier(self, num_classes: int) -> None:
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


class Shrinking(Fused):
    """A network whose blocks see fewer and fewer channels."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 8))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.blocks(self.embed(x).flatten(2).transpose(1, 2)))


def refused_pools() -> list[Any]:
    pair = [vit(16), vit(32)]
    return [
        ([vit(16)], {}, "`instances` must be two different networks or more, got 1."),
        ([pair[0], pair[0]], {}, "got 2, one of them twice. To stitch a network with itself give a copy: copy.deepcopy(network)."),
        ([vit(16, 2), vit(32, 3)], {}, "must have the same number of blocks, got 2, 3. Build all with the same `depth`."),
        (
            [vit(16, input_size=16), vit(32, input_size=16, patch_size=4)],
            {},
            "same number of tokens, got 65, 17. Build all with the same `patch_size`.",
        ),
        (
            [vit(16), vit(32, class_token=False, global_pool="avg")],
            {},
            "same number of tokens before the patches, got 1, 0. Build all with a class token, or all without.",
        ),
        ([vit(16), vit(32, input_size=16)], {}, "same images (channels, height, width), got (1, 8, 8), (1, 16, 16)."),
        ([vit(16), vit(32, num_classes=3)], {}, "same number of classes, got 10, 3. Build all with the same `num_classes`."),
        (pair, {"window": 4}, "`window` must be at most the 3 blocks of a network, got 4. The paper has 2."),
        (pair, {"window": 0}, "`window` must be at least 1, got 0."),
        (pair, {"stride": 0}, "`stride` must be at least 1, got 0."),
        (pair, {"pairs": "end"}, 'no `pairs` is called "end". Did you mean ends?'),
        (pair, {"pairs": []}, "`pairs` is empty, so nothing would be stitched."),
        (pair, {"pairs": [(0, 2)]}, "`pairs` must be of two different instances from 0 to 1, got (0, 2)."),
        (pair, {"pairs": [(1, 1)]}, "`pairs` must be of two different instances from 0 to 1, got (1, 1)."),
        (pair, {"pairs": [(1, 0)]}, "the pair (1, 0) goes from width 32 to the narrower 16. Order the instances from narrow to wide"),
        (
            [Fused(), Fused()],
            {},
            "instance 0 (Fused) computes more than embedding, blocks, norm and head, one after the other. Take a timm",
        ),
        ([Shrinking(), Shrinking()], {}, "the blocks of instance 0 (Shrinking) see (1, 256, 4), (1, 256, 8), and not the same tokens"),
    ]


@pytest.mark.parametrize(("instances", "options", "message"), refused_pools())
def test_instances_that_do_not_belong_together_are_refused(instances: list[nn.Module], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        LearngenePool(instances, **options)


def test_a_pair_may_narrow_where_that_is_allowed() -> None:
    pool = pool_of(16, 32, pairs=[(1, 0)], narrowing=True)
    assert pool(images(2, 1, 8, 8), (1, 0, 1, 2)).shape == (2, 10)
    assert pool.stitches["1-0"][0].weight.shape == (16, 32)


def test_wrong_configurations_and_beginnings_are_refused() -> None:
    pool = pool_of(16, 32)
    with pytest.raises(ArgumentError, match=r'no configuration is called "0\.0-1\.2"\. Did you mean .* All of them: pool\.configs\.'):
        pool(images(1, 1, 8, 8), (0, 1, 0, 2))
    with pytest.raises(ArgumentError, match='no configuration is called "7"'):
        pool.build("7")
    with pytest.raises(ArgumentError, match=r'no configuration is called "\(0, 1\)"'):
        pool.num_params((0, 1))
    with pytest.raises(ArgumentError, match=r'"distiled"\..*Did you mean distilled'):
        pool.init_stitches("distiled")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"`maps` has none of instance 0, which is stitched into 1\. Distil it"):
        pool.init_stitches("distilled")
    with pytest.raises(ArgumentError, match="instance 1 has width 32 and the teacher 64, so `maps` must have those of instance 1 too"):
        pool.init_stitches("distilled", {0: [torch.zeros(16, 64)]})
    for wrong in (torch.zeros(32, 16), torch.zeros(1, 32), torch.zeros(7, 32)):  # turned round, or of another instance
        told = rf"a map of instance 0 must lead .* \(16, teacher.s width\), got \({wrong.shape[0]}, {wrong.shape[1]}\)\. Take those"
        with pytest.raises(ArgumentError, match=told):
            pool.init_stitches("distilled", {0: [torch.zeros(16, 32), wrong]})
        with pytest.raises(ArgumentError, match=told):
            pool.init_stitches("distilled", {0: [wrong]})
    with pytest.raises(ArgumentError, match=r"least squares needs `batch`, normalised images\. The paper of SN-Net takes 100\."):
        pool.init_stitches("least_squares")
    with pytest.raises(ArgumentError, match="`last` must be a block from 0 to 2, got 3"):
        StitchedNetwork(pool.instances[0], pool.instances[1], 3, 0)
    with pytest.raises(ArgumentError, match="there must be one learned map at least for each side"):
        map_weight([])
    with pytest.raises(ArgumentError, match='`inverse` must be "transposed" or "pseudo_inverse", got \'exact\''):
        map_weight([torch.zeros(2, 3)], inverse="exact")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="`depth` must be at least 1, got 0"):
        stitch_pairs(0)


def test_blocks_that_are_told_more_than_tokens_are_refused() -> None:
    rotary = retinue.create_model("timm:eva02_tiny_patch14_224", embed_dim=32, depth=2, num_heads=2, num_classes=3, input_size=28)
    with pytest.raises(ArgumentError, match=r"the network \(Eva\) gives its blocks more than the tokens, such as rotary positions\."):
        tokens_of(rotary)
    assert tokens_of(vit(16)) == (3, 17, 16, 1, (1, 8, 8))
