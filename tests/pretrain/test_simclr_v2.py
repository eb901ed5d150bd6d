"""simclr-v2: its views, its objective with head and memory, fine-tuning, distillation, and what they refuse."""

import copy
import csv
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT
from torch import nn
from torch.testing import assert_close

import retinue
from retinue.data import Batch, Data, from_arrays, views
from retinue.engine import train_mode
from retinue.engine.lars import EXEMPT
from retinue.errors import ArgumentError, ShapeError
from retinue.losses.contrastive import nt_xent
from retinue.models import adapt, pooled_features, tiny
from retinue.models.projection import ProjectedClassifier, ProjectionHead
from retinue.pretrain.simclr_v2 import SimCLRv2, contrastive_views, learning_rate
from retinue.pretrain.simclr_v2_labels import Distillation, FineTuning, distillation_loss

TEACHER = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]], dtype=torch.float64)
STUDENT = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
FIT: dict[str, Any] = {"max_steps": 2, "batch_size": 8, "lr": 0.05, "progress": False}


def digits(**options: Any) -> Data:
    return retinue.data.open("digits", **{"input_size": 32, "channels": 3, "train_images": 40, "test_images": 20, **options})


def batch_of(one: torch.Tensor, two: torch.Tensor) -> Batch:
    return Batch(one, torch.zeros(len(one), dtype=torch.int64), torch.arange(len(one)), (one, two))


def backbone(kind: Any = "ours", classes: int = 10) -> Any:
    torch.manual_seed(0)
    return adapt(tiny(kind, num_classes=classes), input_size=32)


def moved(before: dict[str, torch.Tensor], module: nn.Module) -> list[str]:
    return [name for name, value in module.state_dict().items() if not torch.equal(value, before[name])]


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_learning_rates_of_the_page() -> None:
    assert learning_rate(0.1, 4096) == pytest.approx(6.4)
    assert learning_rate(0.075, 4096) == pytest.approx(4.8)
    assert learning_rate(0.3, 4096, "linear") == pytest.approx(4.8)
    assert learning_rate(0.005, 1024) == pytest.approx(0.16)


def test_the_views_of_the_paper() -> None:
    large = views.parse(contrastive_views((224, 224)))
    expected = "random_resized_crop((224, 224), (0.08, 1.0), (3/4, 4/3), 'bicubic'), flip(0.5), color_jitter(0.8, 0.8, 0.8, 0.2, p=0.8), "
    assert large == views.parse(f"{expected}grayscale(0.2), gaussian_blur(23, (0.1, 2.0), 0.5)")
    small = views.parse(contrastive_views((32, 32), 0.5, (0.3, 1.0)))
    expected = "random_resized_crop((32, 32), (0.3, 1.0), interpolation='bicubic'), flip, color_jitter(0.4, 0.4, 0.4, 0.1, p=0.8)"
    assert small == views.parse(f"{expected}, grayscale(0.2)"), "no blur at 32 px"
    assert contrastive_views((96, 96)).endswith("gaussian_blur(9, sigma=(0.1, 2.0), p=0.5)")
    assert contrastive_views((32, 32), 0.0, blur=True).endswith("flip, grayscale(0.2), gaussian_blur(3, sigma=(0.1, 2.0), p=0.5)")
    assert "blur" not in contrastive_views((224, 224), blur=False)


@pytest.mark.parametrize("kind", ["ours", "timm_cnn", "timm_vit", "bare"])
def test_the_loss_is_nt_xent_of_the_projected_features(kind: str) -> None:
    model = backbone(kind)
    objective = SimCLRv2(model, temperature=0.3, out_dim=16)
    one, two = torch.rand(5, 3, 32, 32), torch.rand(5, 3, 32, 32)
    model.eval(), objective.eval()
    z1, z2 = (objective.head(pooled_features(model, images)) for images in (one, two))
    numbers = objective(model, batch_of(one, two))
    assert_close(numbers["loss"], nt_xent(z1, z2, 0.3))
    assert_close(numbers["positive_cosine"], nn.functional.cosine_similarity(z1, z2).mean())


