"""The loop: it is a plain loop with everything on, it learns, and it refuses by name what cannot be."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine.cases import Duel, Noisy, digits, noisy, settings, train
from torch import Tensor, nn

import retinue
from retinue.data import Batch
from retinue.data.views import parse
from retinue.engine import Objective
from retinue.engine.logs import read_metrics
from retinue.engine.modes import train_mode
from retinue.engine.seeds import own_randomness, seed_all
from retinue.errors import ArgumentError, CheckpointError, NonFiniteError
from retinue.models import adapt
from retinue.train import Supervised


def test_it_is_a_plain_loop_bit_for_bit() -> None:
    data = digits()
    run = retinue.fit(
        noisy(), Supervised(), data, **settings(ema=None, views=None, schedule="constant", epochs=2, optimizer="sgd", patience=None)
    )
    model = noisy()
    optimizer = torch.optim.SGD([{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.05},
                                 {"params": [p for p in model.parameters() if p.ndim <= 1]}],
                                lr=3e-3, momentum=0.9, nesterov=True)  # fmt: skip
    loader = data.train.loader(16, shuffle=True, seed=5)
    best, kept = -1.0, {}
    with own_randomness():
        for epoch in range(2):
            model.train()
            for index, batch in enumerate(loader.batches(epoch)):
                seed_all(5, epoch * len(loader) + index, 0)
                optimizer.zero_grad()
                F.cross_entropy(model(batch.images), batch.labels).backward()
                optimizer.step()
            top1 = retinue.evaluate(model, data.val)["top1"]
            if top1 > best:
                best, kept = top1, {name: value.clone() for name, value in model.state_dict().items()}
    for name, value in run.model.module.state_dict().items():
        assert torch.equal(value, kept[name]), name


def test_it_learns_and_gives_back_the_best_model(tmp_path: Path) -> None:
    model = retinue.create_model("small_convnet", widths=[16, 16, 32, 32], num_classes=10, in_chans=1, input_size=8)
    data = retinue.data.open("digits")
    run = retinue.fit(model, Supervised(), data, epochs=3, lr=5e-3, run_dir=tmp_path, progress=False, loggers=("csv", "tensorboard"))
    assert retinue.evaluate(run.model, data.test)["top1"] > 0.9
    best = max((row for row in run.history if "val/top1" in row), key=lambda row: row["val/top1"])
    assert run.metrics["top1"] == best["val/top1"]
    assert run.best_step == best["step"]
    assert retinue.evaluate(run.model, data.val)["top1"] == pytest.approx(run.metrics["top1"], abs=1e-6)
    assert not run.model.training
    loaded = retinue.load(tmp_path)
    assert loaded.classes == [str(i) for i in range(10)]
    assert loaded.preprocessing == data.preprocessing
    images = data.test.images([0, 1, 2])
    x = data.preprocessing.normalize(images)
    assert torch.equal(loaded(x), run.model(x))
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_batch_in_parts_is_the_whole_batch() -> None:
    class Plain(Noisy):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop = nn.Identity(), nn.Identity()

    def weights(accumulate: int) -> Tensor:
        torch.manual_seed(0)
        run = retinue.fit(Plain(), Supervised(), digits(), **settings(epochs=1, accumulate=accumulate, optimizer="sgd", lr=0.1, ema=None))
        return torch.cat([p.flatten() for p in run.model.parameters()])

    assert torch.allclose(weights(1), weights(3), rtol=0, atol=1e-6)  # float32 sums in another order


def test_each_player_moves_its_own_parameters_only() -> None:
    moved: list[tuple[str, bool, bool]] = []

    class Watched(Duel):
        def losses(self, model: nn.Module, batch: Batch, step: int) -> Any:
            def snapshot() -> tuple[list[Tensor], list[Tensor]]:
                return [p.detach().clone() for p in model.parameters()], [p.detach().clone() for p in self.critic.parameters()]

            before = snapshot()
            for player, numbers in super().losses(model, batch, step):
                yield player, numbers
                after = snapshot()
                moved.append((player, *(any(not torch.equal(a, b) for a, b in zip(x, y)) for x, y in zip(before, after))))
                before = after

    generator = nn.Sequential(nn.Flatten(), nn.Linear(4, 64))
    players = {"critic": {"optimizer": "sgd", "lr": 0.1}}
    run = retinue.fit(adapt(generator, input_size=2), Watched(), digits(), **settings(epochs=1, players=players, ema=None))
    assert set(moved) == {("critic", False, True), ("generator", True, False)}
    assert {"train/critic/loss", "train/generator/loss", "lr/critic", "lr/generator"} <= set().union(*run.history)
    assert run.history[0]["lr/critic"] != run.history[0]["lr/generator"]


def test_players_are_checked_by_name() -> None:
    with pytest.raises(ArgumentError, match=r'no player of Supervised is called "critik"'):
        train(players={"critik": {"lr": 1}})
    with pytest.raises(ArgumentError, match=r'no setting of the player model is called "lrr"\. Did you mean lr\?'):
        train(players={"model": {"lrr": 1}})

    class Wrong(Supervised):
        def losses(self, model: nn.Module, batch: Batch, step: int) -> Any:
            yield "nobody", self(model, batch)

    with pytest.raises(ArgumentError, match=r'no player of Wrong is called "nobody"'):
        train(objective=Wrong())


def test_a_frozen_backbone_changes_in_nothing() -> None:
    model = adapt(noisy())
    model.requires_grad_(False)
    model.get_classifier().requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = retinue.fit(model, Supervised(), digits(), **settings(ema=None))
    changed = {name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"module.classify.weight", "module.classify.bias"}


def test_nothing_that_learns_is_said() -> None:
    model = noisy()
    model.requires_grad_(False)
    with pytest.raises(ArgumentError, match=r'the player "model" has no parameters that learn\. Is everything frozen\?'):
        retinue.fit(model, Supervised(), digits(), **settings())


def test_the_callers_randomness_and_modes_stay_his_own() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    train(epochs=1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(3), expected)


def test_early_stopping_counts_evaluations_without_a_better_one() -> None:
    class Falling(Supervised):
        def evaluate(self, model: nn.Module, loader: Any) -> dict[str, float]:
            self.calls = getattr(self, "calls", 0) + 1
            return {"top1": [0.5, 0.6, 0.6, 0.2, 0.9][self.calls - 1]}

    run = train(objective=Falling(), patience=2, epochs=5)
    assert run.steps == 4 * 10  # the best is the second epoch's; the third and fourth are no better
    assert run.metrics == {"top1": 0.6}


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_half_precision_learns_too(precision: str) -> None:
    run = train(precision=precision, epochs=2, channels_last=True)
    assert math.isfinite(run.history[-1]["val/loss"])
    assert next(run.model.parameters()).dtype == torch.float32


def test_a_loss_that_is_not_finite_stops_before_the_update_and_keeps_the_batch(tmp_path: Path) -> None:
    class Exploding(Supervised):
        def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
            numbers = super().forward(model, batch)
            self.count = getattr(self, "count", 0) + 1
            return {**numbers, "loss": numbers["loss"] * (math.nan if self.count == 5 else 1)}

    model = noisy()
    with pytest.raises(
        NonFiniteError, match=r"the loss became nan at step 4, before its update\. The batch \(training images .*saved in .*nonfinite"
    ) as told:
        retinue.fit(model, Exploding(), digits(), run_dir=tmp_path, **settings())
    assert all(torch.isfinite(p).all() for p in model.parameters())
    saved = torch.load(next(tmp_path.glob("nonfinite-*.pt")), weights_only=True)
    assert saved["images"].shape == (16, 1, 8, 8)
    assert ", ".join(map(str, saved["indices"].tolist()[:8])) in str(told.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, r"`batch_size` must be a positive whole number, got 0"),
        ({"epochs": -1}, r"`epochs` must be a positive number, got -1"),
        ({"lr": -1}, r"`lr` must be 0 or more, got -1"),
        ({"ema": 1.0}, r"`ema` must lie strictly between 0 and 1, got 1\.0\. It is the decay"),
        ({"precision": "16"}, r'no precision is called "16"\. There is 16-mixed'),
        ({"precision": "16-mixed"}, r'`precision` "16-mixed" needs a GPU, and there is none'),
        ({"accumulate": 17}, r"`accumulate` 17 must not exceed `batch_size` 16"),
        ({"optimizer": "adamm"}, r'no optimizer is called "adamm"\. Did you mean'),
        ({"optimizer_args": {"bettas": 1}}, r'the optimizer "adamw" does not take'),
        ({"schedule": "cosinus"}, r'no schedule is called "cosinus"\. Did you mean cosine'),
        ({"loggers": ("cvs",)}, r'no logger is called "cvs"\. Did you mean csv'),
        ({"views": "flop"}, r'no view is called "flop"\. Did you mean'),
        ({"monitor": "topp1"}, r'no number of the evaluation is called "topp1"\. Did you mean top1'),
        ({"devices": 2, "accelerator": "cuda"}, r"accelerator='cuda', devices=2 cannot be had here"),
    ],
)
def test_wrong_arguments_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        train(**changes)


def test_the_wrong_kind_of_thing_is_refused() -> None:
    with pytest.raises(
        ArgumentError, match=r"`objective` must be an Objective such as retinue\.train\.Supervised\(\), got the class Supervised"
    ):
        retinue.fit(noisy(), Supervised, digits())  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"`data` must come from retinue\.data\.open, got a str"):
        retinue.fit(noisy(), Supervised(), "digits")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"the model has 7 outputs and digits has 10 classes\. Build it with num_classes=10"):
        retinue.fit(Noisy(classes=7), Supervised(), digits(), **settings())
    one = retinue.data.from_arrays(digits().train.images()[:, 0].numpy(), [0] * 160)
    with pytest.raises(ArgumentError, match=r"one class \(0\), so there is nothing to tell apart"):
        retinue.fit(Noisy(classes=1), Supervised(), one, **settings())
    with pytest.raises(ArgumentError, match=r"`patience` needs validation images"):
        train(data=digits(val_fraction=0.0), patience=1)
    with pytest.raises(TypeError, match=r"Empty defines neither forward"):
        train(objective=type("Empty", (Objective,), {})())


def test_another_run_in_the_folder_is_not_overwritten(tmp_path: Path) -> None:
    train(tmp_path, epochs=1)
    with pytest.raises(
        ArgumentError, match=r"holds another run: lr was 0\.003 and now is 0\.1\. Choose another `run_dir`, or delete this one"
    ):
        train(tmp_path, epochs=1, lr=0.1)


def test_a_folder_that_cannot_be_written_is_said_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(CheckpointError, match=r"the run folder .* cannot be written: Not a directory\. Choose another `run_dir`"):
        train(tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "kept"


def test_the_log_is_what_was_logged(tmp_path: Path) -> None:
    run = train(tmp_path, epochs=1)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert next(row for row in rows if row[2] == "val/top1")[3] == run.metrics["top1"]
    assert {row[0] for row in rows} == {4, 8, 10}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["fit"]["views"] == "Compose([Crop(1), Flip()])" or "crop" in config["fit"]["views"].lower()
    assert config["data"]["fingerprint"] == digits().train.fingerprint


def test_modes_inside_training_follow_what_is_frozen() -> None:
    model = noisy()
    model.norm.requires_grad_(False)
    train_mode(model)
    assert model.training
    assert model.drop.training
    assert not model.norm.training


def test_an_objective_of_several_views_is_evaluated_on_several() -> None:
    class Agreement(Objective):
        views = (parse("crop(1)"), parse("flip"))

        def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
            a, b = (model(view) for view in batch.views)
            return {"loss": (a - b).square().mean() + model(batch.images).square().mean()}

    run = train(objective=Agreement(), views=None, epochs=1)
    assert math.isfinite(run.metrics["loss"])


def test_a_model_that_takes_no_images_is_left_as_it_is() -> None:
    class Sampler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    class Spread(Objective):
        def prepare(self, model: nn.Module, data: Any) -> nn.Module:
            return model

        def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
            return {"loss": (model.scale - batch.images.std()).square()}

    model = Sampler()
    assert retinue.fit(model, Spread(), digits(), **settings(epochs=1, ema=None)).model is model


def a_view(images: Tensor, keys: Tensor) -> Tensor:
    return images


def test_a_plain_function_as_view_is_recorded_by_its_name(tmp_path: Path) -> None:
    train(tmp_path, epochs=1, views=a_view)
    assert json.loads((tmp_path / "config.json").read_text())["fit"]["views"] == f"{__name__}.a_view"
