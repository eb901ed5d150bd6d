"""Transfer in two phases: the page's counts, what may move in which phase, and the loss and its numbers by hand."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from support import images, parameters
from torch import nn
from torch.testing import assert_close

import retinue
from retinue.data import Batch, Data, from_arrays
from retinue.engine import train_mode
from retinue.engine.optim import Schedule
from retinue.errors import ArgumentError, CheckpointError
from retinue.explain import GradCAM
from retinue.models import create_model, pooled_features, tiny
from retinue.models.tiny import KINDS
from retinue.train.transfer import (
    TransferClassifier,
    TwoPhaseSchedule,
    WeightedCrossEntropy,
    compare_backbones,
    judge,
    load_backbone,
    transfer,
    two_columns,
)

MODULE: Any = sys.modules["retinue.train.transfer"]  # the package has a function of this name
SHORT: dict[str, Any] = {"epochs": (2, 1), "lr": (1e-2, 1e-3), "decay": ((0.5, 2), (0.5, 2)), "batch_size": 8, "progress": False}


@pytest.fixture
def data() -> Data:
    """Forty images of 16 px: class 1 is brighter at the left."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 120, (48, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(48) % 3 > 0
    pixels[labels, :, :8] += 100
    return from_arrays(pixels, labels.astype(int), split=["train"] * 24 + ["val"] * 12 + ["test"] * 12, name="stripes")


def model_for(kind: Any, **options: Any) -> TransferClassifier:
    torch.manual_seed(1)
    return TransferClassifier(tiny(kind, input_size=16), hidden=8, **options)


# --- the page's numbers ----------------------------------------------------------------------------------------------------------------


def test_mobilenet_v2_has_the_papers_counts_in_both_libraries() -> None:
    for backbone, start in (
        (timm.create_model("mobilenetv2_100"), "blocks.4.1.conv_dw"),
        (torchvision.models.mobilenet_v2(), "features.12.conv.1"),
    ):
        model = TransferClassifier(backbone)
        assert parameters(model.head) == 128_201
        assert parameters(model) == 2_352_073
        assert model.unfreeze_from(start) == 1_861_440


@pytest.mark.parametrize(
    ("name", "features", "count"),
    [("resnetv2_152", 2048, 58_136_128), ("inception_resnet_v2", 1536, 54_306_464), ("resnetv2_50", 2048, 23_500_352)],
)
def test_the_other_backbones_counts(name: str, features: int, count: int) -> None:
    with torch.device("meta"):
        model = TransferClassifier(timm.create_model(name))
    assert parameters(model.backbone) == count
    assert parameters(model.head) == features * 100 + 100 + 101


def test_always_positive_is_not_mistaken_for_a_good_classifier() -> None:
    labels = torch.tensor([0] * 207 + [1] * 1352)
    judged = judge(two_columns(torch.ones(1559, 1)), labels)
    assert judged["top1"] == pytest.approx(0.8672, abs=5e-5)
    assert judged["precision"] == pytest.approx(0.8672, abs=5e-5)
    assert judged["f1"] == pytest.approx(0.9289, abs=5e-5)
    assert (judged["recall"], judged["balanced_accuracy"], judged["f1_rarest"]) == (1, 0.5, 0)


@given(st.integers(0, 1000), st.integers(2, 4))
def test_the_numbers_are_those_of_scikit_learn(seed: int, classes: int) -> None:
    logits, labels = images(30, classes, seed=seed), torch.arange(30) % classes
    judged, said = judge(logits, labels), logits.argmax(1)
    average: Any = "binary" if classes == 2 else "macro"
    theirs = sklearn.metrics.precision_recall_fscore_support(labels, said, average=average, zero_division=0)
    assert [judged["precision"], judged["recall"], judged["f1"]] == pytest.approx(theirs[:3])
    assert judged["balanced_accuracy"] == pytest.approx(sklearn.metrics.balanced_accuracy_score(labels, said))
    assert judged["loss"] == pytest.approx(sklearn.metrics.log_loss(labels, logits.double().softmax(1)), rel=1e-5)


