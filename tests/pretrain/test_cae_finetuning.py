"""cae: in fine-tuning, each layer has its own learning rate."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support import same
from torch import nn

import retinue
from retinue.engine import checkpoint
from retinue.errors import ArgumentError
from retinue.models import tiny
from retinue.models.cae_vit import for_fine_tuning
from retinue.pretrain.cae_finetuning import FACTOR, AdamWByLayer, FineTune, mark_layers


def encoder(**changes: Any) -> Any:
    options = {"num_classes": 10, "input_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, **changes}
    return retinue.create_model("cae_vit", **options)


def digits() -> retinue.data.Data:
    return retinue.data.open("digits", input_size=16, channels=3, train_images=120, test_images=20)


def test_factors_rise_from_the_patches_to_the_head() -> None:
    model = encoder(fc_norm=True)
    mark_layers(model, 0.5)
    found = {name: getattr(parameter, FACTOR) for name, parameter in model.named_parameters()}
    assert found["patch_embed.proj.weight"] == found["cls_token"] == 0.125
    assert {found[name] for name in found if name.startswith("blocks.0.")} == {0.25}
    assert {found[name] for name in found if name.startswith("blocks.1.")} == {0.5}
    assert found["head.weight"] == found["fc_norm.weight"] == 1.0


def test_a_step_is_adamws_with_the_learning_rate_times_the_factor() -> None:
    weights = [nn.Parameter(torch.tensor([2.0])) for _ in range(3)]
    setattr(weights[0], FACTOR, 0.25)
    setattr(weights[1], FACTOR, 0.25)
    optimizer = AdamWByLayer(weights, lr=0.1, weight_decay=0.5)
    plain = [nn.Parameter(torch.tensor([2.0])) for _ in range(3)]
    peers = [torch.optim.AdamW([one], lr=lr, weight_decay=0.5) for one, lr in zip(plain, (0.025, 0.025, 0.1))]
    for step in range(3):
        for one in (*weights, *plain):
            one.grad = torch.tensor([1.0 + step])
        optimizer.step()
        for peer in peers:
            peer.step()
    assert [float(one.detach()) for one in weights] == pytest.approx([float(one.detach()) for one in plain], abs=1e-7)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 2]


def test_without_factors_it_is_adamw() -> None:
    results = []
    for name, objective in (("adamw", retinue.train.Supervised()), ("layeradamw", FineTune(1.0))):
        torch.manual_seed(0)
        run = retinue.fit(encoder(), objective, digits(), max_steps=4, batch_size=8, optimizer=name, lr=0.01, progress=False)
        results.append(run.model.state_dict())
    assert all(torch.allclose(tensor, results[1][name], atol=1e-6) for name, tensor in results[0].items())


def test_the_first_layers_move_less_and_the_schedule_holds_for_all() -> None:
    torch.manual_seed(0)
    model = for_fine_tuning(encoder(), 10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run = retinue.fit(
        model, FineTune(0.1), digits(), max_steps=1, batch_size=8, optimizer="layeradamw", lr=1e-3, weight_decay=0.0, schedule="constant",
        log_every=1, progress=False,
    )  # fmt: skip
    moved = {name: float((tensor - before[name]).abs().max()) for name, tensor in run.model.state_dict().items()}
    for name, factor in (
        ("patch_embed.proj.weight", 1e-3),
        ("blocks.0.mlp.fc1.weight", 1e-2),
        ("blocks.1.mlp.fc1.weight", 0.1),
        ("head.bias", 1),
    ):
        assert moved[name] == pytest.approx(1e-3 * factor, rel=0.02)  # Adam's first step is the learning rate
    assert run.history[0]["lr"] == 1e-3


def test_resumed_is_uninterrupted(tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    def train(folder: str, stop: int = -1) -> None:
        torch.manual_seed(0)
        objective = FineTune(0.5)

        def after_step(model: nn.Module, step: int) -> None:
            if step == stop:
                raise Stop

        objective.after_step = after_step  # type: ignore[method-assign]
        settings: dict[str, Any] = {"max_steps": 4, "batch_size": 8, "checkpoint_every": 2, "schedule": "onecycle", "progress": False}
        retinue.fit(encoder(), objective, digits(), optimizer="layeradamw", run_dir=tmp_path / folder, **settings)

    train("whole")
    with pytest.raises(Stop):
        train("stopped", 3)
    train("stopped")
    whole, stopped = (checkpoint.read(tmp_path / name / "checkpoints" / "step-000000004") for name in ("whole", "stopped"))
    assert same(whole.tensors, stopped.tensors)


@pytest.mark.parametrize("decay", [0.0, 1.1])
def test_a_decay_that_is_none_is_refused(decay: float) -> None:
    with pytest.raises(ArgumentError, match=rf"`layer_decay` must lie in \(0, 1\], got {decay}\. The paper has 0\.65"):
        FineTune(decay)


def test_a_network_that_does_not_name_its_layers_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"Bare does not say which layers it has \(it lacks timm's `group_matcher`\)"):
        mark_layers(tiny("bare"), 0.5)
    for kind in ("ours", "timm_cnn", "timm_vit"):
        mark_layers(tiny(kind), 0.5)  # type: ignore[arg-type]
