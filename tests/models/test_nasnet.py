"""NASNet: genotypes, operations and cells, sizes and laws of the networks, ScheduledDropPath."""

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import images, parameters
from torch import nn

import retinue
from retinue.errors import ArgumentError, ShapeError
from retinue.models import Genotype, ScheduledDropPath, count_macs, nasnet
from retinue.models.nasnet_cells import (
    NASNET_A,
    OPERATIONS,
    Cell,
    FactorizedReduction,
    Norm,
    Pool,
    Separable,
    drop_branch,
    keep_probability,
    operation,
)

TINY: dict[str, Any] = {"N": 1, "F": 4, "num_classes": 5}
LINE = Genotype(normal=[(0, "sep3", 1, "identity", "add")], reduce=[(0, "max3", 1, "sep3", "add")])
PAGE = [  # name, pixels, parameters, multiply-adds and the digits that are given
    ("nasnet_a_large", 331, 88_753_150, 23.783e9, -6),
    ("nasnet_a_mobile", 224, 5_289_978, 0.5636e9, -5),
    ("nasnet_a_cifar", 32, 3_346_538, 0.5443e9, -5),
    ("nasnet_a_cifar_large", 32, 32_590_954, 5.151e9, -6),
    ("nasnet_a_proxy", 32, 1_294_698, 0.2322e9, -5),
    ("nasnet_a_tiny", 32, 110_562, 0.0203e9, -5),
]


def on_meta(build: Any, **options: Any) -> Any:
    with torch.device("meta"):
        return build(**options).eval()


@pytest.mark.parametrize(("name", "side", "count", "macs", "digits"), PAGE)
def test_parameters_and_multiply_adds_are_those_of_the_page(name: str, side: int, count: int, macs: float, digits: int) -> None:
    model = on_meta(retinue.create_model, name=name, **({"num_classes": 10} if side == 32 else {}))
    assert parameters(model) == count
    assert round(count_macs(model, side), digits) == round(macs)
    assert model.default_cfg["input_size"] == (3, side, side)


def test_the_filters_may_be_given_by_the_channels_at_the_end() -> None:
    by_channels = on_meta(nasnet, N=6, P=2304, stem="cifar", num_classes=10)
    assert parameters(by_channels) == 28_213_546
    assert by_channels.num_features == 2304
    assert str(by_channels) == str(on_meta(nasnet, N=6, F=96, stem="cifar", num_classes=10))
    assert on_meta(nasnet, genotype=LINE, N=1, P=32).num_features == 32  # one joined state: P is 4 F


def test_the_auxiliary_head_is_not_in_the_counts() -> None:
    model = on_meta(nasnet, N=2, F=8, stem="cifar", num_classes=10, aux=True)
    assert parameters(model) - parameters(model.aux) == 110_562
    large = on_meta(retinue.create_model, name="nasnet_a_large", aux=True)
    assert large.aux.conv1.conv.weight.shape == (128, 2016, 1, 1)
    assert large.aux.sides == (21, 21)
    assert large.aux.conv2.conv.weight.shape == (768, 128, 6, 6)


def test_maps_of_the_large_network_shrink_as_the_page_says() -> None:
    model = on_meta(retinue.create_model, name="nasnet_a_large")
    with torch.no_grad():
        _, maps = model.forward_intermediates(torch.empty(1, 3, 331, 331, device="meta"))
    assert [(m.shape[1], m.shape[2]) for m in maps] == [(96, 165), (168, 83), (1008, 42), (2016, 21), (4032, 11)]
    assert [(tap["num_chs"], tap["reduction"]) for tap in model.feature_info] == [(96, 2), (168, 4), (1008, 8), (2016, 16), (4032, 32)]