# --- the loss --------------------------------------------------------------------------------------------------------------------------


def test_the_loss_by_hand() -> None:
    batch = Batch(torch.tensor([0.0, 1.0, -2.0])[:, None, None, None], torch.tensor([0, 1, 1]), torch.arange(3))
    model = nn.Flatten()
    losses = torch.stack([-F.logsigmoid(torch.tensor(0.0)), -F.logsigmoid(torch.tensor(1.0)), -F.logsigmoid(torch.tensor(-2.0))])
    assert_close(WeightedCrossEntropy()(model, batch)["loss"], losses.mean())
    weighted = WeightedCrossEntropy([2, 1])(model, batch)
    assert_close(weighted["loss"], (losses * torch.tensor([2.0, 1, 1])).sum() / 3)  # Keras divides by the images, not by the weights
    assert float(weighted["top1"]) == pytest.approx(2 / 3)  # a logit of 0 is class 0
    mixed = Batch(batch.images, batch.labels, batch.indices, (), torch.tensor([[1.0, 0], [0.25, 0.75], [0, 1]]))
    partly = 0.25 * -F.logsigmoid(torch.tensor(-1.0)) * 2 + 0.75 * losses[1]
    assert_close(WeightedCrossEntropy([2, 1])(model, mixed)["loss"], (2 * losses[0] + partly + losses[2]) / 3)


def test_the_penalty_is_on_the_heads_kernels_alone() -> None:
    model = model_for("ours").eval()
    batch = Batch(images(4, 3, 16, 16), torch.tensor([0, 1, 1, 0]), torch.arange(4))
    kernels = model.head[1].weight.square().sum() + model.head[3].weight.square().sum()  # type: ignore[union-attr, operator]
    without, penalised = (WeightedCrossEntropy(l2=l2)(model, batch)["loss"] for l2 in (0.0, 0.01))
    assert_close(penalised - without, 0.01 * kernels.detach(), rtol=1e-3, atol=1e-6)  # type: ignore[operator]


@given(st.integers(0, 1000))
def test_more_classes_are_torchs_cross_entropy(seed: int) -> None:
    logits = images(6, 3, seed=seed)
    batch = Batch(logits[..., None, None], torch.arange(6) % 3, torch.arange(6))
    assert_close(WeightedCrossEntropy()(nn.Flatten(), batch)["loss"], F.cross_entropy(logits, batch.labels))
    weights = torch.tensor([2.0, 1.0, 0.5])
    expected = (F.cross_entropy(logits, batch.labels, reduction="none") * weights[batch.labels]).mean()
    assert_close(WeightedCrossEntropy(weights.tolist())(nn.Flatten(), batch)["loss"], expected)


# --- the network -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_any_backbone_has_the_protocol_afterwards(kind: Any) -> None:
    model, x = model_for(kind, num_classes=3).eval(), images(2, 3, 16, 16)
    assert model(x).shape == (2, 3)
    assert_close(model.forward_head(model.forward_features(x)), model(x))
    assert pooled_features(model, x).shape == (2, 8)
    assert_close(model.get_classifier()(pooled_features(model, x)), model(x))
    assert_close(model.head(pooled_features(model.backbone, x)), model(x))
    model.reset_classifier(1)
    assert model(x).shape == (2, 1)
    names = dict(model.named_modules())
    assert all(tap["module"] in names for tap in model.feature_info)
    assert GradCAM(model)(x).shape == (2, 16, 16)
    model.reset_classifier(0)
    assert model(x).shape == (2, 8)