def test_batch_norm_sees_both_views_together() -> None:
    model = backbone()
    objective = SimCLRv2(model, out_dim=16)
    one, two = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)
    found = objective(model, batch_of(one, two))["loss"]
    assert_close(found, nt_xent(*objective.head(pooled_features(model, torch.cat([one, two]))).chunk(2), 0.1))


def test_the_two_views_of_a_training_differ_and_are_the_objectives_own() -> None:
    data = digits()
    objective = SimCLRv2(backbone(), data, strength=0.5)
    assert objective.views is not None
    batch = next(iter(data.train.loader(8, shuffle=True, views=objective.views).batches()))
    assert len(batch.views) == 2
    assert not torch.equal(*batch.views)
    other = SimCLRv2(backbone(), data, shown_as="crop(2)")
    assert [repr(view) for view in other.views or ()] == ["crop(2)"] * 2
    late = SimCLRv2(backbone())
    assert late.views is None
    late.check(backbone(), data)
    assert repr((late.views or ())[0]).startswith("random_resized_crop((32, 32)")


def test_a_few_images_are_told_apart() -> None:
    model = retinue.create_model("small_convnet", widths=[8, 8, 16], num_classes=0)
    objective = SimCLRv2(model, temperature=0.5, out_dim=8, strength=0.0, crop_area=(0.6, 1.0))
    settings: dict[str, Any] = {**FIT, "max_steps": 60, "batch_size": 32, "optimizer": "adam", "lr": 0.01, "log_every": 1}
    run = retinue.fit(model, objective, digits(input_size=16, train_images=64), **settings)
    losses = [row["train/loss"] for row in run.history]
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.3


def test_the_memory_is_a_ring_of_what_the_slow_network_saw() -> None:
    model = backbone()
    objective = SimCLRv2(model, out_dim=4, memory=6, memory_decay=0.9)
    start = objective.queue.clone()
    one, two = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)
    train_mode(objective)
    numbers = objective(model, batch_of(one, two))
    slow, head = objective.slow or ()
    seen = nn.functional.normalize(head(pooled_features(slow, two)), dim=1)
    assert not slow.training
    assert_close(objective.queue, torch.cat([seen, start[4:]]))
    assert int(objective.place) == 4
    z1, z2 = objective.head(pooled_features(copy.deepcopy(model), torch.cat([one, two]))).chunk(2)
    assert_close(numbers["loss"], nt_xent(z1, z2, 0.1, start))
    objective(model, batch_of(two, one))
    again = nn.functional.normalize(head(pooled_features(slow, one)), dim=1)
    assert_close(objective.queue, torch.cat([again[2:], seen[2:], again[:2]]))
    objective.eval()
    objective(model, batch_of(one, two))
    assert int(objective.place) == 2, "nothing is remembered in evaluation"


def test_the_slow_network_follows_by_its_decay() -> None:
    model = backbone()
    objective = SimCLRv2(model, out_dim=4, memory=6, memory_decay=0.9)
    slow = (objective.slow or ())[0]
    before, start = state(slow), state(model)
    for parameter in model.parameters():
        parameter.data.add_(1.0)
    model.stem[0].bn.running_mean.add_(2.0)
    objective.after_step(model, 1)
    for name, _ in model.named_parameters():
        assert_close(slow.state_dict()[name], before[name] + 0.1, msg=name)
    assert torch.equal(slow.state_dict()["stem.0.bn.running_mean"], start["stem.0.bn.running_mean"] + 2)
    assert [id(p) for p in objective.players(model)["model"]] == [id(p) for p in (*model.parameters(), *objective.head.parameters())]


