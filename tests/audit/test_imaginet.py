"""The detector: its parameters and logits, batch norms that follow while it is fitted, calibration, all stages, and real images."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from support import ROOT, images, parameters, same
from torch import nn
from torch.testing import assert_close

import retinue
from retinue.audit.imaginet import Calibration, balanced_images, calibrate, fit_calibration, synthetic_logit, throughput
from retinue.audit.imaginet_stages import HEAD, PRETRAIN, SETTINGS, families_table, train_detector
from retinue.data import Data, from_arrays
from retinue.data.annotations import by_origin
from retinue.engine import Supervised
from retinue.engine.modes import train_mode
from retinue.errors import ArgumentError, DataError
from retinue.models import adapt, feature_size, tiny
from retinue.models.synthetic_detector import SyntheticDetector
from retinue.models.tiny import KINDS
from retinue.pretrain.selfcon import SelfCon

HEADS = {"epochs": 3, "batch_size": 32, "optimizer": "adam", "lr": 1e-3}


def made(count: int = 240, side: int = 16, families: int = 2) -> Data:
    """Real images are smooth, each family of synthetic ones has a grid of its own."""
    generator = torch.Generator().manual_seed(0)
    base = F.interpolate(torch.rand(count, 3, 4, 4, generator=generator), size=side, mode="bilinear") * 160
    labels = torch.arange(count) % (families + 1)
    grid = torch.zeros(families + 1, side, side)
    for family in range(1, families + 1):
        grid[family, :: family + 1] = 50
    pixels = (base + grid[labels][:, None] + 8 * torch.rand(base.shape, generator=generator)).to(torch.uint8)
    return from_arrays(pixels, labels, classes=["real", "GAN", "Midjourney"][: families + 1], name="made", val_fraction=0.25)


def test_the_papers_head_has_the_papers_parameters() -> None:
    with torch.device("meta"):
        backbone = retinue.create_model("resnet_no_down", num_classes=0)
    detector = SyntheticDetector(backbone)
    assert parameters(detector.head[0]) == 4_096
    assert parameters(detector.head[1]) == 2_098_176
    assert parameters(detector.fc) == 1_025
    assert sum(p.numel() for p in detector.parameters() if p.requires_grad) == 2_103_297


def test_cross_entropy_of_two_logits_is_the_binary_one_of_their_difference() -> None:
    detector = SyntheticDetector(tiny("timm_cnn")).eval()
    logits = detector(images(6, 3, 32, 32))
    assert not logits[:, 0].any()
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    assert_close(F.cross_entropy(logits, labels), F.binary_cross_entropy_with_logits(logits[:, 1], labels.float()))
    assert SyntheticDetector(tiny("timm_cnn"), 4)(images(2, 3, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_detector_stands_on_any_backbone_of_which_nothing_learns(kind: Any) -> None:
    backbone = adapt(tiny(kind), input_size=32)
    detector = SyntheticDetector(backbone)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    data = retinue.data.open("digits", input_size=32, channels=3, train_images=64, test_images=20)
    two = by_origin(data, "0")
    retinue.fit(detector, Supervised(), two, max_steps=2, batch_size=16, lr=0.1, progress=False)
    changed = {name for name, value in detector.state_dict().items() if not torch.equal(value, before[name])}
    statistics = {name for name in before if name.startswith("backbone") and name.endswith(("running_mean", "running_var", "tracked"))}
    assert {name for name in changed if name.startswith("backbone")} == statistics
    assert "fc.weight" in changed
    assert feature_size(detector) == feature_size(backbone)


def test_batch_norms_follow_while_the_head_is_fitted_and_at_no_other_time() -> None:
    detector = SyntheticDetector(adapt(tiny("bare")))
    norm = detector.backbone.module.norm1
    start = norm.running_mean.clone()
    train_mode(detector)
    x = images(5, 3, 32, 32)
    detector(x)
    own = detector.backbone.module.conv1(x)
    assert_close(norm.running_mean, 0.9 * start + 0.1 * own.mean((0, 2, 3)))
    assert not norm.training
    moved = norm.running_mean.clone()
    detector.eval()(x)
    fixed = SyntheticDetector(adapt(tiny("bare")), adapt_norms=False)
    begun = fixed.backbone.module.norm1.running_mean.clone()
    train_mode(fixed)
    fixed(x)
    assert torch.equal(norm.running_mean, moved)
    assert torch.equal(fixed.backbone.module.norm1.running_mean, begun)


def test_a_stored_detector_comes_back_with_its_calibration(tmp_path: Path) -> None:
    data = by_origin(made())
    backbone = retinue.create_model("cifar_resnet", depth=8, width=4, num_classes=0, input_size=16)
    run = retinue.fit(SyntheticDetector(backbone), Supervised(), data, max_steps=3, batch_size=16, run_dir=tmp_path, progress=False)
    loaded = retinue.load(tmp_path)
    x = images(4, 3, 16, 16)
    with torch.no_grad():
        assert_close(loaded(x), run.model.eval()(x))
    assert "slope" in loaded.state_dict()


def test_calibration_is_a_logistic_regression_on_the_logit() -> None:
    generator = torch.Generator().manual_seed(0)
    logit = torch.randn(4000, generator=generator, dtype=torch.float64) * 2
    labels = (torch.rand(4000, generator=generator) < torch.sigmoid(1.5 * logit - 2)).long()
    found = fit_calibration(logit, labels)
    assert found.slope == pytest.approx(1.5, abs=0.15)
    assert found.intercept == pytest.approx(-2, abs=0.15)
    at_ends = (found.probability(logit) - labels).mean().item(), ((found.probability(logit) - labels) * logit).mean().item()
    assert at_ends == pytest.approx((0, 0), abs=1e-4)  # where the likelihood's gradient is nought
    scaled = fit_calibration(1000 * logit + 5, labels)
    assert_close(scaled.probability(1000 * logit + 5), found.probability(logit), atol=1e-3, rtol=0)
    assert Calibration(2, 1).probability(torch.tensor([0.0])).item() == pytest.approx(1 / (1 + math.exp(-1)))


def test_calibrating_sets_the_threshold_and_keeps_the_order() -> None:
    data = by_origin(made())
    detector = SyntheticDetector(retinue.create_model("cifar_resnet", depth=8, width=4, num_classes=0, input_size=16))
    retinue.fit(detector, Supervised(), data, **HEADS, progress=False)
    with torch.no_grad():
        detector.fc.bias += 30  # everything looks synthetic
    raw = synthetic_logit(detector, data.val)
    assert (raw > 0).all()
    found = calibrate(detector, data.val)
    moved = synthetic_logit(detector, data.val)
    assert_close(moved, found.slope * raw + found.intercept, rtol=1e-4, atol=1e-3)
    assert retinue.evaluate(detector, data.val)["top1"] > 0.6
    assert calibrate(detector, data.val) == pytest.approx(found, rel=1e-4)  # a second time begins anew


def test_held_images_are_half_of_each_class() -> None:
    split = by_origin(made()).val
    found = balanced_images(split, 10, seed=1)
    assert found.labels.tolist().count(0) == found.labels.tolist().count(1) == 5
    assert balanced_images(split, 1000).labels.double().mean() == 0.5
    assert same(balanced_images(split, 10, seed=1).positions, found.positions)
    with pytest.raises(ArgumentError, match=r"`count` must be 2 or more, half of each class, got 1\. The paper has 80"):
        balanced_images(split, 1)
    with pytest.raises(DataError, match=r"balanced_images: there must be real \(0\) and synthetic \(1\) images, got real only"):
        balanced_images(split.subset((split.labels == 0).nonzero()[:, 0]), 4)


def test_throughput_counts_images_and_leaves_the_model_as_it_is() -> None:
    model = tiny("ours").train()
    split = retinue.data.open("digits", input_size=32, channels=3, train_images=40, test_images=20).test
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert 1 < throughput(model, split, batch_size=8, images=16) < 1e7
    assert model.training
    assert same(before, dict(model.state_dict()))
    with pytest.raises(ArgumentError, match=r"throughput: the split is empty"):
        throughput(model, split.subset([]))


def test_detectors_that_cannot_be_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"`num_classes` must be 2 \(real, synthetic\) or more, got 1"):
        SyntheticDetector(tiny("ours"), 1)
    split = retinue.data.open("digits", input_size=32, channels=3, train_images=40, test_images=20).test
    with pytest.raises(ArgumentError, match=r"the model has 10 classes, and needs 2: real and synthetic\. Train it on"):
        synthetic_logit(tiny("ours"), split)
    with pytest.raises(DataError, match=r"fit_calibration: there must be real .* got synthetic only"):
        fit_calibration(torch.zeros(3), torch.ones(3, dtype=torch.int64))


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return retinue.create_model("cifar_resnet", depth=8, width=4, num_classes=0, input_size=16)


def stages_of(folder: Path | None, data: Data, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "objective": {"name": "retinue.pretrain.selfcon.SelfCon", "feat_dim": 8}, "perturb": False, "head_fit": HEADS, "held_images": 20,
        "pretrain_fit": {"epochs": 6, "batch_size": 32, "lr": 0.1}, "run_dir": folder, "progress": False,
    }  # fmt: skip
    return train_detector(small(), data, **{**settings, **changes})


def test_all_stages_find_what_was_made_and_by_whom() -> None:
    found = stages_of(None, made())
    assert list(found) == ["GAN", "Midjourney", "mean of families", "uncategorised", "which family", "speed"]
    assert found["mean of families"]["auc"] > 0.8
    assert found["which family"]["accuracy"] > 0.7
    assert found["speed"]["images_per_second"] > 0
    assert found.origin.num_classes == found.family.num_classes == 2


def test_a_killed_procedure_goes_on_at_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = made(120)
    brief = {"pretrain_fit": {"epochs": 1, "batch_size": 32}, "head_fit": {**HEADS, "epochs": 1}}
    whole = stages_of(tmp_path / "whole", data, **brief)

    def killed(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("retinue.audit.imaginet_stages.calibrate", killed)
    with pytest.raises(KeyboardInterrupt):
        stages_of(tmp_path / "stopped", data, **brief)
    assert {path.name for path in (tmp_path / "stopped" / "stages").iterdir()} == {"pretrain", "origin"}
    monkeypatch.undo()
    fits: list[str] = []
    real_fit = retinue.fit
    monkeypatch.setattr("retinue.audit.imaginet_stages.fit", lambda *a, **o: fits.append(o["run_dir"].name) or real_fit(*a, **o))
    again = stages_of(tmp_path / "stopped", data, **brief)
    assert fits == ["family"]
    assert same(dict(whole.origin.state_dict()), dict(again.origin.state_dict()))
    assert same(dict(whole.family.state_dict()), dict(again.family.state_dict()))
    assert {name: row for name, row in whole.items() if name != "speed"} == {name: row for name, row in again.items() if name != "speed"}


def test_one_family_has_one_track_and_an_objective_may_be_a_function() -> None:
    found = stages_of(None, made(120, families=1), objective=lambda model, data: SelfCon(model, data, real="real"))
    assert found.family is None
    assert "which family" not in found
    model = small()
    before = {name: value.clone() for name, value in model.named_parameters()}
    train_detector(model, made(120), perturb=False, head_fit={**HEADS, "epochs": 1}, held_images=8, progress=False)
    assert same(before, dict(model.named_parameters()))


def test_a_split_is_described_as_a_table() -> None:
    data = made()
    table, names = families_table(data.test)
    assert names == {0: "GAN", 1: "Midjourney"}
    assert table.column("origin").tolist() == [int(label > 0) for label in data.test.labels.tolist()]
    assert [one for one in table.column("model").tolist() if one < 2] == [one - 1 for one in data.test.labels.tolist() if one]
    with pytest.raises(ArgumentError, match=r'families_table: no class of the data \(`real`\) is called "x"'):
        families_table(data.test, "x")


def test_settings_of_stages_that_cannot_be_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r'no setting of `head_fit` is called "epoch"\. Did you mean epochs'):
        stages_of(None, made(), head_fit={"epoch": 3})
    with pytest.raises(ArgumentError, match=r'no `head_views` is called "trainin"\. Did you mean training'):
        stages_of(None, made(), head_views="trainin")
    with pytest.raises(ArgumentError, match=r"`objective` needs the dotted name of an objective.*Such as"):
        stages_of(None, made(), objective={"name": "retinue.pretrain.selfcon.SelfConn"})
    with pytest.raises(ArgumentError, match=r'no class of the data \(`real`\) is called "photo"'):
        stages_of(None, made(), real="photo")
    data = made()
    data.test = data.test.subset((data.test.labels == 0).nonzero()[:, 0])
    with pytest.raises(DataError, match=r"the test images of made must be real and synthetic\. Open the data with more of them"):
        stages_of(None, data)


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_the_recipes_fit_the_procedure(scale: str) -> None:
    blocks = yaml.safe_load((ROOT / "src" / "retinue" / "recipes" / "imaginet" / f"{scale}.yaml").read_text())
    procedure = blocks["procedure"]
    assert procedure["name"] == "retinue.audit.train_detector"
    assert {*procedure["pretrain_fit"], *procedure["head_fit"]} <= set(SETTINGS)
    if scale == "paper":
        assert procedure["pretrain_fit"] == PRETRAIN
        assert procedure["head_fit"] == HEAD
        assert blocks["model"] == {
            "name": "resnet_no_down",
            "backbone": "timm:resnet50",
            "backbone_args": {"pretrained": True},
            "num_classes": 0,
        }


@pytest.mark.needs_data("cifake")
def test_photographs_and_images_of_stable_diffusion_are_told_apart() -> None:
    data = retinue.data.open("cifake", input_size=32, train_images=600, test_images=200)
    found = train_detector(
        small(), data, objective={"name": "retinue.pretrain.selfcon.SelfCon", "feat_dim": 16}, perturb=False, held_images=80,
        pretrain_fit={"epochs": 6, "batch_size": 32, "lr": 0.1}, head_fit=HEADS, progress=False,
    )  # fmt: skip
    assert found["fake"]["auc"] > 0.65
    assert found.family is None