def test_the_head_is_that_of_the_paper() -> None:
    model = model_for("ours", dropout=0.3).eval()
    pooled = images(4, 32)
    drop, first, activation, last = model.head
    assert (drop.p, type(activation)) == (0.3, nn.ELU)  # type: ignore[union-attr]
    assert_close(model.head(pooled), last(F.elu(first(pooled))))


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_backbone_stays_at_rest_also_where_its_top_learns(kind: Any) -> None:
    model = model_for(kind)
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.train()
    assert model.backbone.training  # from scratch, batch norms learn as usual
    model.freeze_backbone()
    assert not any(part.training for part in model.backbone.modules())
    assert model.head.training
    everything = model.unfreeze_from(1.0)
    assert everything == parameters(model.backbone)
    top = model.unfreeze_from(0.3)
    assert 0 < top < everything
    for switch in (train_mode, lambda one: one.train(), lambda one: one.eval().train()):
        switch(model)
        assert not any(part.training for part in model.backbone.modules())
        assert model.head[0].training
    model.freeze_backbone()
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())


def test_the_unfreeze_point_may_be_a_name_or_a_share() -> None:
    model = model_for("timm_cnn")
    names = [name for name, _ in model.backbone.named_parameters()]

    def learning() -> list[str]:
        return [name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad]

    model.unfreeze_from("layer3")
    assert learning() == [name for name in names if name.startswith(("layer3", "layer4"))]
    model.unfreeze_from("layer4.0.bn1")
    assert learning() == names[names.index("layer4.0.bn1.weight") :]
    model.unfreeze_from(1e-9)
    assert learning() == names[-2:]  # the last layer with parameters, a batch norm
    bare = model_for("bare")
    assert bare.unfreeze_from("conv2") == 16 * 32 * 9 + 32 + 64  # names are those of your own module


def test_a_network_by_name_is_rebuilt_from_its_run(tmp_path: Path, data: Data) -> None:
    model = create_model(
        "transfer_classifier",
        backbone="small_convnet",
        backbone_args={"widths": [4, 8]},
        hidden=5,
        num_classes=1,
        in_chans=3,
        input_size=16,
    )
    assert isinstance(model, TransferClassifier)
    transfer(model, data, run_dir=tmp_path, **SHORT)
    again = retinue.load(tmp_path / "fine-tuned")
    x = images(2, 3, 16, 16)
    assert torch.equal(again(x), model(x))


# --- the procedure ---------------------------------------------------------------------------------------------------------------------