def test_a_training_with_memory_resumes_bit_for_bit(tmp_path: Any) -> None:
    settings = {**FIT, "max_steps": 3, "schedule": "constant", "checkpoint_every": 1}

    def train(folder: Any) -> Any:
        model = backbone()
        return retinue.fit(model, SimCLRv2(model, out_dim=4, memory=12), digits(), **settings, run_dir=folder)

    whole = train(tmp_path / "whole")

    class Stop(BaseException):
        pass

    model = backbone()
    objective = SimCLRv2(model, out_dim=4, memory=12)
    follow = objective.after_step

    def stop(model: nn.Module, step: int) -> None:
        follow(model, step)
        if step == 3:
            raise Stop

    objective.after_step = stop  # type: ignore[method-assign]
    with pytest.raises(Stop):
        retinue.fit(model, objective, digits(), **settings, run_dir=tmp_path / "stopped")
    resumed = train(tmp_path / "stopped")
    assert not moved(state(whole.model), resumed.model)
    assert not moved(state(whole.objective), resumed.objective)


@pytest.mark.parametrize("kind", ["ours", "timm_cnn", "timm_vit", "bare"])
def test_steps_move_network_and_head_and_the_same_seed_gives_the_same_loss(kind: str) -> None:
    losses = []
    for seed in (0, 0, 1):
        model = backbone(kind)
        objective = SimCLRv2(model, digits(), out_dim=8)
        before, head = state(model), state(objective.head)
        run = retinue.fit(model, objective, digits(), **{**FIT, "log_every": 1, "seed": seed, "schedule": "constant"})
        losses.append(run.history[0]["train/loss"])
        assert list(run.model.state_dict()) == list(before)
        still = {name for name, _ in model.named_parameters()} - set(moved(before, run.model))
        classifier = next(name for name, part in model.named_modules() if part is model.get_classifier())
        assert still == {f"{classifier}.weight", f"{classifier}.bias"}, "the classifier takes no part"
        assert set(moved(head, objective.head)) >= {name for name, _ in objective.head.named_parameters()}
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


# Neither network nor head has batch norms, whose statistics are those of a process's own half of the batch.
PROGRAM = """
import sys, torch, retinue
from retinue.pretrain.simclr_v2 import SimCLRv2
devices, folder = int(sys.argv[1]), sys.argv[2]
data = retinue.data.open("digits", train_images=96, test_images=20, input_size=16)
torch.manual_seed(0)
model = retinue.create_model("timm:vit_tiny_patch16_224", embed_dim=16, depth=1, num_heads=2, num_classes=0, in_chans=1, input_size=16)
objective = SimCLRv2(model, data, out_dim=8, memory=40, memory_decay=0.9)
objective.head = torch.nn.Linear(16, 8)
objective.slow[1] = torch.nn.Linear(16, 8).requires_grad_(False)
retinue.fit(
    model, objective, data, epochs=2, batch_size=32 // devices, optimizer="sgd", lr=0.05, log_every=1, seed=3, devices=devices,
    accelerator="cpu", run_dir=folder, loggers=("csv",), progress=False,
)
"""


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["name"] in ("train/loss", "val/loss")]


