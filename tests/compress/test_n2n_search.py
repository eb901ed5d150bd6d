"""N2N's search: rewards from validation, one look at the test images, resumption, transfer, baselines, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import retinue
from retinue.compress import n2n
from retinue.compress.n2n import N2N, CompressionResult
from retinue.compress.n2n_policies import RemovalPolicy, ShrinkagePolicy, save_policy
from retinue.compress.n2n_procedure import n2n_search, random_search, thirds
from retinue.compress.n2n_students import TeachersAnswers
from retinue.engine import logits
from retinue.errors import ArgumentError

FAST: dict[str, Any] = {"student_fit": {"epochs": 1, "lr": 5e-3}, "final_fit": {"epochs": 1, "lr": 5e-3}, "progress": False}


@pytest.fixture(scope="module")
def data() -> Any:
    return retinue.data.open("digits", train_images=96, test_images=60)


@pytest.fixture(scope="module")
def teacher(data: Any) -> nn.Module:
    torch.manual_seed(0)
    model = retinue.create_model("small_convnet", widths=[16, 16, 24], num_classes=10, in_chans=1, input_size=8)
    return retinue.fit(model, retinue.train.Supervised(), data, epochs=3, lr=1e-2, progress=False).model


def same(a: CompressionResult, b: CompressionResult) -> None:
    assert a.table == b.table
    assert all(torch.equal(x, y) for x, y in zip(a.best.state_dict().values(), b.best.state_dict().values(), strict=True))
    for kind, policy in a.policies.items():
        assert all(torch.equal(x, y) for x, y in zip(policy.parameters(), b.policies[kind].parameters(), strict=True))


def test_the_whole_search(data: Any, teacher: nn.Module, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    found = N2N(teacher, data, run_dir=tmp_path, **FAST).run((2, 1), rollouts=3)
    assert [(row["stage"], row["epoch"]) for row in found.table] == [("removal", 0)] * 3 + [("removal", 1)] * 3 + [("shrinkage", 0)] * 3
    total = sum(p.numel() for p in teacher.parameters())
    val = retinue.evaluate(teacher, data.val)["top1"]
    for row in found.table:
        if row["invalid"]:
            assert (row["reward"], row["val_top1"]) == (-1, 0)
            continue
        c = 1 - row["parameters"] / total
        assert row["reward"] == pytest.approx(row["val_top1"] / val * c * (2 - c))
        assert row["macs"] > 0
        assert row["compression"] == total / row["parameters"] > 1
    assert found.chosen["reward"] == max(row["reward"] for row in found.table)
    assert found.chosen["parameters"] == sum(p.numel() for p in found.best.parameters())
    assert found.chosen["top1"] == retinue.evaluate(found.best, data.test)["top1"]
    assert found.teacher["top1"] == retinue.evaluate(teacher, data.test)["top1"]
    assert found.chosen["speed_up"] == found.chosen["teacher_ms"] / found.chosen["ms"] > 0
    assert found.mean_reward("removal", slice(0, 1)) == pytest.approx(sum(row["reward"] for row in found.table[:3]) / 3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    again = retinue.load(tmp_path / "student")
    assert retinue.evaluate(again, data.test)["top1"] == found.chosen["top1"]
    assert again.classes == data.classes
    fresh = RemovalPolicy()
    assert not all(torch.equal(a, b) for a, b in zip(found.policies["removal"].parameters(), fresh.parameters(), strict=True))


def test_rewards_are_of_validation_images_and_the_test_images_are_seen_once(data: Any, teacher: nn.Module, monkeypatch: Any) -> None:
    judged = []
    evaluate = n2n.evaluate

    def watched(model: nn.Module, split: Any) -> Any:
        judged.append(split)
        return evaluate(model, split)

    monkeypatch.setattr(n2n, "evaluate", watched)
    found = N2N(teacher, data, "removal", **FAST).run(1, 2)
    assert [split is data.test for split in judged] == [False, True, True]  # the teacher for the rewards; then both, at the end
    wrong = replace(data, test=replace(data.test, labels=(data.test.labels + 1) % 10))
    other = N2N(teacher, wrong, "removal", **FAST).run(1, 2)
    assert other.table == found.table
    assert other.teacher["val_top1"] == found.teacher["val_top1"]
    assert other.teacher["top1"] != found.teacher["top1"]


def test_a_killed_search_goes_on_bit_for_bit(data: Any, teacher: nn.Module, tmp_path: Path, monkeypatch: Any) -> None:
    straight = N2N(teacher, data, **FAST).run((2, 2), 2)
    candidate, calls = N2N._candidate, []

    def dies(self: N2N, *args: Any) -> Any:
        calls.append(args[0])
        if len(calls) == 6:
            raise KeyboardInterrupt
        return candidate(self, *args)

    monkeypatch.setattr(N2N, "_candidate", dies)
    with pytest.raises(KeyboardInterrupt):
        N2N(teacher, data, run_dir=tmp_path, **FAST).run((2, 2), 2)
    calls = [""] * 6
    resumed = N2N(teacher, data, run_dir=tmp_path, **FAST).run((2, 2), 2)
    assert calls[6:] == ["shrinkage"] * 4  # the epoch that was killed, and the last
    same(resumed, straight)
    finished = N2N(teacher, data, run_dir=tmp_path, **FAST).run((2, 2), 2)
    assert len(calls) == 10
    same(finished, straight)
    assert finished.chosen == resumed.chosen  # the clock, too, is read once


def test_policies_go_to_another_teacher(data: Any, teacher: nn.Module, tmp_path: Path) -> None:
    first = N2N(teacher, data, run_dir=tmp_path, **FAST).run(1, 2)
    torch.manual_seed(1)
    other = retinue.create_model("cifar_resnet", depth=8, width=8, num_classes=10, in_chans=1, input_size=8)
    other = retinue.fit(other, retinue.train.Supervised(), data, epochs=1, progress=False).model
    places = {f"{kind}_policy": tmp_path / "policies" / kind for kind in ("removal", "shrinkage")}
    search = N2N(other, data, **places, **FAST)
    for kind, policy in search.policies.items():
        assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), first.policies[kind].parameters(), strict=True))
    found = search.run(1, 2)
    assert len(found.table) == 4
    given = first.policies["removal"]
    kept = [p.clone() for p in given.parameters()]
    N2N(other, data, "removal", removal_policy=given, **FAST).run(1, 2)
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), kept, strict=True))  # the caller's policy is copied


def test_baselines(data: Any, teacher: nn.Module) -> None:
    found = random_search(teacher, data, epochs=1, rollouts=3, seed=5, **FAST)
    again = random_search(teacher, data, epochs=1, rollouts=3, seed=5, **FAST)
    assert found.table == again.table
    assert len(found.table) == 6
    untouched = N2N(teacher, data, seed=5, **FAST).policies
    for kind, policy in found.policies.items():
        assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), untouched[kind].parameters(), strict=True))
    model, numbers = N2N(teacher, data, **FAST).uniform(1500)
    assert sum(p.numel() for p in model.parameters()) == numbers["parameters"] <= 1500
    assert numbers["top1"] == retinue.evaluate(model, data.test)["top1"]


def test_shared_rewards_take_a_step_for_each_rollout(data: Any, teacher: nn.Module, tmp_path: Path) -> None:
    steps = {}
    for shared in (False, True):
        search = N2N(teacher, data, "removal", shared_reward=shared, run_dir=tmp_path / str(shared), **FAST)
        search.run(2, 2)
        done = search.stages.run_dir / "stages" / "removal-001"  # type: ignore[operator]
        tensors = retinue.engine.checkpoint.read(done).tensors
        steps[shared] = {int(tensor) for name, tensor in tensors.items() if name.endswith("/step")}
    assert steps == {False: {2}, True: {4}}


def test_limits(data: Any, teacher: nn.Module) -> None:
    found = N2N(teacher, data, "shrinkage", max_params=2500, **FAST).run(2, 4)
    assert found.chosen["within_limits"] == any(row["parameters"] <= 2500 and not row["invalid"] for row in found.table)
    if found.chosen["within_limits"]:
        assert found.chosen["parameters"] <= 2500
    hard = N2N(teacher, data, "shrinkage", max_params=1, **FAST)
    row = hard._candidate("shrinkage", hard.layers, torch.ones(len(hard.layers.leaves), 5, dtype=torch.int64), 15, 0)
    assert row["invalid"] == f"{row['parameters']} parameters, and 1 are allowed"
    assert row["reward"] == -1
    softly = hard._candidate("shrinkage", hard.layers, torch.ones(len(hard.layers.leaves), 5, dtype=torch.int64), 5, 0)
    assert not softly["invalid"]
    assert softly["reward"] == pytest.approx(0.197531 - 1 + 0.197531 * free_reward(softly, hard), abs=1e-5)


def free_reward(row: dict[str, Any], search: N2N) -> float:
    c = 1 - row["parameters"] / search.parameters
    return row["val_top1"] / search.accuracy * c * (2 - c)


def test_seven_numbers_a_layer(data: Any, teacher: nn.Module) -> None:
    search = N2N(teacher, data, "removal", skips=True, **FAST)
    assert search.policies["removal"].input == 7
    assert len(search.run(1, 2).table) == 2


def test_the_teachers_answers(data: Any, teacher: nn.Module) -> None:
    stored = TeachersAnswers(logits(teacher, data.train)[0])
    live = TeachersAnswers(teacher)
    torch.manual_seed(2)
    student = retinue.create_model("small_convnet", widths=[8], num_classes=10, in_chans=1, input_size=8)
    for objective in (stored, live):
        objective.check(student, data)
    batch = next(iter(data.train.loader(32, shuffle=True).batches()))
    assert torch.allclose(stored(student, batch)["loss"], live(student, batch)["loss"], rtol=1e-5)  # batches of another size, float32
    assert stored.state_dict() == {}
    assert not list(live.parameters())
    assert set(stored.evaluate(student, data.val.loader(64))) == {"top1", "top5", "ece", "loss"}
    with pytest.raises(ArgumentError, match=r"answers belong to the images as they are\. Leave `views` out, or give the teacher\."):
        retinue.fit(student, stored, data, max_steps=1, views="flip", progress=False)
    retinue.fit(student, live, data, max_steps=1, views="flip", progress=False)
    with pytest.raises(ArgumentError, match=r"has 96 training images of 10 classes, and the answers are of shape \(3, 10\)\."):
        TeachersAnswers(torch.zeros(3, 10)).check(student, data)


def test_the_procedure_goes_from_the_teacher_to_the_baselines(data: Any, tmp_path: Path) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return retinue.create_model("small_convnet", widths=[16, 16, 24], num_classes=10, in_chans=1, input_size=8)

    settings = {**FAST, "epochs": 1, "rollouts": 2, "run_dir": tmp_path, "teacher_fit": {"epochs": 2, "lr": 1e-2}}
    numbers = n2n_search(network(), data, **settings)
    assert list(numbers) == ["teacher", "student", "random", "uniform", "policy"]
    assert set(numbers["policy"]) == {"removal", "shrinkage"}
    assert numbers["uniform"]["parameters"] <= numbers["student"]["parameters"]
    assert retinue.evaluate(retinue.load(tmp_path / "search" / "student"), data.test)["top1"] == numbers["student"]["top1"]
    assert n2n_search(network(), data, **settings) == numbers  # all of it is read back
    of_run = n2n_search(
        network(), data, teacher=str(tmp_path / "teacher"), stage="removal", baselines=(), epochs=1, rollouts=2,
        removal_policy=str(tmp_path / "search" / "policies" / "removal"), **FAST,
    )  # fmt: skip
    assert of_run["teacher"]["top1"] == numbers["teacher"]["top1"]


def test_thirds_by_hand() -> None:
    rows = [{"stage": "removal", "epoch": e, "reward": float(e), "invalid": "x" if e == 0 else ""} for e in range(7)]
    found = CompressionResult(nn.Identity(), {}, {}, rows)
    assert thirds(found, "removal") == {"first": 0.5, "last": 5.5, "invalid": 1}


def test_recipes_name_arguments_that_exist() -> None:
    import inspect

    for scale in ("laptop", "paper"):
        recipe = yaml.safe_load((Path(retinue.__file__).parent / "recipes" / "n2n" / f"{scale}.yaml").read_text(encoding="utf-8"))
        block = recipe["procedure"]
        assert block.pop("name") == "retinue.compress.n2n_search"
        inspect.signature(n2n_search).bind(None, None, **block)
        retinue.create_model(recipe["model"].pop("name"), **recipe["model"], num_classes=10, in_chans=1, input_size=32)


def test_what_is_refused(data: Any, teacher: nn.Module, tmp_path: Path) -> None:
    def refused(told: str, **change: Any) -> None:
        arguments = {"teacher": teacher, "data": data, **FAST, **change}
        with pytest.raises(ArgumentError, match=told):
            N2N(**arguments)

    refused(r'n2n: no stage is called "both_of"\. Did you mean both', stage="both_of")
    refused(r"`max_params` must be at least 1, got 0\.", max_params=0)
    refused(r"`min_acc` must lie in \[0, 1\], got 2\.", min_acc=2.0)
    refused(r"rewards come from validation images, and there are none\.", data=retinue.data.open("digits", val_fraction=0.0))
    refused(r"`policy_lr` needs two positive numbers, of removal and of shrinkage, got \[0\.1\]\.", policy_lr=[0.1])
    refused(r'no setting of `student_fit` is called "epoch"\. Did you mean epochs', student_fit={"epoch": 1})
    refused(r"Leave `views` out of `student_fit`\.", student_fit={"views": "flip"})
    refused(r"`temperature` must be above 0, got -1\.0\.", temperature=-1.0)
    two = retinue.create_model("small_convnet", widths=[12], num_classes=2, in_chans=1, input_size=8)
    refused(r"the teacher has 2 outputs and digits has 10 classes\.", teacher=two)
    never = retinue.create_model("small_convnet", widths=[12], num_classes=10, in_chans=1, input_size=8)
    nn.init.zeros_(never.get_classifier().weight)  # type: ignore[operator]
    never.get_classifier().bias.data = torch.eye(10)[3] * 9  # type: ignore[operator]
    without = replace(data, val=data.val.subset((data.val.labels != 3).nonzero()[:, 0]))
    refused(r"the teacher is right on none of the validation images\. Train it first\.", teacher=never, data=without)
    broken = retinue.create_model("small_convnet", widths=[12], num_classes=10, in_chans=1, input_size=8)
    broken.get_classifier().weight.data[0] = float("nan")  # type: ignore[operator]
    refused(r"the teacher's answers to the validation images are not finite\.", teacher=broken)
    save_policy(ShrinkagePolicy(), tmp_path / "policy")
    refused(
        r"`removal_policy` must be a RemovalPolicy of 5 numbers a layer, got a ShrinkagePolicy of 5\.", removal_policy=tmp_path / "policy"
    )
    refused(
        r"`removal_policy` must be a RemovalPolicy of 7 numbers a layer, got a RemovalPolicy of 5\.",
        removal_policy=RemovalPolicy(),
        skips=True,
    )
    for epochs, rollouts in ((0, 1), (1, 0), ((1, 2, 3), 1)):
        with pytest.raises(ArgumentError, match=r"`epochs` and `rollouts` must be 1 or more, got "):
            N2N(teacher, data, **FAST).run(epochs, rollouts)
    with pytest.raises(ArgumentError, match=r'n2n: no baseline is called "unifrom"\. Did you mean uniform'):
        n2n_search(teacher, data, baselines=["unifrom"])
    for name in ("epohcs", "run_dir"):
        with pytest.raises(ArgumentError, match=rf'no setting of `teacher_fit` is called "{name}"\.'):
            n2n_search(teacher, data, teacher_fit={name: 1})
    with pytest.raises(ArgumentError, match=r"`teacher` names a trained network, and `teacher_fit` trains one\. Leave one out\."):
        n2n_search(teacher, data, teacher="runs/x", teacher_fit={"epochs": 1})


def test_a_search_without_a_valid_student_says_why(data: Any, teacher: nn.Module) -> None:
    search = N2N(teacher, data, "shrinkage", shrinkage_policy=ShrinkagePolicy((1.0,)), **FAST)
    with pytest.raises(ArgumentError, match=r"none of the 2 students was valid; most often: no fewer parameters"):
        search.run(1, 2)


def test_a_student_that_cannot_be_trained_is_no_candidate(data: Any, teacher: nn.Module) -> None:
    search = N2N(teacher, data, "removal", **{**FAST, "student_fit": {"epochs": 4, "lr": 1e30, "optimizer": "sgd"}})
    keep = torch.ones(len(search.layers.leaves), dtype=torch.int64)
    keep[3] = 0
    row = search._candidate("removal", search.layers, keep, 0, 0)
    assert (row["reward"], row["invalid"]) == (-1, "its loss became infinite")