def test_the_staircase_is_the_papers() -> None:
    schedule = TwoPhaseSchedule()
    for phase, (lr, factor, every) in enumerate([(1e-3, 0.96, 1000), (1e-6, 0.96, 300)]):
        settings = schedule.settings(phase, steps_per_epoch=231)
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings["lr"])
        stairs = Schedule(optimizer, settings["schedule"], steps=5000, steps_per_epoch=231, **settings["schedule_args"])
        for step in (0, 1, every - 1, every, 2 * every - 1, 2 * every, 3 * every):
            stairs.set(step)
            assert optimizer.param_groups[0]["lr"] == pytest.approx(lr * factor ** (step // every), rel=1e-9)
        assert settings["epochs"] == (30, 10)[phase]


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_may_move_moves(kind: Any, data: Data, tmp_path: Path) -> None:
    model = model_for(kind)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    model.unfreeze_from(0.4)
    free = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    numbers = transfer(model, data, unfreeze=0.4, run_dir=tmp_path, **SHORT)
    head = retinue.engine.best(tmp_path / "head").tensors
    tuned = model.state_dict()
    frozen = [name for name in first if name.startswith("backbone.")]
    assert all(torch.equal(head[name], first[name]) for name in frozen)  # buffers too, bit by bit
    assert not any(torch.equal(head[name], first[name]) for name in first if name.startswith("head."))
    moved = {name for name in first if not torch.equal(tuned[name], head[name])}
    assert moved <= free
    assert any(name.startswith("backbone.") for name in moved)
    assert list(numbers) == ["head", "fine-tuned"]
    assert set(numbers["head"]) == {"top1", "loss", "balanced_accuracy", "precision", "recall", "f1", "f1_rarest"}
    assert not model.training


def test_a_finished_phase_is_not_trained_again(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_for("ours")
    numbers = transfer(model, data, run_dir=tmp_path, **SHORT)
    assert json.loads((tmp_path / "fine-tuned" / "config.json").read_text())["fit"]["lr"] == 1e-3
    monkeypatch.setattr(MODULE, "fit", None)
    again = model_for("ours")
    assert transfer(again, data, run_dir=tmp_path, **SHORT) == numbers
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_stopped_between_the_phases_it_goes_on_as_if_nothing_had_been(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = model_for("timm_cnn")
    numbers = transfer(whole, data, run_dir=None, **SHORT)
    fit = MODULE.fit

    def stop(*arguments: Any, **settings: Any) -> Any:
        if settings["lr"] == 1e-3:
            raise KeyboardInterrupt
        return fit(*arguments, **settings)

    monkeypatch.setattr(MODULE, "fit", stop)
    with pytest.raises(KeyboardInterrupt):
        transfer(model_for("timm_cnn"), data, run_dir=tmp_path, **SHORT)
    monkeypatch.undo()
    again = model_for("timm_cnn")
    assert transfer(again, data, run_dir=tmp_path, **SHORT) == numbers
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in again.state_dict().items())


def test_the_backbone_may_come_from_a_run(data: Data, tmp_path: Path) -> None:
    source = create_model("small_convnet", widths=[4, 8], num_classes=2, in_chans=3, input_size=16)
    retinue.fit(source, retinue.train.Supervised(), data, epochs=1, batch_size=8, run_dir=tmp_path / "source", progress=False)

    def fresh() -> TransferClassifier:
        return TransferClassifier(create_model("small_convnet", widths=[4, 8], num_classes=2, in_chans=3, input_size=16), hidden=4)

    trained = retinue.load(tmp_path / "source").state_dict()
    model = fresh()
    load_backbone(model, tmp_path / "source")
    assert all(torch.equal(value, trained[name]) for name, value in model.backbone.state_dict().items())
    transfer(model, data, run_dir=tmp_path / "one", **SHORT)
    second = fresh()
    transfer(second, data, weights=str(tmp_path / "one" / "fine-tuned"), run_dir=tmp_path / "two", **SHORT)  # a transfer's backbone
    head = retinue.engine.best(tmp_path / "two" / "head").tensors
    assert all(torch.equal(head[f"backbone.{name}"], value) for name, value in model.backbone.state_dict().items())
    with pytest.raises(
        CheckpointError, match=r"do not fit this backbone: \d+ of \d+ tensors are missing or of another shape, such as conv1"
    ):
        load_backbone(model_for("timm_cnn"), tmp_path / "source")


def test_backbones_are_compared_on_the_same_data(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbones: dict[str, dict[str, Any]] = {
        "small_convnet": {"backbone_args": {"widths": [4, 8]}},
        "resnet20": {"unfreeze": 0.1, "hidden": 3},
    }
    shared = {**SHORT, "hidden": 5}
    shared.pop("progress")
    numbers = compare_backbones(data, backbones, settings=shared, run_dir=tmp_path, progress=False)
    assert list(numbers) == ["small_convnet, head", "small_convnet, fine-tuned", "resnet20, head", "resnet20, fine-tuned"]
    one = retinue.load(tmp_path / "resnet20" / "fine-tuned")
    assert (one.num_classes, one.head_hidden_size) == (1, 3)
    torch.manual_seed(9)  # the caller's random numbers change nothing
    again = compare_backbones(data, {"small_convnet": backbones["small_convnet"]}, settings=shared, progress=False)
    assert again["small_convnet, fine-tuned"] == numbers["small_convnet, fine-tuned"]
    monkeypatch.setattr(MODULE, "fit", None)
    assert compare_backbones(data, backbones, settings=shared, run_dir=tmp_path, progress=False) == numbers
    with pytest.raises(ArgumentError, match=r'compare_backbones: no setting is called "unfreze"\. Did you mean unfreeze\?'):
        compare_backbones(data, {"resnet20": {"unfreze": 0.1}})
    with pytest.raises(ArgumentError, match=r"compare_backbones: `backbones` is empty\. Name at least one"):
        compare_backbones(data, {})


def test_published_weights_come_from_the_backbones_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fetch(name: str, pretrained: bool, **arguments: Any) -> nn.Module:
        asked.update(name=name, pretrained=pretrained, **arguments)
        torch.manual_seed(5)
        return create_model(name, **arguments)

    monkeypatch.setattr(MODULE, "create_model", fetch)
    model = TransferClassifier(create_model("small_convnet", widths=[4, 8], num_classes=2, input_size=16))
    load_backbone(model, "published")
    torch.manual_seed(5)
    expected = create_model("small_convnet", widths=[4, 8], num_classes=0, input_size=16).state_dict()
    assert (asked["name"], asked["pretrained"], asked["num_classes"]) == ("small_convnet", True, 0)
    assert all(torch.equal(value, expected[name]) for name, value in model.backbone.state_dict().items())
    with pytest.raises(ArgumentError, match=r"only a backbone from create_model has published weights\. Load your own network's before"):
        load_backbone(model_for("bare"), "published")


# --- refused ---------------------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused(data: Data) -> None:
    with pytest.raises(ArgumentError, match=r"TransferClassifier: `hidden` must be at least 1, got 0\. The paper has 100\."):
        TransferClassifier(tiny("ours"), hidden=0)
    with pytest.raises(ArgumentError, match=r"TransferClassifier: `dropout` must lie in \[0, 1\), got 50\."):
        TransferClassifier(tiny("ours"), dropout=50)
    model = model_for("timm_cnn")
    with pytest.raises(
        ArgumentError, match=r'unfreeze_from: no layer of the backbone is called "layer5"\. Did you mean layer\d.*All names'
    ):
        model.unfreeze_from("layer5")
    with pytest.raises(
        ArgumentError, match=r"unfreeze_from: a share of layers must lie in \(0, 1\], got 35\. For the top third write 0\.33\."
    ):
        model.unfreeze_from(35)
    with pytest.raises(
        ArgumentError, match=r"transfer: `model` must be a TransferClassifier, got Bare\. Wrap it: TransferClassifier\(model\)\."
    ):
        transfer(tiny("bare"), data)
    with pytest.raises(ArgumentError, match=r'no layer of the backbone is called "layre3"\. Did you mean layer3'):
        transfer(model, data, unfreeze="layre3")
    with pytest.raises(ArgumentError, match=r"`class_weights` needs 2 numbers, one for each class, got 3\."):
        transfer(model, data, class_weights=[1, 2, 3], **SHORT)
    with pytest.raises(
        ArgumentError, match=r"the model has 3 outputs and stripes has 2 classes\. Build it with num_classes=2, or 1 for one logit\."
    ):
        transfer(model_for("ours", num_classes=3), data, **SHORT)
    with pytest.raises(ArgumentError, match=r"WeightedCrossEntropy: `class_weights` must be 0 or more, got \[-1, 1\]\."):
        WeightedCrossEntropy([-1, 1])
    with pytest.raises(ArgumentError, match=r"WeightedCrossEntropy: `l2` must be 0 or more, got -1\."):
        WeightedCrossEntropy(l2=-1)


def test_labels_of_one_class_are_refused() -> None:
    one = from_arrays(np.zeros((12, 16, 16, 3), np.uint8), [1] * 12, classes=["sound", "damaged"], name="buildings")
    with pytest.raises(
        ArgumentError, match=r'all training images of buildings are of the class "damaged"\. There must be two classes at least\.'
    ):
        transfer(model_for("ours"), one, **SHORT)


def test_schedules_that_cannot_be_are_refused() -> None:
    with pytest.raises(
        ArgumentError, match=r"rate of fine-tuning must be below that of the head, got lr=\(0\.001, 0\.001\): it would destroy"
    ):
        TwoPhaseSchedule(lr=(1e-3, 1e-3))
    with pytest.raises(ArgumentError, match=r"`epochs` needs one entry for each of the two phases, got \[30\]\."):
        TwoPhaseSchedule(epochs=(30,))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"all numbers must be positive, got epochs=\(30, 0\)"):
        TwoPhaseSchedule(epochs=(30, 0))