def test_two_processes_are_one_with_the_double_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    words = [sys.executable, script, "2", tmp_path / "two"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    monkeypatch.setattr(sys, "argv", ["program.py", "1", str(tmp_path / "one")])
    runpy.run_path(str(script))
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 2 * 3 + 2
    assert max(abs(a - b) / a for a, b in zip(one, two)) < 1e-5, "the same negatives, of both processes and of the memory"


def test_norms_over_all_processes_are_plain_ones_in_one() -> None:
    losses = []
    for sync in (False, True):
        model = backbone()
        run = retinue.fit(model, SimCLRv2(model, out_dim=4, sync_norms=sync), digits(), **FIT)
        assert any(isinstance(part, nn.SyncBatchNorm) for part in run.model.modules()) == sync
        losses.append(run.metrics["loss"])
    assert losses[0] == losses[1]


def test_an_evaluation_leaves_out_a_last_batch_of_one() -> None:
    data = digits(val_fraction=0.05)
    model = backbone()
    objective = SimCLRv2(model, data, out_dim=4)
    split = data.val.subset(range(9))
    found = objective.evaluate(model, split.loader(4, views=objective.views))
    expected = objective.evaluate(model, split.subset(range(8)).loader(4, views=objective.views))
    assert found == expected
    assert objective.evaluate(model, split.subset([0]).loader(4, views=objective.views)) == {}


def test_distillation_of_the_page() -> None:
    assert distillation_loss(STUDENT, TEACHER).item() == pytest.approx(1.01181308, abs=5e-9)
    assert distillation_loss(STUDENT, TEACHER, 0.1).item() == pytest.approx(4.96996288, abs=5e-9)
    assert distillation_loss(STUDENT, TEACHER, 0.1, scale_by_tau2=True).item() == pytest.approx(0.0496996288, abs=5e-11)
    same = TEACHER.clone().requires_grad_()
    loss = distillation_loss(same, TEACHER)
    assert loss.item() == pytest.approx(0.77222898, abs=5e-9)
    loss.backward()
    assert same.grad is not None
    assert_close(same.grad, torch.zeros_like(TEACHER), rtol=0, atol=1e-15)


def test_labels_have_their_share_of_the_loss() -> None:
    labels = torch.tensor([-1, 2])
    told = -math.log(math.e / (math.e + 2))
    assert distillation_loss(STUDENT, TEACHER, 1.0, labels, 0.25).item() == pytest.approx(0.25 * 1.01181308 + 0.75 * told, abs=5e-9)
    nobody = distillation_loss(STUDENT, TEACHER, 1.0, torch.tensor([-1, -1]), 0.25)
    assert nobody.item() == pytest.approx(0.25 * 1.01181308, abs=5e-9)


def test_the_teacher_is_a_frozen_copy_and_the_student_learns_from_known_labels_alone() -> None:
    data = digits()
    teacher, student = backbone("timm_cnn"), backbone()
    objective = Distillation(teacher, 0.5, alpha=0.5, labelled=[0, 3])
    before = state(teacher)
    run = retinue.fit(student, objective, data, **FIT)
    assert not moved(before, objective.teacher)
    assert not objective.teacher.training
    assert objective.teacher is not teacher
    assert list(run.model.state_dict()) == list(backbone().state_dict())
    assert set(run.metrics) == {"top1", "top5", "ece", "loss"}
    batch = next(iter(data.train.loader(6).batches()))
    run.model.eval()
    logits, answers = run.model(batch.images), teacher.eval()(batch.images)
    labels = batch.labels.clone()
    labels[[1, 2, 4, 5]] = -1
    assert_close(objective(run.model, batch)["loss"], distillation_loss(logits, answers, 0.5, labels, 0.5))


@pytest.mark.parametrize("make", [lambda decay: FineTuning(decay), lambda decay: Distillation(backbone(), head_decay=decay)])
def test_the_classifiers_decay_is_in_the_loss_and_lars_leaves_it_alone(make: Any) -> None:
    data, model = digits(), backbone()
    batch = next(iter(data.train.loader(6).batches()))
    plain, decayed = make(0.0), make(0.1)
    network = decayed.prepare(model, data)
    assert all(getattr(parameter, EXEMPT) for parameter in network.get_classifier().parameters())
    assert not hasattr(model.stem[0].conv.weight, EXEMPT)
    model.eval()
    more = 0.05 * float(model.get_classifier().weight.detach().square().sum())
    assert (decayed(model, batch)["loss"] - plain(model, batch)["loss"]).item() == pytest.approx(more, rel=1e-4)


def test_a_classifier_of_zeros_pays_the_logarithm_of_the_classes() -> None:
    data = digits()
    model = ProjectedClassifier(backbone(), ProjectionHead(32), num_classes=10)
    assert FineTuning()(model, next(iter(data.train.loader(6).batches())))["loss"].item() == pytest.approx(math.log(10), abs=1e-6)


@pytest.mark.parametrize("from_layer", [0, 1])
def test_linear_evaluation_leaves_every_parameter_and_statistic_of_the_encoder_alone(from_layer: int) -> None:
    model = ProjectedClassifier(backbone(), ProjectionHead(32), from_layer, num_classes=10)
    model.freeze(4)
    before = state(model)
    retinue.fit(model, FineTuning(), digits(), **FIT)
    names = moved(before, model)
    assert not [name for name in names if name.startswith("backbone.")]
    assert {"fc.weight", "fc.bias"} <= set(names)
    assert any(name.startswith("projection.") for name in names) == bool(from_layer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"SimCLRv2: `temperature` must be above 0, got 0\.0\. The paper has 0\.1; small batches need"),
        ({"memory": -1}, r"SimCLRv2: `memory` must be 0 or more and `memory_decay` lie in \[0, 1\), got -1 and 0\.999\. The paper has"),
        ({"memory_decay": 1.0}, r"got 0 and 1\.0"),
        ({"strength": -1.0}, r"SimCLRv2: `strength` must be 0 or more, got -1\.0\. It is 1 for ImageNet and 0\.5 for CIFAR\."),
        ({"crop_area": (0.5, 2.0)}, r"random_resized_crop: `scale` must be a number in \(0, 1\], got 2\.0"),
        ({"shown_as": "flipp"}, r'no view is called "flipp"'),
        ({"num_layers": 0}, r"ProjectionHead: `num_layers` must be at least 1, got 0"),
    ],
)
def test_objectives_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        SimCLRv2(backbone(), **options)


