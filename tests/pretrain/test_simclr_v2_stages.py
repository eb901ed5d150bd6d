"""SimCLRv2 from beginning to end: the stages are those of single fits, a killed procedure goes on, and what is refused."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import retinue
from retinue.data import Data, few_labels
from retinue.engine import Run
from retinue.errors import ArgumentError
from retinue.models import adapt, tiny
from retinue.models.projection import ProjectedClassifier, ProjectionHead
from retinue.pretrain import simclr_v2_stages as module
from retinue.pretrain.simclr_v2_labels import Distillation
from retinue.pretrain.simclr_v2_stages import distill, finetune, labelled, pretrain, projected, semi_supervised

FIT: dict[str, Any] = {"max_steps": 2, "batch_size": 16, "lr": 0.02}
HEAD: dict[str, Any] = {"hidden_dim": 6, "out_dim": 4, "temperature": 0.5}
WHOLE: dict[str, Any] = {
    "per_class": 2, "objective": HEAD, "pretrain_fit": FIT, "finetune_fit": FIT, "distill_fit": FIT, "student": "mlp",
    "student_args": {"widths": [5]}, "progress": False,
}  # fmt: skip
STAGES = ["pretrained", "fine-tuned", "self-distilled", "distilled"]


@pytest.fixture(scope="module")
def data() -> Data:
    return retinue.data.open("digits", input_size=16, train_images=80, test_images=40)


def network(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return retinue.create_model("small_convnet", widths=[4, 4, 8], num_classes=0, in_chans=1, input_size=16)


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


def test_the_stages_are_those_of_single_fits(data: Data, tmp_path: Path) -> None:
    model = network()
    found = semi_supervised(model, data, run_dir=tmp_path, **WHOLE)
    assert list(found) == STAGES
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*STAGES, "stages"])
    alone = network()
    first = pretrain(alone, data, HEAD, progress=False, **FIT)
    assert equal(model, first.model)
    head: Any = first.objective
    second = finetune(alone, head.head, data, per_class=2, progress=False, **FIT)
    assert retinue.evaluate(second.model, data.test) == found["fine-tuned"]
    tuned: Any = retinue.load(tmp_path / "fine-tuned")
    assert isinstance(tuned, ProjectedClassifier)
    assert equal(tuned, second.model)
    student: Any = retinue.load(tmp_path / "distilled")
    assert student.retinue_config["name"] == "mlp"
    assert retinue.evaluate(student, data.test) == pytest.approx(found["distilled"], abs=1e-6)
    same: Any = retinue.load(tmp_path / "self-distilled")
    assert list(same.state_dict()) == [*network().state_dict(), "head.fc.weight", "head.fc.bias"], "without the projection head"
    assert 0 <= found["pretrained"]["top1"] <= 1


def test_killed_in_any_stage_it_goes_on_to_the_same_end(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = network()
    expected = semi_supervised(whole, data, run_dir=tmp_path / "whole", **WHOLE)
    fits: list[str] = []
    real = module.fit

    def killed_in_the_second(*arguments: Any, **options: Any) -> Any:
        fits.append(Path(options["run_dir"]).name)
        if len(fits) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(module, "fit", killed_in_the_second)
    for both in pairwise(STAGES):
        fits.clear()
        with pytest.raises(KeyboardInterrupt):
            semi_supervised(network(), data, run_dir=tmp_path / "stopped", **WHOLE)
        assert fits == list(both), "what has finished is not trained again"
    for trained in (["distilled"], []):
        fits.clear()
        again = network(seed=1)
        assert semi_supervised(again, data, run_dir=tmp_path / "stopped", **WHOLE) == expected
        assert equal(whole, again)
        assert fits == trained


def test_teachers_follow_one_another_and_see_all_images(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, int, Any]] = []
    real = module.fit

    def watched(model: Any, objective: Any, some: Data, **options: Any) -> Any:
        run = real(model, objective, some, **options)
        seen.append((objective, len(some.train), run.model))
        return run

    monkeypatch.setattr(module, "fit", watched)
    semi_supervised(network(), data, self_temperature=0.2, student_temperature=0.9, **WHOLE)
    assert [count for _, count, _ in seen] == [80, 20, 80, 80]
    assert [objective.temperature for objective, _, _ in seen[2:]] == [0.2, 0.9]
    assert equal(seen[2][0].teacher, seen[1][2])
    assert equal(seen[3][0].teacher, seen[2][2])


def test_without_a_student_it_ends_with_self_distillation(data: Data) -> None:
    found = semi_supervised(network(), data, **{**WHOLE, "student": None, "student_args": None, "from_layer": 0, "after_block": 4})
    assert list(found) == STAGES[:3]


@pytest.mark.parametrize("kind", ["timm_cnn", "timm_vit", "bare"])
def test_any_backbone_goes_through_all_stages(kind: Any) -> None:
    data = retinue.data.open("digits", input_size=32, channels=3, train_images=40, test_images=20)
    torch.manual_seed(0)
    assert list(semi_supervised(tiny(kind), data, **{**WHOLE, "student": None, "student_args": None})) == STAGES[:3]


@pytest.mark.parametrize("from_layer", [0, 1, 3])
def test_fine_tuning_begins_where_pretraining_ended(data: Data, from_layer: int) -> None:
    model = network()
    objective: Any = pretrain(model, data, HEAD, progress=False, **FIT).objective
    made = projected(model, objective.head, 10, from_layer)
    x = data.preprocessing.normalize(data.test.images())
    h = objective.head.eval()(retinue.models.pooled_features(model.eval(), x), return_layers=True)[from_layer]
    assert torch.equal(made.eval().forward_head(made.forward_features(x), pre_logits=True), h)
    made.fc.weight.data.add_(1.0)  # type: ignore[union-attr, operator]
    made.backbone.stem[0].conv.weight.data.zero_()  # type: ignore[index, union-attr]
    assert float(model.stem[0].conv.weight.detach().abs().sum()) > 0, "copies"
    config: Any = made.retinue_config
    again = retinue.create_model(config["name"], **config["arguments"])
    again.load_state_dict(made.state_dict())


def test_labels_of_distillation_are_those_of_fine_tuning(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    few = labelled(data, None, 2, seed=5)
    assert few.train.names == few_labels(data, per_class=2, seed=5).train.names
    made: list[Distillation] = []

    def kept(student: nn.Module, objective: Distillation, data: Data, **options: Any) -> Run:
        made.append(objective)
        return Run(None, student, objective)

    monkeypatch.setattr(module, "fit", kept)
    teacher = ProjectedClassifier(network(), ProjectionHead(8), num_classes=10)
    student = retinue.create_model("mlp", widths=[5], num_classes=10, in_chans=1, input_size=16)
    distill(teacher, student, data, alpha=0.5, per_class=2, seed=5)
    distill(teacher, student, data, per_class=2)
    distill(teacher, student, data, alpha=0.5)
    known = made[0]._labelled or []
    assert [data.train.names[place] for place in known] == list(few.train.names)
    assert made[1]._labelled is None
    assert made[2]._labelled is None


def test_all_labels_where_no_share_is_given(data: Data) -> None:
    assert labelled(data, None, None, 0) is data
    assert len(labelled(data, 0.5, None, 0).train) == 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_class": None, "label_fraction": 0.0}, r"finetune: `label_fraction` must lie in \(0, 1\], got 0\.0\. For one percent"),
        ({"per_class": None, "label_fraction": 1.5}, r"`label_fraction` must lie in \(0, 1\], got 1\.5"),
        ({"label_fraction": 0.5}, r"few_labels: give `share` or `per_class`, and one of them only"),
        ({"per_class": 50}, r'class "0" has \d+ training images, and 50 are asked for'),
        ({"from_layer": 4}, r"ProjectionHead: there are layers 0 \(the features\) to 3, got 4\. The paper takes 1\."),
        ({"from_layer": -1}, r"there are layers 0 \(the features\) to 3, got -1\."),
        ({"student": "mpl"}, r'no network is called "mpl"\. Did you mean mlp'),
        ({"after_block": 7}, r"`after_block` must lie between -1 \(all learns\) and 4"),
        ({"pretrain_fit": {"epoch": 3}}, r'semi_supervised: no setting of `pretrain_fit` is called "epoch"\. Did you mean epochs'),
        ({"objective": {"temprature": 3}}, r'no setting of `objective` is called "temprature"\. Did you mean temperature'),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    data: Data, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fit", lambda *arguments, **options: pytest.fail("trained"))
    with pytest.raises(ArgumentError, match=message):
        semi_supervised(network(), data, **{**WHOLE, **changes})


def test_a_class_without_labels_is_refused(data: Data) -> None:
    lacking = retinue.data.dataset.replace(data, train=data.train.subset((data.train.labels != 3).nonzero()[:, 0]))
    with pytest.raises(ArgumentError, match=r'class "3" has 0 training images, and 1 are asked for'):
        labelled(lacking, 0.1, None, 0)


def test_a_student_of_other_classes_is_refused(data: Data) -> None:
    teacher = ProjectedClassifier(adapt(network()), ProjectionHead(8), num_classes=10)
    student = retinue.create_model("mlp", widths=[5], num_classes=4, in_chans=1, input_size=16)
    with pytest.raises(ArgumentError, match=r"the student has 4 outputs and digits has 10 classes"):
        distill(teacher, student, data, progress=False, **FIT)
