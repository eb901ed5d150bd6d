"""MEAL V2 from beginning to end: stages, resume, where the student begins, and what is refused."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import retinue
from retinue.data import Data, from_arrays
from retinue.distill import meal_v2_stages as module
from retinue.distill.ensemble import EnsembleTeacher
from retinue.distill.meal_v2_stages import PAPER, distill_ensemble
from retinue.errors import ArgumentError, CheckpointError
from retinue.models import create_model, tiny
from retinue.train import Supervised

FIT: dict[str, Any] = {"max_steps": 3, "batch_size": 8, "optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0}
NETWORKS: dict[str, Any] = {"teachers": ["mlp", "mlp"], "teacher_args": {"widths": [6]}, "progress": False}
WHOLE: dict[str, Any] = {**NETWORKS, "teacher_fit": FIT, "student_fit": FIT, "distill_fit": {**FIT, "max_steps": 4}}


@pytest.fixture
def data() -> Data:
    """Seventy-two images of 4 px in three classes: each brightens another row."""
    pixels = torch.randint(0, 120, (72, 4, 4), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(72) % 3
    pixels[torch.arange(72), labels] += 100
    return from_arrays(pixels.byte().numpy(), labels, split=["train"] * 40 + ["val"] * 8 + ["test"] * 24, name="rows")


def student(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return create_model("mlp", widths=[5], num_classes=3, in_chans=1, input_size=4)


def test_the_stages_are_those_of_single_fits(data: Data, tmp_path: Path) -> None:
    model = student()
    found = distill_ensemble(model, data, run_dir=tmp_path, **WHOLE)
    assert list(found) == ["student", "teachers", "distilled"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["distilled", "stages", "student", "teacher-1", "teacher-2"]
    assert found["distilled"] == pytest.approx(retinue.evaluate(model, data.test), abs=1e-6)
    before = retinue.load(tmp_path / "student")
    assert found["student"] == pytest.approx(retinue.evaluate(before, data.test), abs=1e-6)
    first = retinue.fit(student(), Supervised(), data, progress=False, **FIT).model
    assert_close(dict(first.state_dict()), dict(before.state_dict()))
    teachers = [retinue.load(tmp_path / f"teacher-{number}") for number in (1, 2)]
    shown, labels = data.preprocessing.normalize(data.test.images()), data.test.labels
    shares, _ = EnsembleTeacher(teachers)(shown)
    assert found["teachers"]["top1"] == pytest.approx(float((shares.argmax(1) == labels).float().mean()))
    assert found["teachers"]["loss"] == pytest.approx(float(-shares[torch.arange(24), labels].log().mean()), abs=1e-5)
    assert not torch.equal(teachers[0].head.weight, teachers[1].head.weight)


def test_killed_in_any_stage_it_goes_on_to_the_same_end(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = student()
    expected = distill_ensemble(whole, data, run_dir=tmp_path / "whole", **WHOLE)
    fits: list[str] = []
    real = module.fit

    def killed_in_the_second(*arguments: Any, **options: Any) -> Any:
        fits.append(Path(options["run_dir"]).name)
        if len(fits) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(module, "fit", killed_in_the_second)
    order = ["teacher-1", "teacher-2", "student", "distilled"]
    for both in pairwise(order):
        fits.clear()
        with pytest.raises(KeyboardInterrupt):
            distill_ensemble(student(), data, run_dir=tmp_path / "stopped", **WHOLE)
        assert fits == list(both), "what has finished is not trained again"
    for trained in (["distilled"], []):
        fits.clear()
        again = student()
        assert distill_ensemble(again, data, run_dir=tmp_path / "stopped", **WHOLE) == expected
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
        assert fits == trained


def test_the_student_begins_from_a_run_or_as_it_is(data: Data, tmp_path: Path) -> None:
    run = retinue.fit(student(3), Supervised(), data, run_dir=tmp_path / "run", progress=False, **FIT)
    settings = {**WHOLE, "student_fit": None, "distill_fit": {**FIT, "lr": 0.0}, "adversarial": None}
    model = student()
    distill_ensemble(model, data, init=str(tmp_path / "run"), **settings)
    assert_close(dict(model.state_dict()), dict(run.model.state_dict()))
    untouched = student()
    distill_ensemble(untouched, data, **settings)
    assert_close(dict(untouched.state_dict()), dict(student().state_dict()))
    other = create_model("mlp", widths=[9], num_classes=3, in_chans=1, input_size=4)
    with pytest.raises(CheckpointError, match=r"^distill_ensemble: .*run is no run of this student: Error.* size mismatch"):
        distill_ensemble(other, data, init=str(tmp_path / "run"), **settings)


def test_runs_are_teachers_and_a_module_of_ones_own_a_student(data: Data, tmp_path: Path) -> None:
    retinue.fit(student(3), Supervised(), data, run_dir=tmp_path / "run", progress=False, **FIT)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    found = distill_ensemble(model, data, teachers=[str(tmp_path / "run")], student_fit=FIT, distill_fit=FIT, progress=False)
    assert found["distilled"]["loss"] != found["student"]["loss"]
    with torch.no_grad():
        x = data.preprocessing.normalize(data.test.images())
        assert float((model(x).argmax(1) == data.test.labels).float().mean()) == pytest.approx(found["distilled"]["top1"])


def test_the_student_sees_as_many_images_as_it_may(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[str]]] = []
    real = module.fit

    def watched(model: Any, objective: Any, some: Data, **options: Any) -> Any:
        seen.append((type(objective).__name__, list(some.train.names)))
        return real(model, objective, some, **options)

    monkeypatch.setattr(module, "fit", watched)
    distill_ensemble(student(), data, student_images=10, **WHOLE)
    assert [name for name, _ in seen] == ["Supervised", "Supervised", "Supervised", "MEALv2"]
    assert [len(names) for _, names in seen] == [40, 40, 10, 10]
    assert seen[2] == ("Supervised", seen[3][1])


def test_without_settings_the_teaching_is_the_papers(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retinue.fit(student(3), Supervised(), data, run_dir=tmp_path / "run", progress=False, **FIT)
    asked: dict[str, Any] = {}

    def told(model: Any, objective: Any, some: Data, **options: Any) -> Any:
        asked.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fit", told)
    with pytest.raises(KeyboardInterrupt):
        distill_ensemble(student(), data, teachers=[str(tmp_path / "run")], progress=False)
    assert asked["players"] == {"discriminator": {"lr": 1e-4}}
    assert {name: asked[name] for name in PAPER} == PAPER
    assert (asked["lr"], asked["weight_decay"], asked["epochs"], asked["batch_size"]) == (0.01, 0.0, 180, 512)


def test_what_cannot_be_is_refused(data: Data) -> None:
    for nobody in ([], "mlp"):
        with pytest.raises(ArgumentError, match=r"^distill_ensemble: `teachers` must be a list of names or of runs' folders, got"):
            distill_ensemble(student(), data, teachers=nobody)
    with pytest.raises(ArgumentError, match=r"`student_images` must lie between 1 and the 40 training images, got 41"):
        distill_ensemble(student(), data, student_images=41, **WHOLE)
    with pytest.raises(ArgumentError, match=r"`init` gives a student that is trained, and `student_fit` trains one\. Leave one"):
        distill_ensemble(student(), data, init="runs/a", **WHOLE)
    with pytest.raises(ArgumentError, match=r'no setting of `student_fit` is called "max_step"\. Did you mean max_steps'):
        distill_ensemble(student(), data, **{**WHOLE, "student_fit": {"max_step": 3}})
    with pytest.raises(ArgumentError, match=r"Supervised: the model has 10 outputs and rows has 3 classes\. Build it with num_classes=3"):
        distill_ensemble(tiny("ours", in_chans=1), data, **WHOLE)