def test_batches_that_cannot_be_are_refused() -> None:
    model = backbone()
    objective = SimCLRv2(model, out_dim=4)
    one = torch.rand(1, 3, 32, 32)
    with pytest.raises(ShapeError, match=r"a batch needs 2 images at least, got 1: one image has no negatives\. Leave it out\."):
        objective(model, batch_of(one, one))
    with pytest.raises(ShapeError, match=r"a batch needs two views of each image, got 0\. Give the objective's own to the loader"):
        objective(model, Batch(one, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)))
    lone = from_arrays(one.numpy(), [0], split=["train"], classes=["all"])
    with pytest.raises(ArgumentError, match=r"arrays has 1 training image, and one image has no negatives\. Give more\."):
        retinue.fit(model, objective, lone, **FIT)


def refused(function: Any, message: str, *arguments: Any, kind: Any = ArgumentError, **options: Any) -> None:
    with pytest.raises(kind, match=message):
        function(*arguments, **options)


def test_what_labels_and_teachers_cannot_be_is_refused() -> None:
    refused(distillation_loss, r"student and teacher must answer alike, got \(2, 3\) and \(2, 2\)\. Build the student with num_classes=2",
            STUDENT, TEACHER[:, :2], kind=ShapeError)  # fmt: skip
    refused(distillation_loss, r"`temperature` must be above 0, got 0\.0\. The paper has 0\.1 and 1\.", STUDENT, TEACHER, 0.0)
    refused(distillation_loss, r"`alpha` must lie in \[0, 1\], got 2\.0\. It is the weight of", STUDENT, TEACHER, 1.0, None, 2.0)
    refused(distillation_loss, r"`alpha` 0\.5 gives labels a weight, and there are no `labels`\.", STUDENT, TEACHER, 1.0, None, 0.5)
    refused(distillation_loss, r"`labels` must be 2 whole numbers, got \(3,\)", STUDENT, TEACHER, 1.0, torch.zeros(3).long(), 0.5,
            kind=ShapeError)  # fmt: skip
    refused(FineTuning, r"FineTuning: `head_decay` must be 0 or more, got -1\.0\.", -1.0)
    refused(Distillation, r"Distillation: `temperature` must be above 0, got -1\.0", backbone(), -1.0)
    data = digits()
    refused(retinue.fit, r"the teacher has 7 outputs and digits has 10 classes\. Build it with num_classes=10\.",
            backbone(), Distillation(backbone(classes=7)), data, **FIT)  # fmt: skip
    refused(retinue.fit, r"the student has 7 outputs and digits has 10 ", backbone(classes=7), Distillation(backbone()), data, **FIT)
    refused(retinue.fit, r"`labelled` must be positions among the \d+ training images\.",
            backbone(), Distillation(backbone(), alpha=0.5, labelled=[-1]), data, **FIT)  # fmt: skip
    refused(learning_rate, r'no `rule` is called "log"\. There is linear, sqrt\.', 0.1, 16, "log")
    refused(learning_rate, r"`batch_size` must be at least 1, got 0\.", 0.1, 0)