@pytest.mark.parametrize("N", [2, 4, 6])
def test_reductions_stand_before_the_thirds(N: int) -> None:
    kinds = [cell.stride for stage in on_meta(nasnet, N=N, F=4, stem="cifar").stages for cell in stage]
    places = [i for i, stride in enumerate(kinds) if stride == 2]
    normals_before = [kinds[:place].count(1) for place in places]
    assert normals_before == [3 * N // 3, 6 * N // 3] == {6: [6, 12], 4: [4, 8], 2: [2, 4]}[N]
    stem = [cell.stride for stage in on_meta(nasnet, N=N, F=4, stem="imagenet").stages for cell in stage]
    assert stem == [2, 2, *kinds]


@pytest.mark.parametrize(("kernel", "filters"), [(5, 32), (3, 32), (7, 8)])
def test_parameters_of_projections_and_separable_convolutions(kernel: int, filters: int) -> None:
    count = 2 * (kernel**2 * filters + filters**2) + 4 * filters
    assert parameters(Separable(filters, filters, kernel, 1, Norm())) == count
    assert kernel != 5 or count == 3776
    cell = on_meta(nasnet, **TINY, stem="cifar").stages[0][0]
    assert parameters(cell.cur) == 12 * 4 + 2 * 4  # three times F come from the stem
    assert parameters(cell.prev) == 0  # and take the place of h_{i-1} as they are


def test_the_cells_of_nasnet_a_join_what_the_official_code_joins() -> None:
    assert NASNET_A.concat("normal") == (1, 2, 3, 4, 5, 6)
    assert NASNET_A.concat("reduce") == (3, 4, 5, 6)
    rule = Genotype(NASNET_A.normal, NASNET_A.reduce)  # what no block uses
    assert rule.concat("normal") == (2, 3, 4, 5, 6)
    assert rule.concat("reduce") == (4, 5, 6)
    assert Cell(NASNET_A, "normal", 48, 48, 8, False, Norm(), False).out_chs == 48
    assert Cell(NASNET_A, "reduce", 48, 48, 16, False, Norm(), False).out_chs == 64


def reference(cell: Cell, blocks: Any, joined: Any, cur: torch.Tensor, prev: torch.Tensor) -> torch.Tensor:
    """Compute a cell once more, as the page writes it: every operation by itself, with a ReLU of its own."""
    states = [cell.cur(cur), cell.prev(prev)]
    for b, (left, left_op, right, right_op, _) in enumerate(blocks):
        sides = []
        for edge, state, name in ((2 * b, left, left_op), (2 * b + 1, right, right_op)):
            layer = cell.ops[edge]
            relu = name.startswith(("sep", "conv", "dil")) or (name == "identity" and not isinstance(layer, nn.Identity))
            sides.append(layer(F.relu(states[state]) if relu else states[state]))
        states.append(sides[0] + sides[1])
    return F.relu(torch.cat([states[i] for i in joined], 1))


@pytest.mark.parametrize("kind", ["normal", "reduce"])
def test_a_cell_computes_what_its_blocks_say(kind: Any) -> None:
    cell: Any = Cell(NASNET_A, kind, 12, 20, 4, False, Norm(), False)
    cur, prev = torch.rand(2, 12, 9, 8), torch.rand(2, 20, 9, 8)
    expected = reference(cell, getattr(NASNET_A, kind), NASNET_A.concat(kind), cur, prev)
    torch.testing.assert_close(cell(cur, prev), expected, rtol=0, atol=0)
    assert expected.std() > 0.1


def test_a_reduction_has_stride_two_on_its_inputs_alone() -> None:
    cell: Any = Cell(NASNET_A, "reduce", 8, 8, 4, False, Norm(), False)
    strides = [edge[0] < 2 for edge in cell.edges]
    halved = [layer(torch.rand(1, 4, 6, 6)).shape[-1] == 3 for layer in cell.ops]
    assert halved == strides


def test_a_pool_that_two_blocks_take_is_computed_once() -> None:
    cell: Any = Cell(NASNET_A, "normal", 8, 8, 4, False, Norm(), False).eval()
    calls = []
    for i, layer in enumerate(cell.ops):
        layer.register_forward_hook(lambda *args, i=i: calls.append(i))
    cell(torch.rand(1, 8, 4, 4), torch.rand(1, 8, 4, 4))
    assert len(calls) == len(set(calls)) == 9  # of ten: avg3 of state 1 stands there twice


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("stride", "width"), [(1, 4), (2, 4), (1, 6), (2, 6)])
@pytest.mark.parametrize("side", [8, 7, 1])
def test_every_operation_keeps_or_halves_any_map(name: str, stride: int, width: int, side: int) -> None:
    layer, relu = operation(name, 4, width, stride, Norm())
    x = torch.rand(2, 4, side, side + 1)
    assert layer.eval()(x).shape == (2, width, -(-side // stride), -(-(side + 1) // stride))
    assert relu == (name.startswith(("sep", "conv", "dil")) or (name == "identity" and (stride, width) != (1, 4)))


def tensorflow_pool(x: torch.Tensor, kernel: int, stride: int, average: bool) -> torch.Tensor:
    """Pool as TensorFlow's SAME padding does: one pixel more at the end, and padding counts in no average."""
    pads = []
    for side in (x.shape[3], x.shape[2]):
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        pads += [total // 2, total - total // 2]
    if not average:
        return F.max_pool2d(F.pad(x, pads, value=-torch.inf), kernel, stride)
    ones = F.pad(torch.ones_like(x), pads)
    return F.avg_pool2d(F.pad(x, pads), kernel, stride) / F.avg_pool2d(ones, kernel, stride)


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from(["avg3", "max3", "max5", "max7"]), st.sampled_from([1, 2]))
def test_pools_pad_as_tensorflow_does(height: int, width: int, name: str, stride: int) -> None:
    x = torch.randn(1, 2, height, width)
    expected = tensorflow_pool(x, int(name[3]), stride, name.startswith("avg"))
    torch.testing.assert_close(Pool(name, 2, 2, stride, Norm())(x), expected, rtol=0, atol=1e-6)


def test_timms_average_counts_the_padding() -> None:
    ones = torch.ones(1, 1, 4, 4)
    assert Pool("avg3", 1, 1, 2, Norm())(ones).tolist() == [[[[1, 1], [1, 1]]]]
    counted = Pool("avg3", 1, 1, 2, Norm(count_pad=True))(ones)  # 9, 6 and 4 pixels of 9 lie within the image
    torch.testing.assert_close(counted, torch.tensor([[[[9.0, 6.0], [6.0, 4.0]]]]) / 9, rtol=0, atol=1e-7)
    assert Pool("avg3", 1, 1, 1, Norm(count_pad=True))(ones).unique().tolist() == [1]  # not where the stride is 1


def test_a_factorised_reduction_takes_every_second_pixel_and_those_between() -> None:
    layer = FactorizedReduction(1, 2, Norm()).eval()
    layer.norm.eps = 0.0
    nn.init.ones_(layer.conv1.weight)
    nn.init.ones_(layer.conv2.weight)
    even = torch.arange(16.0).view(1, 1, 4, 4)
    assert layer(even)[0].tolist() == [[[0, 2], [8, 10]], [[5, 7], [13, 15]]]
    odd = torch.arange(9.0).view(1, 1, 3, 3)
    assert layer(odd)[0].tolist() == [[[0, 2], [6, 8]], [[4, 0], [0, 0]]]
    assert layer(torch.ones(1, 1, 1, 1))[0].flatten().tolist() == [1, 0]


def test_the_large_network_alone_skips_the_reduction() -> None:
    def shapes(**options: Any) -> list[tuple[int, bool]]:
        model = on_meta(nasnet, **TINY, stem="cifar", **options)
        inputs = [stage[1].prev for stage in model.stages[1:]]
        return [(next(layer.parameters()).shape[1], isinstance(layer, FactorizedReduction)) for layer in inputs]

    assert shapes() == [(24, True), (48, True)]  # 6 F and 12 F: the cells before the reductions
    # what the reductions took: the stem's 3 F, and the first reduction's 8 F
    assert shapes(skip_reduction_input=True) == [(12, True), (32, True)]


def test_a_genotype_with_concatenation_and_unused_inputs_runs() -> None:
    odd = Genotype(
        normal=[(0, "conv3", 0, "conv1x7_7x1", "concat"), (2, "max5", 2, "dil3", "add")],
        reduce=[(0, "conv1", 0, "conv1x3_3x1", "concat"), (2, "max7", 0, "identity", "add")],
    )
    assert odd.concat("normal") == (1, 3)
    model: Any = nasnet(odd, **TINY, stem="cifar", input_size=28)
    assert isinstance(model.stages[1][0].match["1"], FactorizedReduction)
    assert model.stages[0][0].match["1"].conv.weight.shape == (4, 12, 1, 1)  # the stem's width in the first cell
    out = model(images(3, 3, 28, 28))
    out.sum().backward()
    assert out.shape == (3, 5)
    assert all(p.grad is not None for p in model.parameters())


@settings(max_examples=12)
@given(st.data())
def test_every_genotype_builds_and_its_json_gives_it_back(data: st.DataObject) -> None:
    def blocks() -> list[Any]:
        ops, combinations = st.sampled_from(OPERATIONS), st.sampled_from(["add", "concat"])
        return [
            (data.draw(st.integers(0, b + 1)), data.draw(ops), data.draw(st.integers(0, b + 1)), data.draw(ops), data.draw(combinations))
            for b in range(data.draw(st.integers(1, 3)))
        ]

    genotype = Genotype(blocks(), blocks())
    assert Genotype.from_json(genotype.to_json()) == genotype == Genotype(**json.loads(json.dumps(genotype.to_dict())))
    model = on_meta(nasnet, genotype=genotype, N=1, F=8, num_classes=5)
    with torch.no_grad():
        assert model(torch.empty(2, 3, 70, 65, device="meta")).shape == (2, 5)


def test_a_genotype_is_taken_in_every_form() -> None:
    built = [retinue.create_model("nasnet", genotype=form, input_size=32, **TINY) for form in (LINE.to_dict(), LINE.to_json())]
    assert str(built[0]) == str(built[1]) == str(nasnet(LINE, input_size=32, **TINY))
    assert str(nasnet("nasnet-a", input_size=32, **TINY)) == str(nasnet(NASNET_A, input_size=32, **TINY))


@pytest.mark.parametrize("N", [1, 2])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("side", [8, 28, 33])
def test_every_size_that_is_promised_runs_and_learns(N: int, stem: Any, skip: bool, side: int) -> None:
    model = nasnet(LINE, N, 4, stem, num_classes=5, in_chans=1, skip_reduction_input=skip)
    model(torch.randn(4, 1, side, side + 3)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["nasnet_a_mobile", "nasnet_a_cifar"])
@pytest.mark.parametrize(("side", "first"), [(28, 28), (32, 32), (64, 32)])
def test_small_images_take_the_stem_of_cifar(name: str, side: int, first: int) -> None:
    model = on_meta(retinue.create_model, name=name, input_size=side, in_chans=1)
    _, maps = model.forward_intermediates(torch.empty(1, 1, side, side, device="meta"))
    assert [m.shape[-1] for m in maps] == [first, first // 2, first // 4]
    assert [tap["reduction"] for tap in model.feature_info] == ([1, 2, 4] if side < 48 else [2, 4, 8])
    stem = ["the ImageNet stem of a convolution and two reduction cells -> the CIFAR stem of a convolution"]
    assert model.adaptation == (stem if name == "nasnet_a_mobile" else []) + (["stem.0: stride 1 -> 2"] if side == 64 else [])


def test_large_images_take_the_stem_of_imagenet() -> None:
    model = on_meta(retinue.create_model, name="nasnet_a_mobile", input_size=65)
    assert model.adaptation == []
    assert len(model.stages) == 4
    assert model.stem[0].conv.padding == (0, 0)


def test_batch_norms_are_those_of_the_official_code() -> None:
    for stem, eps in (("cifar", 1e-5), ("imagenet", 1e-3)):
        model = on_meta(nasnet, **TINY, stem=stem, input_size=96, aux=True, bn_momentum=0.0003)
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        assert {(norm.eps, norm.momentum) for norm in norms} == {(eps, 0.0003)}
        assert all(m.bias is None for m in model.modules() if isinstance(m, nn.Conv2d))


def test_the_initial_weights_have_the_variance_of_their_fan_out() -> None:
    op: Any = nasnet(N=1, F=64, stem="cifar").stages[0][0].ops[0]
    assert abs(op.pw1.weight.std().item() / (2 / 64) ** 0.5 - 1) < 0.05
    assert abs(op.dw2.weight.std().item() / (2 / 25) ** 0.5 - 1) < 0.05


@pytest.mark.parametrize(("cell", "progress", "keep"), [(0, 0, 1.0), (19, 1, 0.6), (9, 0.5, 0.9), (19, 0.5, 0.8), (0, 1, 0.98)])
def test_the_schedule_of_drop_path(cell: int, progress: float, keep: float) -> None:
    assert keep_probability(0.6, cell, 20, progress) == pytest.approx(keep, abs=1e-12)
    drop = ScheduledDropPath(0.6, 20, steps=10)
    drop.step.fill_(round(10 * progress))
    assert drop.probability(cell).item() == pytest.approx(keep, abs=1e-6)


def test_the_schedule_stays_at_its_end() -> None:
    drop = ScheduledDropPath(0.6, 20, steps=3)
    for _ in range(7):
        drop.advance()
    assert drop.probability(19).item() == pytest.approx(0.6)
    assert ScheduledDropPath(0.6, 20).probability(19).item() == pytest.approx(0.6)


def test_dropped_branches_are_zero_and_kept_ones_are_divided_by_the_probability() -> None:
    out = drop_branch(torch.ones(2000, 3, 2, 2), torch.tensor(0.8))
    per_image = out.flatten(1)
    assert torch.equal(per_image, per_image[:, :1].expand_as(per_image))
    assert set(per_image[:, 0].unique().tolist()) == {0.0, 1.25}
    assert abs(out.mean().item() - 1) < 0.05  # of 2,000 draws of deviation 0.5: 4 standard errors


def test_identities_are_never_dropped() -> None:
    line = Genotype([(0, "identity", 1, "identity", "add")], [(0, "identity", 1, "identity", "add")])
    cell: Any = Cell(line, "normal", 4, 4, 4, False, Norm(), False).eval()
    x = torch.rand(50, 4, 3, 3)
    assert torch.equal(cell(x, x, torch.tensor(0.01)), cell(x, x))
    projected: Any = Cell(line, "reduce", 4, 4, 4, False, Norm(), False).eval()
    assert torch.equal(projected(x, x, torch.tensor(0.01)), projected(x, x))


def test_drop_path_counts_the_batches_of_training_and_drops_in_training_alone() -> None:
    model: Any = nasnet(**TINY, stem="cifar", drop_path_keep=0.5, drop_path_steps=2)
    plain: Any = nasnet(**TINY, stem="cifar")
    plain.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name != "drop_path.step"})
    x = images(4, 3, 16, 16)
    assert model.drop_path.cells == 5
    assert nasnet(**TINY, stem="imagenet", drop_path_rate=0.2).drop_path.cells == 7
    assert torch.equal(model(x), plain(x))  # nothing is dropped at the beginning
    assert not torch.equal(model(x), plain(x))
    assert model.state_dict()["drop_path.step"].item() == 2
    model.eval()
    assert torch.equal(model(x), model(x))
    assert model.drop_path.step.item() == 2
    assert nasnet(**TINY, drop_path_keep=1.0).drop_path is None


def test_it_wraps_any_branch() -> None:
    drop = ScheduledDropPath(0.5, cells=4)
    x = torch.ones(400, 6)
    assert 0 < (drop(x, cell=3) == 0).float().mean() < 1
    assert torch.equal(drop.eval()(x, cell=3), x)
    with pytest.raises(ArgumentError, match=r"ScheduledDropPath: `cell` must lie between 0 and 3, got 4\. Cells count from 0\."):
        drop.train()(x, cell=4)


def test_keeping_everything_is_no_drop_path() -> None:
    x = torch.randn(8, 3, 2, 2)
    assert torch.equal(drop_branch(x, torch.tensor(1.0)), x)
    assert torch.equal(ScheduledDropPath(1.0, cells=2)(x, cell=1), x)


REFUSED = [
    ({"genotype": "nasnet-b"}, r"nasnet: genotype needed: the four blocks of nasnet-b exist only as a picture.*4@1152 has 2\.6 M"),
    ({"genotype": "nasnet-c"}, r"genotype needed: .*nasnet-c.*4@640.*Pass genotype=Genotype\(normal=\[\.\.\.\], reduce=\[\.\.\.\]\)"),
    ({"genotype": "nasnet_a"}, r'nasnet: no genotype is called "nasnet_a"\. Did you mean nasnet-a'),
    ({"genotype": "{not json"}, r"this is not the JSON of a genotype: .*Write it with Genotype\.to_json\."),
    ({"genotype": {"normal": []}}, r"this is not the JSON of a genotype: .*reduce"),
    ({"N": 0}, r"nasnet: `N` must be at least 1, got 0\."),
    ({"F": 33}, r"`F` must be divisible by 4, got 33: its stem cells have F / 4 and F / 2 filters"),
    ({"F": 33, "stem": "cifar"}, r"`F` must be divisible by 2, got 33: half of the filters go to each part of a factorised reduction\."),
    ({"F": 0}, r"`F` must be divisible by 4, got 0"),
    ({"P": 1000}, r"`P` must be divisible by 24, got 1000\. It is the number of channels at the end: 6 states of 4 F\."),
    ({"P": 768, "F": 32}, r"`F` and `P` say the same twice, got F=32 and P=768\. Give one of them\."),
    ({"drop_path_keep": 0.0}, r"`drop_path_keep` must lie in \(0, 1\], got 0\.0\. It is the share kept; 1 drops nothing\."),
    ({"drop_path_keep": 1.1}, r"`drop_path_keep` must lie in \(0, 1\], got 1\.1"),
    ({"drop_path_rate": 1.0}, r"`drop_path_rate` must lie in \[0, 1\), got 1\.0\. It is the share dropped, 1 - drop_path_keep\."),
    ({"drop_path_rate": 0.1, "drop_path_keep": 0.9}, r"`drop_path_keep` 0\.9 and `drop_path_rate` 0\.1 say the same twice"),
    ({"drop_path_keep": 0.6, "drop_path_steps": 0}, r"`drop_path_steps` must be positive, got 0\. It is the number of batches"),
    ({"stem": "cifr"}, r'no `stem` is called "cifr"\. Did you mean cifar\?'),
    ({"stem_multiplier": 0}, r"`stem_multiplier` must be at least 1, got 0"),
    ({"bn_momentum": 0.0}, r"`bn_momentum` must lie in \(0, 1\], got 0\.0"),
    ({"drop_rate": 1.0}, r"`drop_rate` must lie in \[0, 1\), got 1\.0"),
    ({"input_size": 7}, r"`input_size` must be at least 8, got \[7, 7\]\. Enlarge the images\."),
    ({"input_size": 8, "aux": True}, r"head needs a map of at least 5x5, and images of 8x8 px leave it 4x4\. Build it with aux=False"),
    ({"skip_reduction": True}, r'nasnet: no option is called "skip_reduction"\. Did you mean skip_reduction_input\?'),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_options_that_cannot_be_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        retinue.create_model("nasnet", **options)


GOOD: Any = (0, "sep3", 1, "identity", "add")
WRONG_BLOCKS: list[tuple[Any, str]] = [
    ([(2, "sep3", 1, "identity", "add")], r"Genotype: block 0 of `normal` takes state 2, and there are states 0 to 1 by then\. State 0 is"),
    ([GOOD, (0, "sep3", 3, "sep3", "add")], r"block 1 of `normal` takes state 3, and there are states 0 to 2"),
    ([(-1, "sep3", 1, "identity", "add")], r"takes state -1"),
    ([(0, "sep9", 1, "identity", "add")], r'Genotype: no operation is called "sep9"\. Did you mean sep'),
    ([(0, "sep3", 1, "identity", "sum")], r'Genotype: no combination is called "sum"\. There is add, concat\.'),
    ([(0, "sep3", 1)], r"block 0 of `normal` must be \(state, operation, state, operation, combination\), got \[0, 'sep3', 1\]"),
    ([], r"`normal` has no blocks\. Give one at least"),
]


@pytest.mark.parametrize(("blocks", "message"), WRONG_BLOCKS)
def test_blocks_that_cannot_be_are_refused(blocks: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Genotype(blocks, [GOOD])


def test_a_quarter_of_the_filters_must_be_even_where_the_stem_leaves_an_input_unused() -> None:
    unused = Genotype([GOOD], [(0, "sep3", 0, "max3", "add")])
    with pytest.raises(ArgumentError, match=r"needs an even number of filters, got 1: half of them.*Take `F` as a multiple of 8"):
        nasnet(unused, **TINY)
    nasnet(unused, **TINY, stem="cifar")


def test_joined_states_must_be_there() -> None:
    with pytest.raises(ArgumentError, match=r"`reduce_concat` must name states from 0 to 2, got \[3\]\."):
        Genotype([GOOD], [GOOD], reduce_concat=[3])


def test_images_that_are_too_small_are_refused_and_those_of_other_channels() -> None:
    model = nasnet(**TINY, stem="cifar").eval()
    with pytest.raises(ShapeError, match=r"at least 8x8 px, got 7x9"):
        model(torch.zeros(1, 3, 7, 9))
    with pytest.raises(ShapeError, match=r"takes 3 channels, got 1"):
        model(torch.zeros(1, 1, 9, 9))
