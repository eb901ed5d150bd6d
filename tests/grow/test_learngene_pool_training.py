"""Learngenes in training: distillation point by point, one configuration a step, the whole procedure, files, and limits."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import images, same
from torch import nn
from torch.testing import assert_close

import retinue
from retinue.data import Data
from retinue.engine.seeds import mix
from retinue.errors import ArgumentError, CheckpointError, NonFiniteError
from retinue.grow.learngene_distillation import LearngeneDistillation, PoolTraining, depth_points, distil_instance
from retinue.grow.learngene_pool import LearngenePool, measure_pool, read_pool, save_pool, select, train_learngene_pool
from retinue.models import tiny
from retinue.models.export import export, read_facts
from retinue.models.macs import count_macs
from retinue.models.stitches import tokens_of
from retinue.train import Supervised

SMALL: dict[str, Any] = {"patch_size": 2, "num_heads": 2, "mlp_ratio": 2}
NAMED: list[dict[str, Any]] = [{"name": "timm:vit_tiny_patch16_224", "embed_dim": width, "depth": 3, **SMALL} for width in (8, 16)]
QUICK: dict[str, Any] = {"batch_size": 32, "progress": False}


def digits() -> Data:
    return retinue.data.open("digits", train_images=96, test_images=60, val_fraction=0.0)


def vit(width: int = 16, depth: int = 3, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    given = {"num_classes": 10, "in_chans": 1, "input_size": 8, **SMALL, **options}
    return retinue.create_model("timm:vit_tiny_patch16_224", embed_dim=width, depth=depth, **given)


def a_batch(data: Data, size: int = 8) -> Any:
    return next(data.train.loader(size).batches())


def a_pool() -> LearngenePool:
    return LearngenePool([vit(8, seed=1), vit(16, seed=2)])


def test_points_are_the_last_blocks_of_the_thirds() -> None:
    assert [depth_points(n) for n in (3, 6, 9, 12)] == [[0, 1, 2], [1, 3, 5], [2, 5, 8], [3, 7, 11]]
    assert depth_points(6, ["end", "front"]) == [1, 5]
    assert depth_points(7, ["end"]) == [6]
    for depth, points, message in (
        (
            8,
            ["front", "end"],
            r"8 blocks cannot be cut into thirds\. Take 3, 6, 9 or 12 blocks, or supervise only the end: points=",
        ),
        (2, ["front", "middle", "end"], r"a network of 2 blocks cannot be supervised at 3 points\. Name fewer `points`"),
        (6, ["start"], 'no point is called "start"'),
        (6, [], r"`points` must be one or more of"),
        (6, ["end", "end"], r"each once, got \['end', 'end'\]"),
    ):
        with pytest.raises(ArgumentError, match=message):
            depth_points(depth, points)


@settings(max_examples=20)
@given(st.integers(1, 20))
def test_thirds_of_any_depth(thirds: int) -> None:
    assert depth_points(3 * thirds) == [thirds - 1, 2 * thirds - 1, 3 * thirds - 1]


def test_a_copy_with_identity_maps_has_nothing_left_to_learn_from_features() -> None:
    teacher = vit(16, 6)
    student = copy.deepcopy(teacher)
    objective = LearngeneDistillation(student, teacher)
    assert (objective.student_blocks, objective.teacher_blocks) == ([1, 3, 5], [1, 3, 5])
    with torch.no_grad():
        for way in objective.maps.modules():
            if isinstance(way, nn.Linear):
                way.weight.copy_(torch.eye(16))
                way.bias.zero_()
    numbers = objective(student.eval(), a_batch(digits()))
    assert (float(numbers["att"]), float(numbers["rep"])) == (0, 0)
    assert_close(numbers["loss"].detach(), 0.1 * numbers["cls"] + 0.9 * numbers["logit"])


def test_the_loss_is_the_paper_s_of_timm_s_own_features() -> None:
    teacher, student = vit(24, 6, seed=1), vit(16, 3, seed=2)
    objective = LearngeneDistillation(student, teacher, points=["front", "middle", "end"], alpha=0.3, tau=2.0)
    batch = a_batch(digits())
    numbers = objective(student.eval(), batch)
    _, ours = student.forward_intermediates(batch.images, output_fmt="NLC", return_prefix_tokens=True)
    _, theirs = teacher.forward_intermediates(batch.images, output_fmt="NLC", return_prefix_tokens=True)
    rep = att = 0.0
    for k, (i, j) in enumerate(zip((0, 1, 2), (1, 3, 5), strict=True)):
        z, t = (torch.cat([x[n][1], x[n][0]], 1) for x, n in ((ours, i), (theirs, j)))  # class token first
        rep += F.mse_loss(z, objective.maps["block"][k](t))
        into = [_enters(net, batch.images, n) for net, n in ((student, i), (teacher, j))]
        a, b = (net.blocks[n].attn(net.blocks[n].norm1(x)) for net, n, x in zip((student, teacher), (i, j), into, strict=True))
        att += F.mse_loss(a, objective.maps["attention"][k](b))
    z, t = student(batch.images), teacher(batch.images)
    logit = -((t / 2).softmax(1) * (z / 2).log_softmax(1)).mean()
    expected = 0.3 * F.cross_entropy(z, batch.labels) + 0.7 * (logit + rep + att)
    for name, value in (("rep", rep), ("att", att), ("logit", logit), ("loss", expected)):
        assert_close(numbers[name], value, msg=name, atol=1e-6, rtol=1e-5)


def _enters(net: Any, x: torch.Tensor, block: int) -> torch.Tensor:
    x = net.norm_pre(net._pos_embed(net.patch_embed(x)))
    return net.blocks[:block](x)


def test_a_mixer_s_tokens_are_compared_token_by_token() -> None:
    torch.manual_seed(0)
    student, teacher = (timm.models.mlp_mixer.MlpMixer(10, 8, 1, 4, 3, width).eval() for width in (12, 20))
    objective = LearngeneDistillation(student, teacher, points=["front"])
    x = a_batch(digits())
    mixed = [net.blocks[0].mlp_tokens(net.blocks[0].norm1(net.stem(x.images)).transpose(1, 2)).mT for net in (student, teacher)]
    assert_close(objective(student, x)["att"], F.mse_loss(mixed[0], objective.maps["attention"][0](mixed[1])).detach())


class Said(nn.Module):
    """A network in timm's names whose logits are said beforehand."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.net = timm.models.vision_transformer.VisionTransformer(8, 4, 1, 2, embed_dim=4, depth=1, num_heads=1)
        self.blocks, self.norm = self.net.blocks, self.net.norm
        self.said = torch.tensor([logits])
        self.num_features, self.num_classes, self.num_prefix_tokens, self.in_chans = 4, 2, 1, 1

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.net.forward_features(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return self.said.expand(len(x), -1) + 0 * x.sum()

    def reset_classifier(self, num_classes: int) -> None:
        """Nothing is learned."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def test_answers_count_as_a_mean_over_images_and_classes() -> None:
    student, teacher = Said([math.log(3), 0.0]), Said([0.0, 0.0])
    objective = LearngeneDistillation(student, teacher, points=["end"])
    batch = a_batch(digits(), 1)
    batch.labels.zero_()
    numbers = objective(student.eval(), batch)
    assert float(numbers["logit"]) == pytest.approx(-(0.5 * math.log(0.75) + 0.5 * math.log(0.25)) / 2)  # 0.4185
    assert float(numbers["cls"]) == pytest.approx(-math.log(0.75))


def test_a_step_teaches_the_student_and_the_maps_and_nothing_else() -> None:
    teacher, student = vit(24, 6, seed=1, proj_drop_rate=0.5), vit(16, 3, seed=2)
    before = copy.deepcopy(teacher.state_dict())
    objective = LearngeneDistillation(student, teacher)
    maps = [way.weight.clone() for way in objective.maps["attention"]] + objective.learned_maps()
    mine = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    run = retinue.fit(student, objective, digits(), max_steps=2, **QUICK)
    assert same(before, teacher.state_dict())
    assert not any(part.training for part in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    after = [way.weight for way in objective.maps["attention"]] + objective.learned_maps()
    assert not any(torch.equal(a, b) for a, b in zip(maps, after, strict=True))
    assert sum(not torch.equal(tensor, mine[name]) for name, tensor in run.model.state_dict().items()) == len(mine)
    assert set(run.model.state_dict()) == set(mine)
    objective.train()
    assert not teacher.training


@pytest.mark.parametrize("kind", ["distil", "pool"])
def test_stopped_and_resumed_is_uninterrupted_bit_for_bit(kind: str, tmp_path: Path) -> None:
    def train(folder: Path, steps: int = 6) -> Any:
        torch.manual_seed(3)
        ancestry = vit(24, 6, seed=1)
        model = vit(16, 3, seed=2, drop_path_rate=0.1) if kind == "distil" else a_pool()
        objective = LearngeneDistillation(model, ancestry) if kind == "distil" else PoolTraining(ancestry, seed=4)
        more = {"max_steps": steps, "epochs": 6, "schedule": "constant", "checkpoint_every": 2, "accumulate": 2, "run_dir": folder}
        run = retinue.fit(model, objective, digits(), **more, **QUICK)
        return {**run.model.state_dict(), **{f"objective.{name}": tensor for name, tensor in run.objective.state_dict().items()}}

    whole = train(tmp_path / "whole")
    train(tmp_path / "cut")
    (tmp_path / "cut" / "checkpoints" / "step-000000006").rename(tmp_path / "gone")  # killed after step 4
    assert same(whole, train(tmp_path / "cut"))


def test_one_configuration_a_step_drawn_by_the_seed_and_the_step() -> None:
    pool, batch = a_pool(), a_batch(digits())
    seen: list[Any] = []
    forward = pool.forward
    pool.forward = lambda x, config=None: (seen.append(config), forward(x, config))[1]  # type: ignore[method-assign]
    objective = PoolTraining(distil=0, seed=7)
    for step in range(4):
        for part in batch.split([4, 4]):
            next(objective.losses(pool, part, step))
    assert [pool.configs.index(config) for config in seen] == [mix(7, step) % 9 for step in (0, 0, 1, 1, 2, 2, 3, 3)]
    counts = torch.bincount(torch.tensor([mix(7, step) % 9 for step in range(9000)]), minlength=9)
    assert 900 < int(counts.min()) <= int(counts.max()) < 1100


def test_the_pool_s_loss_is_labels_and_the_ancestry_half_and_half() -> None:
    pool, teacher, batch = a_pool(), vit(24, 6), a_batch(digits())
    objective = PoolTraining(teacher, distil=0.25, tau=3.0, seed=1)
    pool.eval()
    _, numbers = next(objective.losses(pool, batch, 5))
    z, t = pool(batch.images, pool.configs[mix(1, 5) % 9]), teacher(batch.images)
    apart = F.kl_div((z / 3).log_softmax(1), (t / 3).softmax(1), reduction="batchmean")
    assert_close(numbers["loss"], 0.75 * F.cross_entropy(z, batch.labels) + 0.25 * 9 * apart)
    assert_close(PoolTraining(distil=0)(pool, batch)["loss"], _one_of(pool, batch), atol=1e-6, rtol=0)


def _one_of(pool: LearngenePool, batch: Any) -> torch.Tensor:
    torch.manual_seed(0)
    config = pool.draw()
    torch.manual_seed(0)
    return F.cross_entropy(pool(batch.images, config), batch.labels)


def test_held_out_numbers_are_means_over_all_configurations() -> None:
    data = digits()
    pool = a_pool().eval()
    numbers = PoolTraining(distil=0).evaluate(pool.train(), data.test.loader(32))
    table = measure_pool(pool, data.test)
    assert pool.training
    assert list(table) == [str(config) for config in pool.configs]
    assert numbers["top1"] == pytest.approx(sum(row["top1"] for row in table.values()) / 9)
    assert numbers["loss"] == pytest.approx(sum(row["loss"] for row in table.values()) / 9, abs=1e-6)
    for config in pool.configs:
        ordinary = retinue.evaluate(pool.build(config), data.test)
        assert numbers[f"top1/{config}"] == table[str(config)]["top1"] == ordinary["top1"]
        assert table[str(config)]["params"] == pool.num_params(config)
    assert pool.table == table


def test_select_keeps_both_limits_and_prefers_the_smaller_of_equals() -> None:
    pool = a_pool()
    macs = {str(config): float(pool.num_macs(config)) for config in pool.configs}
    table: dict[str, dict[str, float]] = {name: {"top1": 0.5, "macs": macs[name]} for name in macs}
    table["0.1-1.0"]["top1"] = 0.9
    assert str(select(pool, table)) == "0.1-1.0"
    assert pool.num_params("0.1-1.0") == max(map(pool.num_params, pool.configs))
    assert str(select(pool, table, max_params=pool.num_params("0.1-1.0") - 1)) == "0"
    assert str(select(pool, table, max_macs=macs["0"])) == "0"
    table["0.2-1.2"]["top1"] = 0.6
    assert str(select(pool, table, max_params=pool.num_params("1") - 1, max_macs=macs["1"])) == "0.2-1.2"
    pool.table = {"1": {"top1": 0.1}}
    assert str(select(pool)) == str(select(pool, max_macs=macs["1"])) == "1"
    with pytest.raises(ArgumentError, match=r"no configuration keeps max_params=10 \(the least is \d,\d\d\d\) and max_macs=7"):
        select(pool, table, max_params=10, max_macs=7)
    with pytest.raises(ArgumentError, match=r"`table` has none of the pool's configurations\. Measure them: measure_pool\("):
        select(pool, {"cost": {"total": 1.0}})


def test_a_pool_is_one_file_and_a_run(tmp_path: Path) -> None:
    data = digits()
    run = retinue.fit(a_pool(), PoolTraining(distil=0), data, max_steps=2, run_dir=tmp_path / "run", **QUICK)
    measure_pool(run.model, data.test)
    assert save_pool(run.model, tmp_path / "pool.safetensors") == tmp_path / "pool.safetensors"
    for again in (read_pool(tmp_path / "pool.safetensors"), retinue.load(tmp_path / "run")):
        assert same(dict(again.state_dict()), dict(run.model.state_dict()))
        assert again.configs == run.model.configs
        assert (again.classes, again.preprocessing) == (data.classes, data.preprocessing)
        assert again.build("0.1-1.1").classes == data.classes
        assert not again.training
    assert read_pool(tmp_path / "pool.safetensors").table == run.model.table
    own = LearngenePool([copy.deepcopy(net) for net in run.model.instances], pairs=[(0, 1)], window=1)
    for net in own.instances:
        del net.retinue_config
    save_pool(LearngenePool(list(own.instances), window=1), tmp_path / "own.safetensors")
    with pytest.raises(CheckpointError, match=r"holds instances of your own\. Build them and give them: read_pool\(path, instances="):
        read_pool(tmp_path / "own.safetensors")
    mine = read_pool(tmp_path / "own.safetensors", [vit(8), vit(16)])
    assert (mine.window, len(mine.configs)) == (1, 5)
    with pytest.raises(CheckpointError, match="does not fit these instances"):
        read_pool(tmp_path / "own.safetensors", [vit(8), vit(24)])


def test_an_altered_or_foreign_file_is_noticed(tmp_path: Path) -> None:
    path = save_pool(a_pool(), tmp_path / "pool.safetensors")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    (tmp_path / "altered").write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"altered was altered after it was written: its SHA-256 is not"):
        read_pool(tmp_path / "altered")
    (tmp_path / "text").write_text("no tensors")
    for place in ("text", "nothing"):
        with pytest.raises(CheckpointError, match=f"{place} is no pool that save_pool wrote"):
            read_pool(tmp_path / place)
    with pytest.raises(CheckpointError, match="could not be written"):
        save_pool(a_pool(), path / "below-a-file")


def test_the_procedure_gives_ordinary_networks_beside_their_twins_and_resumes(tmp_path: Path) -> None:
    data = digits()

    def train() -> dict[str, dict[str, float]]:
        return train_learngene_pool(
            vit(24, 6), data, instances=NAMED, ancestry_epochs=1, instance_epochs=1, pool_epochs=2, twins="ends", twin_epochs=1, lr=3e-3,
            window=1, seed=1, run_dir=tmp_path, **QUICK,
        )  # fmt: skip

    numbers = train()
    pool = read_pool(tmp_path / "pool.safetensors")
    assert list(numbers) == ["ancestry", "instance 0", "instance 1", *map(str, pool.configs), "cost"]
    assert {name for name, row in numbers.items() if "twin" in row} == {"0", "0.0-1.0"}
    for config in pool.configs:
        ordinary = retinue.load(tmp_path / "ordinary" / str(config))
        assert retinue.evaluate(ordinary, data.test)["top1"] == pytest.approx(numbers[str(config)]["top1"], abs=1e-6)
        assert type(ordinary).__name__ == ("VisionTransformer" if config.alone else "StitchedNetwork")
        assert same(dict(ordinary.state_dict()), dict(pool.build(config).state_dict()))
    assert train() == numbers
    for gone in ("pool", "twin-0"):  # killed while the pool was trained
        (tmp_path / "stages" / gone).rename(tmp_path / f"stage-{gone}")
    (tmp_path / "pool" / "checkpoints" / "step-000000006").rename(tmp_path / "last")
    assert train() == numbers
    maps = torch.load(tmp_path / "instance-0" / "checkpoints" / "step-000000003" / "training.pt", weights_only=True)["objective"]
    assert maps["maps.block.2.weight"].shape == (8, 24)


def test_stitches_begin_with_the_maps_of_the_stages() -> None:
    data, ancestry = digits(), vit(16, 6)
    kept = copy.deepcopy(ancestry.state_dict())
    student, maps = distil_instance(copy.deepcopy(ancestry), vit(8, seed=9), data, epochs=1, seed=1, **QUICK)
    assert [weight.shape for weight in maps["block"]] == [(8, 16)] * 3
    numbers = train_learngene_pool(
        ancestry, data, instances=[student, vit(16, seed=3)], window=1, instance_epochs=1, pool_epochs=0, points=[["end"], ["end"]], seed=2,
        **QUICK,
    )  # fmt: skip
    assert same(kept, ancestry.state_dict())
    assert all(parameter.requires_grad for parameter in ancestry.parameters())
    assert len(numbers) == 3 + 5 + 1
    again = copy.deepcopy(student)
    with pytest.raises(ArgumentError, match=r"needs the maps that .* and `instance_epochs` is 0"):  # nothing was distilled
        train_learngene_pool(ancestry, data, instances=[again, vit(16)], instance_epochs=0, pool_epochs=0, **QUICK)
    fitted = train_learngene_pool(
        ancestry, data, instances=[again, vit(16)], window=1, instance_epochs=0, pool_epochs=0, init="least_squares", twins="all",
        twin_epochs=0, **QUICK,
    )  # fmt: skip
    assert [name for name, row in fitted.items() if "twin" in row] == ["0", "1", "0.0-1.0", "0.1-1.1", "0.2-1.2"]


def test_costs_are_counted_in_multiply_adds() -> None:
    data, ancestry = digits(), vit(24, 6)
    numbers = train_learngene_pool(
        ancestry, data, instances=NAMED, window=1, ancestry_epochs=0, instance_epochs=1, pool_epochs=2, distil=0.0, twin_epochs=4, **QUICK
    )
    each = [row["macs"] for name, row in numbers.items() if "macs" in row]
    asked = count_macs(ancestry, 8, in_chans=1)
    maps = [2 * 3 * 17 * 24 * 8, 2 * 1 * 17 * 24 * 16]
    instances = sum(3 * (numbers[name]["macs"] + learned) + asked for name, learned in zip("01", maps, strict=True))
    cost = numbers["cost"]
    assert cost["ancestry"] == cost["twins"] == 0
    assert cost["instances"] == 96 * instances
    assert cost["pool"] == round(96 * 2 * 3 * sum(each) / 5)
    assert cost["total"] == pytest.approx(cost["instances"] + cost["pool"], abs=1)
    assert cost["from_scratch"] == 96 * 4 * 3 * sum(each)


def test_a_built_network_exports_and_trains_on(tmp_path: Path) -> None:
    data = digits()
    pool: Any = a_pool()
    pool.classes, pool.preprocessing = data.classes, data.preprocessing
    net = pool.build("0.1-1.1")
    assert export(net, tmp_path / "net.onnx").exists()
    assert read_facts(tmp_path / "net.onnx")["model"]["name"] == "learngene_stitched"
    program = torch.export.export(net.eval(), (images(2, 1, 8, 8),))
    assert_close(program.module()(images(2, 1, 8, 8)), net(images(2, 1, 8, 8)))
    before = copy.deepcopy(net.state_dict())
    tuned = retinue.fit(net, Supervised(), data, max_steps=2, run_dir=tmp_path / "tuned", **QUICK).model
    assert not any(torch.equal(tensor, before[name]) for name, tensor in tuned.state_dict().items())
    assert same(dict(retinue.load(tmp_path / "tuned").state_dict()), dict(tuned.state_dict()))


@pytest.mark.parametrize("kind", ["ours", "timm_cnn", "bare"])
def test_convolutional_networks_are_refused_as_student_ancestry_and_pool(kind: Any) -> None:
    data = retinue.data.open("digits", train_images=32, test_images=32, channels=3, input_size=32)
    net, fitting = tiny(kind), tiny("timm_vit")
    with pytest.raises(ArgumentError, match=r"the student \(\w+\) has no `blocks`"):
        LearngeneDistillation(net, fitting)
    with pytest.raises(ArgumentError, match=r"the teacher \(\w+\) has no `blocks`"):
        LearngeneDistillation(fitting, net, points=["end"])
    with pytest.raises(ArgumentError, match=r"PoolTraining: the model must be a LearngenePool, got \w+\. Build one: LearngenePool\("):
        retinue.fit(net, PoolTraining(distil=0), data, max_steps=1, progress=False)
    two = [tiny("timm_vit"), tiny("timm_vit")]
    with pytest.raises(ArgumentError, match=r"the teacher \(\w+\) has no `blocks`"):
        train_learngene_pool(net, data, instances=two, points=[["end"], ["end"]], progress=False)


def test_teachers_that_do_not_fit_are_refused() -> None:
    student = vit(16)
    with pytest.raises(ArgumentError, match=r"the teacher is the network that learns\. Give a copy of it"):
        LearngeneDistillation(student, student)
    with pytest.raises(ArgumentError, match=r"must see the same tokens, got 17 \(1 before the patches\) for images of \(1, 8, 8\), and 65"):
        LearngeneDistillation(student, vit(24, 6, input_size=16))
    with pytest.raises(ArgumentError, match=r"and 16 \(0 before the patches\) for images of \(1, 8, 8\)\. Build both with the same"):
        LearngeneDistillation(student, vit(24, 6, class_token=False, global_pool="avg"))
    with pytest.raises(ArgumentError, match=r"the student has 10 classes and the teacher 3\. Build both with the same `num_classes`"):
        LearngeneDistillation(student, vit(24, 6, num_classes=3))
    with pytest.raises(ArgumentError, match="a network of 2 blocks cannot be supervised at 3 points"):
        LearngeneDistillation(student, vit(24, 2))
    with pytest.raises(ArgumentError, match="4 blocks cannot be cut into thirds"):
        LearngeneDistillation(vit(16, 4), vit(24, 6))
    layers = {"block_layer": timm.models.mlp_mixer.SpatialGatingBlock, "mlp_layer": timm.layers.GatedMlp, "mlp_ratio": 4}
    gated = [timm.models.mlp_mixer.MlpMixer(3, 16, 1, 4, 3, 16, **layers) for _ in range(2)]
    with pytest.raises(ArgumentError, match=r"block 0 of the student \(SpatialGatingBlock\) has no `attn` or `mlp_tokens` to be"):
        LearngeneDistillation(gated[0], gated[1])
    with pytest.raises(ArgumentError, match=r"the teacher has 3 classes and .* has 10\. Take one that knows the same"):
        retinue.fit(a_pool(), PoolTraining(vit(num_classes=3)), digits(), max_steps=1, progress=False)
    for other in (vit(in_chans=3), vit(input_size=16)):
        with pytest.raises(
            ArgumentError, match=r"PoolTraining: the teacher cannot take images of 8x8 px and 1 channels \(.*Open the data at"
        ):
            retinue.fit(a_pool(), PoolTraining(other), digits(), max_steps=1, progress=False)


def test_a_teacher_of_anyones_counts_its_classes_by_its_answers() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))  # without `num_classes`
    assert retinue.fit(a_pool(), PoolTraining(flat), digits(), max_steps=1, progress=False).steps == 1


def test_nan_in_the_teacher_is_told_as_what_it_is() -> None:
    sick = vit(24, 6)
    sick.blocks[0].mlp.fc1.weight.data.fill_(torch.nan)
    assert tokens_of(sick).depth == 6
    with pytest.raises(NonFiniteError, match="the loss became nan at step 0"):
        distil_instance(sick, vit(16), digits(), max_steps=1, progress=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LearngeneDistillation(vit(8), vit(16, 6), alpha=1.5), r"`alpha` must lie in \[0, 1\], got 1\.5\. The paper has 0\.1"),
        (lambda: LearngeneDistillation(vit(8), vit(16, 6), tau=0), r"`tau` must be above 0, got 0\. The paper has 1"),
        (lambda: PoolTraining(distil=2), r"`distil` must lie in \[0, 1\], got 2\. The paper has 0\.5"),
        (lambda: PoolTraining(vit(8), tau=-1), r"PoolTraining: `tau` must be above 0, got -1"),
        (lambda: PoolTraining(), r"without a `teacher` there is nothing to distil\. Give the ancestry, or distil=0"),
        (lambda: train_learngene_pool(vit(16, 6), digits(), instances=NAMED, twins="end"), r'"end".*Did you mean ends'),
        (
            lambda: train_learngene_pool(vit(16, 6), digits(), instances=NAMED, pool_epochs=-1),
            r"must be 0 or more, got 0, 50 and -1",
        ),
        (
            lambda: train_learngene_pool(vit(16, 6), digits(), instances=NAMED, points=[["end"]]),
            r"`points` needs one list for each of the 2 instances, got 1",
        ),
        *[  # said before the ancestry is trained, whose settings cannot be either
            (
                lambda wrong=wrong: train_learngene_pool(
                    vit(16, 6), digits(), **{"instances": NAMED, "ancestry_epochs": 1, "optimizer": "none such", **wrong}
                ),
                message,
            )
            for wrong, message in (
                ({"init": "distiled"}, r'no `init` is called "distiled"\. Did you mean distilled'),
                (
                    {"alpha": 3},
                    r"`alpha` must lie in \[0, 1\] and `fit_images` be at least 1, got 3 and 100\. The papers have 0\.1 and 100",
                ),
                ({"fit_images": 0}, r"`fit_images` be at least 1, got 0\.1 and 0"),
                ({"instances": [{"embed_dim": 8}, NAMED[1]]}, r'a network must be \{"name": NAME, its options\}, got \{.embed_dim.: 8\}'),
                ({"distil": 7}, r"PoolTraining: `distil` must lie in \[0, 1\], got 7"),
                (
                    {"instance_epochs": 0},
                    r'init="distilled" needs the maps .* `instance_epochs` is 0\. Take init="least_squares", or distil',
                ),
            )
        ],
        (
            lambda: train_learngene_pool(vit(16, 6), retinue.data.open("digits", val_fraction=0, test_fraction=0), instances=NAMED),
            r"train_learngene_pool: there are no test and no validation images to measure on\. Open the data with test_fraction=0\.2",
        ),
        (lambda: measure_pool(vit(8), digits().test), r"measure_pool: the model must be a LearngenePool, got VisionTransformer"),
    ],
)
def test_settings_that_cannot_be_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


def test_a_teacher_may_be_the_folder_of_its_run(tmp_path: Path) -> None:
    data = digits()
    ancestry = retinue.fit(vit(24, 6), Supervised(), data, max_steps=1, run_dir=tmp_path, **QUICK).model
    x = images(2, 1, 8, 8)
    for objective in (LearngeneDistillation(vit(8), str(tmp_path)), PoolTraining(str(tmp_path))):
        assert torch.equal(objective.teacher(x), ancestry(x))
