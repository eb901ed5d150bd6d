"""SWS in the engine: the loss, what is decayed, any network for one step, the procedure with its costs, and ordinary results."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import same
from torch import nn
from torch.testing import assert_close
from twelve import NETWORKS, network

import retinue
from retinue.cli import recipes
from retinue.data import Batch, Data, Preprocessing
from retinue.engine.optim import exempt_from_decay, make_optimizer
from retinue.errors import ArgumentError
from retinue.grow import sws_stages
from retinue.grow.sws import SoftDistillation, fit_learngene, initialise_descendant, share_stages
from retinue.grow.sws_distillation import find_teacher
from retinue.grow.sws_stages import train_sws
from retinue.models import create_model, tiny
from retinue.models.export import export
from retinue.train import Supervised

VIT: dict[str, Any] = {"patch_size": 2, "embed_dim": 16, "num_heads": 2, "mlp_ratio": 2.0, "stages": [2, 2], "init": "torch"}
QUICK: dict[str, Any] = {"batch_size": 32, "lr": 1e-3, "warmup_epochs": 0}


class Says(nn.Module):
    """Answers alike to every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.num_classes = len(logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), -1)


def digits(**options: Any) -> Data:
    return retinue.data.open("digits", train_images=96, test_images=100, **{"val_fraction": 0.0, **options})


