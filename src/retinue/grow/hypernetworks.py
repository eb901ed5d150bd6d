"""Hypernetworks: train a network that generates another's weights, for tasks, for images, or with uncertainty (arXiv 2306.06955).

`HyperNetwork` puts one around any network, `HyperTraining` trains it, and `OutputRegulariser` keeps what it generates for earlier tasks.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from retinue.data import Batch, Data, Loader
from retinue.engine import Supervised, checkpoint, evaluating, judge
from retinue.engine.run import facts
from retinue.errors import ArgumentError, ShapeError
from retinue.models.hypernetwork import HyperNetwork
from retinue.models.hypernetwork_by_name import around, hypernetwork

__all__ = [
    "HyperNetwork",
    "HyperTraining",
    "OutputRegulariser",
    "around",
    "diversity_loss",
    "hypernetwork",
    "output_units",
    "save_network",
]
log = logging.getLogger(__name__)
NEAR = 1e-8  # added to mean squared distances before their logarithm


class OutputRegulariser(nn.Module):
    """Hold the weights that are generated for earlier tasks where they were (von Oswald et al. 2020, arXiv 1906.00695, equation 2).

    The loss is beta times the mean over earlier tasks j of the squared distance of H(e_j) to what it was when the present task began,
    summed over all weights. No image of earlier tasks is needed.

    Args:
        hnet: conditioned by a task alone.
        beta: weight of the loss.
        max_tasks: earlier tasks, drawn at each step, over which the mean is taken; None takes all.
        freeze: leave the embeddings of earlier tasks as they are, so that the hypernetwork alone moves.

    Raises:
        ArgumentError: if the condition is another, or a number cannot be.

    >>> regulariser = OutputRegulariser(HyperNetwork(nn.Linear(3, 2), num_tasks=2), beta=0.01)
    >>> regulariser.begin_task(1)
    >>> float(regulariser.loss())
    0.0
    """

    def __init__(self, hnet: HyperNetwork, beta: float, max_tasks: int | None = None, freeze: bool = False) -> None:
        super().__init__()
        if hnet.condition.parts != ["task"]:
            raise ArgumentError(
                f'OutputRegulariser: earlier tasks are kept by their embeddings, so `hnet` needs condition="task", got '
                f'"{"+".join(hnet.condition.parts)}".'
            )
        if not beta >= 0:
            raise ArgumentError(f"OutputRegulariser: `beta` must be 0 or more, got {beta}.")
        if max_tasks is not None and max_tasks < 1:
            raise ArgumentError(f"OutputRegulariser: `max_tasks` must be at least 1, got {max_tasks}. None takes all earlier tasks.")
        object.__setattr__(self, "hnet", hnet)  # watched, not owned: its tensors belong to the model's checkpoint
        self.hnet: HyperNetwork
        self.beta, self.max_tasks, self.freeze = beta, max_tasks, freeze
        self.targets: Tensor
        self.importance: Tensor
        self.register_buffer("targets", torch.empty(0, hnet.num_generated))
        self.register_buffer("importance", torch.ones(1, 1))

    @torch.no_grad()
    def begin_task(self, task: int, importance: Float[Tensor, "*tasks numbers"] | None = None) -> None:
        """Remember what is generated now for the tasks before this one, in evaluation mode.

        Args:
            task: the number of the present task, which is the number of earlier ones.
            importance: weight of each squared difference, for all earlier tasks or for each; see `output_units`.

        Raises:
            ArgumentError: if there is no such task.
            ShapeError: if the importance does not fit the generated numbers.
        """
        self.hnet.condition.check_task(task)
        if importance is not None and importance.shape not in ((self.hnet.num_generated,), (task, self.hnet.num_generated)):
            raise ShapeError(
                f"OutputRegulariser: `importance` must be of shape ({self.hnet.num_generated},) or ({task}, {self.hnet.num_generated}), "
                f"got {tuple(importance.shape)}."
            )
        with evaluating(self.hnet):
            self.targets = _weights_of(self.hnet, list(range(task))) if task else self.targets[:0]
        self.importance = torch.ones(1, 1) if importance is None else importance.expand(task, -1).clone()
        self.to(self.hnet.codes.device)
        for number, embedding in enumerate(self.hnet.condition.tasks):
            embedding.requires_grad_(number >= task or not self.freeze)

    def loss(self, change: dict[str, Tensor] | None = None) -> Float[Tensor, ""]:
        """Compute the loss; 0 for the first task.

        Args:
            change: look-ahead: what the next update is expected to add to the hypernetwork's parameters, by their names in `hnet`; the loss
                is then that of the hypernetwork after it (the paper's equation 2 in full).
        """
        before = len(self.targets)
        if not before:
            return self.hnet.codes.new_zeros(())
        tasks = list(range(before))
        if self.max_tasks is not None and self.max_tasks < before:
            tasks = torch.randperm(before)[: self.max_tasks].sort().values.tolist()
        moved = _Weights(self.hnet)
        ahead = {} if change is None else {f"hnet.{name}": p + change[name] for name, p in self.hnet.named_parameters() if name in change}
        now = functional_call(moved, ahead, (tasks,))
        importance = self.importance if len(self.importance) == 1 else self.importance[tasks]
        return self.beta * (importance * (now - self.targets[tasks]).square()).sum(1).mean()


class HyperTraining(Supervised):
    """Cross-entropy of a network with generated weights; any other network gets a hypernetwork around it.

    Args:
        options: of `HyperNetwork` around a network that is none, such as {"condition": "noise", "chunk_size": 256}.
        task: which task the images belong to; None where there is one.
        beta: weight of `OutputRegulariser` for the tasks before; 0 leaves it out.
        max_tasks: as there.
        freeze: as there.
        look_ahead: learning rate of the plain gradient step after which the regulariser looks; 0 looks where the hypernetwork is.
        samples: weight sets drawn at each step, for "noise".
        diversity: weight of `diversity_loss` among them; without it a hypernetwork learns to ignore the noise.
        label_smoothing: as in `retinue.train.Supervised`.

    Raises:
        ArgumentError: if a number cannot be.

    >>> objective = HyperTraining({"emit": "chunk", "chunk_size": 512})
    """

    def __init__(
        self,
        options: dict[str, Any] | None = None,
        task: int | None = None,
        beta: float = 0.0,
        max_tasks: int | None = None,
        freeze: bool = False,
        look_ahead: float = 0.0,
        samples: int = 1,
        diversity: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(label_smoothing)
        for name, value in (("beta", beta), ("look_ahead", look_ahead), ("diversity", diversity)):
            if not value >= 0:
                raise ArgumentError(f"HyperTraining: `{name}` must be 0 or more, got {value}.")
        if samples < 1:
            raise ArgumentError(f"HyperTraining: `samples` must be at least 1, got {samples}. It counts the networks drawn at each step.")
        if diversity and samples < 2:
            raise ArgumentError(f"HyperTraining: `diversity` is among a step's networks, so `samples` must be 2 or more, got {samples}.")
        self.options, self.task, self.beta, self.max_tasks, self.freeze = dict(options or {}), task, beta, max_tasks, freeze
        self.look_ahead, self.samples, self.diversity = look_ahead, samples, diversity
        self.regulariser: OutputRegulariser | None = None

    def prepare(self, model: nn.Module, data: Data) -> nn.Module:
        """Return the network with generated weights: the model, or one built around it; earlier tasks' weights are remembered."""
        if not isinstance(model, HyperNetwork):
            model = around(model, input_size=data.preprocessing.input_size, **self.options)
        if self.beta and self.task:
            self.regulariser = OutputRegulariser(model, self.beta, self.max_tasks, self.freeze)
            self.regulariser.begin_task(self.task)
        return model

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse a task that is none, and noise or diversity where there is nothing to draw; say how large the first weights are."""
        network = _network(model)
        parts = network.condition.parts
        if "task" in parts:
            network.condition.check_task(self.task)
        if (self.samples > 1 or self.diversity) and ("noise" not in parts or "data" in parts):
            raise ArgumentError(
                f'HyperTraining: `samples` and `diversity` are of networks drawn by noise, and the condition is "{"+".join(parts)}". '
                "Leave them out."
            )
        if network.num_classes is not None:
            super().check(model, data)
        ratios = network.spread_ratios() or {"": float("nan")}
        log.info(
            "HyperTraining: %d parameters generate %d (ratio %.3g); generated spread / the target's own: %.3g to %.3g.",
            network.num_hyper, network.num_generated, network.compression, min(ratios.values()), max(ratios.values()),
        )  # fmt: skip

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss, the share of right answers, and what keeps earlier tasks or tells drawn networks apart."""
        network = _network(model)
        drawn = network.training and "noise" in network.condition.parts and "data" not in network.condition.parts
        numbers: dict[str, Tensor] = {}
        if drawn:
            noise = network.condition.draw(self.samples, batch.images.device)
            theta = network.weights(network.condition(self.task, None, noise))
            each = [self._judged(network.with_weights(batch.images, one, self.task), batch) for one in theta]
            loss, logits = torch.stack([one for one, _ in each]).mean(), each[0][1]
            if self.diversity:
                numbers["diversity"] = diversity_loss(theta)
                loss = loss + self.diversity * numbers["diversity"]
        else:
            loss, logits = self._judged(network(batch.images, task=self.task), batch)
        if self.regulariser is not None and network.training:
            numbers["kept"] = self.regulariser.loss(self._ahead(network, loss))
            loss = loss + numbers["kept"]
        return {"loss": loss, "top1": (logits.argmax(-1) == batch.labels).float().mean(), **numbers}

    def _judged(self, out: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss and the logits, also of a target with an auxiliary head."""
        logits, *auxiliary = out if isinstance(out, tuple) else (out,)
        loss = self._loss(logits, batch)
        return torch.stack([loss, *(self.aux_weight * self._loss(one, batch) for one in auxiliary)]).sum(), logits

    def _ahead(self, network: HyperNetwork, loss: Tensor) -> dict[str, Tensor] | None:
        """Return the gradient step of the loss alone, as a constant."""
        if not self.look_ahead:
            return None
        named = {name: p for name, p in network.named_parameters() if p.requires_grad}
        slopes = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
        return {name: -self.look_ahead * slope for name, slope in zip(named, slopes) if slope is not None}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, loader: Loader) -> dict[str, float]:
        """Compute top1, top5, ece and the plain cross-entropy for the task, over a held-out split."""
        with evaluating(model):
            pairs = [(model(batch.images, task=self.task).float(), batch.labels) for batch in loader.batches()]
        return judge(torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs]))


def diversity_loss(theta: Float[Tensor, "codes numbers"]) -> Float[Tensor, ""]:
    """Compute minus the mean over pairs of log(mean squared difference): the nearer generated networks are, the larger.

    Args:
        theta: two weight sets or more.

    Raises:
        ShapeError: if there are fewer than two.

    >>> round(float(diversity_loss(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))), 4)
    0.0
    """
    if len(theta) < 2:
        raise ShapeError(f"diversity_loss: there must be two weight sets at least, got {len(theta)}.")
    first, second = torch.triu_indices(len(theta), len(theta), 1)
    return -((theta[first] - theta[second]).square().mean(1) + NEAR).log().mean()


def output_units(hnet: HyperNetwork, units: Sequence[int]) -> Float[Tensor, " numbers"]:
    """Mark the generated numbers that a task uses: all but the classifier's rows of other outputs, for `begin_task(importance=...)`.

    Args:
        hnet: its target has one classifier for all tasks.
        units: the outputs that the task uses.

    Raises:
        ArgumentError: if there is no such output.
    """
    classifier = hnet.get_classifier()
    name = next((name for name, layer in hnet.target.named_modules() if layer is classifier), None)
    if not units or not all(0 <= unit < hnet.num_classes for unit in units):
        raise ArgumentError(f"output_units: `units` must lie between 0 and {hnet.num_classes - 1}, and be one at least, got {list(units)}.")
    marks = []
    for slot in hnet.slots:
        mark = torch.ones(slot.shape)
        if slot.name.rpartition(".")[0] == name:
            mark = torch.zeros(slot.shape)
            mark[list(units)] = 1
        marks.append(mark.flatten())
    return torch.cat(marks).to(hnet.codes.device)


def save_network(model: nn.Module, data: Data, folder: str | Path) -> None:
    """Write a network that was not trained by `fit`, such as a materialised one, so that `retinue.load` reads it.

    Args:
        model: one that `create_model` can build, or your own, which `load` must then be given.
        data: what it is for: classes and preprocessing are written with it.
        folder: is made.

    Raises:
        CheckpointError: if it cannot be written.
    """
    checkpoint.save(Path(folder), model.state_dict(), facts(model, data, 0, {}))


class _Weights(nn.Module):
    """What a hypernetwork generates for tasks, as a module whose parameters `functional_call` can move."""

    def __init__(self, hnet: HyperNetwork) -> None:
        super().__init__()
        self.hnet = hnet

    def forward(self, tasks: list[int]) -> Tensor:
        return _weights_of(self.hnet, tasks)


def _weights_of(hnet: HyperNetwork, tasks: list[int]) -> Tensor:
    return hnet.weights(torch.cat([hnet.condition(task, None, None) for task in tasks]))


def _network(model: nn.Module) -> HyperNetwork:
    if not isinstance(model, HyperNetwork):
        raise ArgumentError(
            f"HyperTraining: the model must be a HyperNetwork, got {type(model).__name__}. retinue.fit builds one around any network; by "
            "hand: HyperTraining().prepare(model, data)."
        )
    return model
