"""What one training step minimises: the defaults that a plain objective gets."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import images
from torch import Tensor, nn

import retinue
from retinue.data import Batch
from retinue.engine import Objective
from retinue.models import tiny


class Plain(Objective):
    """Cross-entropy plus a number to log; owns a head that learns and a teacher that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(10, 10)
        self.teacher = nn.Linear(10, 10).requires_grad_(False)
        self.drop = nn.Dropout(0.9)
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        self.modes.append((model.training, self.drop.training))
        logits = self.drop(self.head(model(batch.images)))
        return {"loss": F.cross_entropy(logits, batch.labels), "count": torch.tensor(float(len(batch.images)))}


def model(**options: Any) -> Any:
    return tiny("ours", in_chans=1, input_size=8, **options)


def test_everything_that_learns_of_model_and_objective_is_one_player() -> None:
    objective, net = Plain(), model()
    net.stem.requires_grad_(False)
    found = objective.players(net)
    assert list(found) == ["model"]
    expected = [*net.stages.parameters(), *net.head.parameters(), *objective.head.parameters()]
    assert list(map(id, found["model"])) == list(map(id, expected))
    objective.shared = net.head  # type: ignore[assignment]
    assert list(map(id, objective.players(net)["model"])) == list(map(id, expected)), "what both hold learns once"


def test_a_plain_objective_yields_once() -> None:
    objective, net = Plain(), model()
    batch = Batch(images(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]), torch.arange(4))
    torch.manual_seed(0)
    found = list(objective.losses(net, batch, step=0))
    torch.manual_seed(0)
    again = objective(net, batch)
    assert [player for player, _ in found] == ["model"]
    assert torch.equal(found[0][1]["loss"], again["loss"])
    assert objective.after_step(net, 1) is None
    assert objective.check(net, retinue.data.open("digits", train_images=20, test_images=20)) is None
    assert (objective.views, objective.monitor, objective.mode) == (None, "loss", "min")


@pytest.mark.parametrize("batch_size", [7, 20, 64])
def test_an_evaluation_is_the_mean_over_all_images_however_they_are_batched(batch_size: int) -> None:
    split = retinue.data.open("digits", train_images=40, test_images=30).test
    objective, net = Plain(), model().train()
    found = objective.evaluate(net, split.loader(batch_size))
    whole = next(iter(split.loader(len(split)).batches(epoch=0)))
    logits = objective.head(net.eval()(whole.images))
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, whole.labels).item(), rel=1e-5)
    sizes = [min(batch_size, len(split) - start) for start in range(0, len(split), batch_size)]
    assert found["count"] == pytest.approx(sum(size**2 for size in sizes) / len(split)), "each batch counts by its size"
    assert set(objective.modes) == {(False, False)}


def test_an_evaluation_leaves_modes_statistics_and_gradients_alone() -> None:
    split = retinue.data.open("digits", train_images=40, test_images=30).test
    objective, net = Plain(), model().train()
    net.stem.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    objective.evaluate(net, split.loader(16))
    assert (net.training, net.stem.training, net.stages.training, objective.drop.training) == (True, False, True, True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_an_objective_without_a_loss_says_what_it_lacks() -> None:
    class Empty(Objective):
        pass

    batch = Batch(images(1, 1, 8, 8), torch.tensor([0]), torch.arange(1))
    with pytest.raises(TypeError, match=r"^Empty defines neither forward\(model, batch\) nor losses\(model, batch, step\)\.$"):
        list(Empty().losses(model(), batch, 0))


def test_what_an_objective_owns_is_in_its_state() -> None:
    assert {name.split(".")[0] for name in Plain().state_dict()} == {"head", "teacher"}