def vit(seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return create_model("stage_shared_vit", num_classes=10, in_chans=1, input_size=8, **{**VIT, **options})


def cnn(num_classes: int = 10) -> Any:
    torch.manual_seed(1)
    return create_model("small_convnet", widths=[8, 8, 16], num_classes=num_classes, in_chans=1, input_size=8)


def batch(count: int, label: int = 0) -> Batch:
    return Batch(images=torch.zeros(count, 1, 8, 8), labels=torch.full((count,), label), indices=torch.arange(count))


def trained(model: nn.Module, objective: Any, data: Data, **options: Any) -> Any:
    return retinue.fit(model, objective, data, **{"max_steps": 2, "batch_size": 16, "lr": 1e-3, "progress": False, **options})


# --- the loss -------------------------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_pages_number() -> None:
    # KL((1/2, 1/2) || (3/4, 1/4)) = log(4/3) / 2 + ... = 0.143841, divided by two classes
    objective = SoftDistillation(Says(0.0, 0.0))
    told = objective(Says(float(torch.tensor(3.0).log()), 0.0), batch(1))
    assert told["loss"].item() == pytest.approx(0.071921, abs=1e-6)
    assert objective(Says(float(torch.tensor(3.0).log()), 0.0), batch(5))["loss"].item() == pytest.approx(0.071921, abs=1e-6)


def test_labels_have_the_rest_and_the_temperature_its_square() -> None:
    student, teacher = Says(1.0, -0.5, 0.2), Says(0.3, 2.0, -1.0)
    told = SoftDistillation(teacher, alpha=0.3, tau=2.0)(student, batch(4, label=2))
    p, q = (teacher.logits / 2).softmax(0), (student.logits / 2).softmax(0)
    divergence = 4 * (p * (p / q).log()).sum() / 3
    assert_close(told["divergence"], divergence.detach())
    assert_close(told["loss"], 0.7 * F.cross_entropy(student.logits[None], torch.tensor([2])) + 0.3 * divergence)
    alone = SoftDistillation(teacher, alpha=0.0)(student, batch(4, label=2))["loss"]
    assert_close(alone, Supervised()(student, batch(4, label=2))["loss"])


def test_a_teacher_sees_images_as_in_its_own_training() -> None:
    data, teacher = digits(), cnn()
    own = Preprocessing((8, 8), 1, (0.2,), (0.4,))
    teacher.preprocessing = own
    objective = SoftDistillation(teacher)
    objective.check(vit(), data)
    seen: list[torch.Tensor] = []
    teacher.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    first = next(data.train.loader(8).batches())
    objective(vit(), first)
    assert_close(seen[0], own.normalize(data.train.images(first.indices)))


def test_the_teacher_is_left_alone(tmp_path: Path) -> None:
    teacher = cnn()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    run = trained(vit(), SoftDistillation(teacher), digits(), run_dir=tmp_path / "run")
    assert same(before, dict(teacher.state_dict()))
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    kept = retinue.load(tmp_path / "run")
    assert type(kept).__name__ == "StageSharedViT"
    assert same(dict(kept.state_dict()), dict(run.model.state_dict()))
    loaded: Any = find_teacher(str(tmp_path / "run"), None, None)
    assert loaded.classes == digits().classes


# --- what is decayed ------------------------------------------------------------------------------------------------------------------


def test_positions_norms_and_biases_are_not_decayed() -> None:
    model = vit()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    objective = SoftDistillation(Says(*[0.0] * 10))
    parted = make_optimizer("adamw", list(objective.prepare(model, digits()).parameters()), lr=0.1, weight_decay=0.5, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    parted.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if name.endswith("weight") and "norm" not in name else 1.0
        assert_close(parameter.detach(), factor * before[name], msg=name)
    assert {name for name, p in model.named_parameters() if torch.equal(p, before[name]) and p.ndim > 1} == {"pos_embed"}


def test_swin_names_its_own_and_a_linear_layer_nothing() -> None:
    model = nn.Linear(3, 2)
    assert exempt_from_decay(model) is model
    assert not any(hasattr(p, "exempt_from_decay") for p in model.parameters())
    swin = exempt_from_decay(network("swin"))
    marked = [name for name, p in swin.named_parameters() if getattr(p, "exempt_from_decay", False)]
    assert marked
    assert all(name.endswith("relative_position_bias_table") for name in marked)


# --- in the engine --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mobilenetv3", "convnext", "vit", "mixer"])
def test_networks_that_fit_train_for_a_step_and_their_descendants_too(name: str) -> None:
    assert name in NETWORKS
    data = retinue.data.open("digits", train_images=32, test_images=20, channels=3, input_size=32, val_fraction=0.0)
    shared: Any = fit_learngene(network(name), tiny("ours"), data, max_steps=1, batch_size=8, progress=False)
    counts = [count + 1 for run in shared.stage_plan for count in run["stages"]]
    descendant = initialise_descendant(shared, counts)
    before = [p.detach().clone() for p in descendant.parameters()]
    run = trained(descendant, Supervised(), data, max_steps=1, batch_size=8)
    assert any(not torch.equal(a, b) for a, b in zip(before, run.model.parameters()))
    assert {"top1", "loss"} <= set(retinue.evaluate(run.model, data.test))


@pytest.mark.parametrize("kind", ["ours", "timm_cnn", "timm_vit", "bare"])
def test_any_network_learns_from_any_teacher(kind: Any) -> None:
    data = retinue.data.open("digits", train_images=16, test_images=20, channels=3, input_size=32, val_fraction=0.0)
    model = tiny(kind)
    before = [p.detach().clone() for p in model.parameters()]
    run = trained(model, SoftDistillation(tiny("timm_vit"), alpha=0.5), data, max_steps=1, batch_size=8)
    assert any(not torch.equal(a, b) for a, b in zip(before, run.model.parameters()))


def test_shared_weights_stay_shared_and_a_killed_run_goes_on(tmp_path: Path) -> None:
    data = digits()

    def objective() -> SoftDistillation:
        return SoftDistillation(cnn(), alpha=0.5)

    options: dict[str, Any] = {"optimizer": "adamw", "epochs": 1, "max_steps": None, "ema": 0.9, "batch_size": 16}
    whole = trained(vit(), objective(), data, run_dir=tmp_path / "a", **options).model
    trained(vit(), objective(), data, run_dir=tmp_path / "b", checkpoint_every=3, keep=9, **options)
    for newer in sorted((tmp_path / "b" / "checkpoints").iterdir())[1:]:
        newer.rename(tmp_path / newer.name)
    shutil.rmtree(tmp_path / "b" / "best")
    again = trained(vit(7), objective(), data, run_dir=tmp_path / "b", checkpoint_every=3, keep=9, **options).model
    assert same(dict(whole.state_dict()), dict(again.state_dict()))
    assert again.blocks[1].mlp.fc1.weight is again.blocks[0].mlp.fc1.weight
    assert not torch.equal(again.blocks[2].mlp.fc1.weight, again.blocks[0].mlp.fc1.weight)


def test_descendants_are_ordinary_saved_and_exported(tmp_path: Path) -> None:
    data = digits()
    for number, model in enumerate((initialise_descendant(vit(), 5), initialise_descendant(share_stages(small_convnext()), 6))):
        run = trained(model, Supervised(), data, run_dir=tmp_path / str(number))
        loaded = retinue.load(tmp_path / str(number))
        assert same(dict(loaded.state_dict()), dict(run.model.state_dict()))
        assert type(loaded).__module__.startswith("timm.models")
    assert export(retinue.load(tmp_path / "0"), tmp_path / "vit.onnx", "onnx").exists()
    x = next(data.test.loader(2).batches()).images
    program = torch.export.export(run.model.eval(), (x,))
    assert_close(program.module()(x), run.model(x), atol=1e-5, rtol=1e-5)


def small_convnext() -> nn.Module:
    torch.manual_seed(0)
    return create_model("timm:test_convnext", num_classes=10, in_chans=1, input_size=8)


# --- the procedure --------------------------------------------------------------------------------------------------------------------


def test_the_procedure_counts_what_it_costs_and_reads_back_what_is_done(tmp_path: Path) -> None:
    data = digits(val_fraction=0.25)
    settings: dict[str, Any] = {
        "teacher": "small_convnet", "teacher_args": {"widths": [8, 8, 16]}, "teacher_fit": {"epochs": 1, **QUICK},
        "auxiliary_fit": {"epochs": 2, **QUICK}, "depths": [2, [1, 2]], "descendant_fit": {"epochs": 1, **QUICK},
        "scratch_fit": {"epochs": 2}, "scratch_lrs": [1e-3, 1e-2], "progress": False, "run_dir": tmp_path,
    }  # fmt: skip
    numbers = train_sws(vit(), data, **settings)
    assert list(numbers) == ["teacher", "auxiliary", "depth 2", "depth 1-2", "cost", "stored"]
    images, macs = len(data.train), {name: numbers[name]["macs"] for name in ("auxiliary", "depth 2", "depth 1-2")}
    teacher = retinue.models.count_macs(retinue.load(tmp_path / "teacher"), 8)
    costs = numbers["cost"]
    assert costs["teacher"] == 3 * teacher * images
    assert costs["auxiliary"] == (3 * macs["auxiliary"] + teacher) * 2 * images
    assert costs["descendants"] == 3 * (macs["depth 2"] + macs["depth 1-2"]) * images
    assert costs["scratch"] == 2 * costs["descendants"]
    assert costs["total"] == costs["teacher"] + costs["auxiliary"] + costs["descendants"]
    # one layer: 16 tokens of 16 units: qkv, projection, MLP, and two products of attention
    layer = 16 * (16 * 48 + 16 * 16 + 2 * 16 * 32) + 2 * 16 * 16 * 16
    assert macs["depth 1-2"] - macs["depth 2"] == layer
    assert macs["auxiliary"] - macs["depth 2"] == 2 * layer
    for name, depth in (("depth 2", 2), ("depth 1-2", 3)):
        loaded: Any = retinue.load(tmp_path / name.replace(" ", "-"))
        assert len(loaded.blocks) == depth == numbers[name]["layers"]
        assert sum(p.numel() for p in loaded.parameters()) == numbers[name]["parameters"]
        assert retinue.evaluate(loaded, data.test)["top1"] == pytest.approx(numbers[name]["tuned"], abs=1e-6)
        assert numbers[name]["scratch_lr"] in (1e-3, 1e-2)
    begun: Any = initialise_descendant(tmp_path / "learngene.safetensors", 2)
    assert retinue.evaluate(begun, data.test)["top1"] == pytest.approx(numbers["depth 2"]["untuned"], abs=1e-6)
    assert numbers["stored"] == {
        "learngene": numbers["auxiliary"]["parameters"],
        "descendants": numbers["depth 2"]["parameters"] + numbers["depth 1-2"]["parameters"],
    }
    assert train_sws(vit(5), data, **settings) == numbers  # read back: other weights would give other numbers
    for gone in ("depth-1-2", "scratch-1-2-1"):  # killed before its last depth was done
        (tmp_path / "stages" / gone).rename(tmp_path / f"gone-{gone}")
        (tmp_path / gone).rename(tmp_path / f"run-{gone}")
    assert train_sws(vit(5), data, **settings) == numbers


def test_images_of_several_devices_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_one(*given: Any, devices: int = 1, batch_size: int = 64, **options: Any) -> Any:
        return retinue.fit(*given, batch_size=devices * batch_size, **options)

    monkeypatch.setattr(sws_stages, "fit", in_one)
    data, quick = digits(), {"epochs": 1, "devices": 2, **QUICK}
    numbers = train_sws(vit(), data, teacher=cnn(), auxiliary_fit=quick, depths=[2], descendant_fit=quick, progress=False)
    assert numbers["cost"]["descendants"] == 3 * numbers["depth 2"]["macs"] * len(data.train)


def test_a_network_of_anyones_goes_through_the_procedure(tmp_path: Path) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.conv(self.norm(x).relu())

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), *(Block() for _ in range(4)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    quick = {"max_steps": 1, **QUICK}
    numbers = train_sws(
        net, digits(), teacher=cnn(), stages=[2, 2], auxiliary_fit=quick, depths=[3], descendant_fit=quick, run_dir=tmp_path, progress=False
    )
    assert (numbers["cost"]["teacher"], numbers["depth 3"]["scratch_lr"], numbers["depth 3"]["layers"]) == (0, 1e-3, 3)
    assert not (tmp_path / "learngene.safetensors").exists()
    assert numbers["auxiliary"]["parameters"] == 40 + 2 * (8 + 148) + 50


# --- what is refused ------------------------------------------------------------------------------------------------------------------


def test_objectives_that_cannot_be() -> None:
    data, teacher = digits(), cnn()
    with pytest.raises(ArgumentError, match=r"`alpha` must lie in \[0, 1\], got 1.5. The paper has 1"):
        SoftDistillation(teacher, alpha=1.5)
    with pytest.raises(ArgumentError, match=r"`tau` must be above 0, got 0"):
        SoftDistillation(teacher, tau=0)
    with pytest.raises(ArgumentError, match=r"the teacher tells 7 classes apart and digits has 10"):
        SoftDistillation(cnn(7)).check(vit(), data)
    teacher.classes = [*"9876543210"]
    with pytest.raises(ArgumentError, match=r"the teacher tells 10 classes apart \('9', '8'.*and digits has 10 \('0', '1'"):
        SoftDistillation(teacher).check(vit(), data)
    with pytest.raises(ArgumentError, match=r"the teacher is the network that learns"):
        SoftDistillation(model := vit()).check(model, data)
    with pytest.raises(ArgumentError, match=r"the teacher cannot take images of 8x8 px and 1 channels .*Open the data at its size"):
        SoftDistillation(tiny("timm_vit")).check(vit(), data)
    with pytest.raises(ArgumentError, match=r"`teacher_args` are options of a teacher given by name"):
        SoftDistillation(cnn(), teacher_args={"pretrained": True})
    two = replace(data, classes=["a", "b"])
    with pytest.raises(ArgumentError, match=r"the model has 10 outputs and digits has 2 classes"):
        SoftDistillation(cnn(2)).check(vit(), two)


def test_procedures_that_cannot_be() -> None:
    data = digits()
    with pytest.raises(ArgumentError, match=r'no setting of `auxiliary_fit` is called "epoch"\. Did you mean epochs'):
        train_sws(vit(), data, teacher=cnn(), auxiliary_fit={"epoch": 1})
    with pytest.raises(ArgumentError, match="`depths` and `scratch_lrs` must name one at least"):
        train_sws(vit(), data, teacher=cnn(), depths=[])
    with pytest.raises(ArgumentError, match=r"among several `scratch_lrs` validation images choose, and there are none"):
        train_sws(vit(), data, teacher=cnn(), scratch_lrs=[1e-3, 1e-2])
    with pytest.raises(ArgumentError, match=r"1 layers cannot hold one layer of each of the 2 stages"):
        train_sws(vit(), data, teacher=cnn(), depths=[4, 1])
    with pytest.raises(ArgumentError, match=r"StageSharedViT shares weights already. Leave out `stages`"):
        fit_learngene(vit(), cnn(), data, stages=[2, 2])
    with pytest.raises(ArgumentError, match="has no two successive residual blocks of the same shape"):
        fit_learngene(cnn(), vit(), data)
    with pytest.raises(ArgumentError, match=r"train_sws: there are no test and no validation images to measure on\. Open the data with"):
        train_sws(vit(), retinue.data.open("digits", val_fraction=0, test_fraction=0), teacher=cnn())
    with pytest.raises(ArgumentError, match=r"`tau` must be above 0, got 0"):  # and no teacher was trained before that was said
        train_sws(vit(), data, teacher=cnn(), teacher_fit={"optimizer": "none such"}, tau=0.0)


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_recipes_name_settings_that_there_are(scale: str) -> None:
    recipe = recipes.load("sws", scale)
    with torch.device("meta"):
        size = recipe.data.get("input_size", 8)
        model: Any = create_model(**{"num_classes": 10, "in_chans": 3 if scale == "paper" else 1, "input_size": size, **recipe.model})
    assert len(model.stages) == (5 if scale == "paper" else 4)
    quick = {name: value for name, value in recipe.procedure.items() if name != "name"}  # type: ignore[union-attr]
    retinue.views.parse(quick.pop("views", "flip"))
    with pytest.raises(ArgumentError, match="must name one at least"):
        train_sws(vit(), digits(val_fraction=0.1), **{**quick, "teacher": cnn(), "depths": []})
