"""N2N's two policies: which layers to remove, and how far to shrink those that stay (sections 3.1 and 3.2)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from retinue.engine import checkpoint
from retinue.errors import ArgumentError, CheckpointError, ShapeError

TABLE = (0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FIELDS = 5  # decisions for each layer in shrinking


class RemovalPolicy(nn.Module):
    """A bidirectional LSTM over all layers that decides for each at once whether it stays (1) or goes (0).

    Args:
        input: numbers that describe a layer: 5, or 7 with its place in a residual block.
        hidden: width of the LSTM.

    >>> policy = RemovalPolicy()
    >>> sum(p.numel() for p in policy.lstm.parameters()), sum(p.numel() for p in policy.head.parameters())
    (30960, 122)
    """

    kind = "removal"

    def __init__(self, input: int = 5, hidden: int = 30) -> None:
        super().__init__()
        _positive("RemovalPolicy", input=input, hidden=hidden)
        self.input, self.hidden = input, hidden
        self.lstm = nn.LSTM(input, hidden, num_layers=2, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 2)

    def forward(
        self, layers: Float[Tensor, "layers numbers"], actions: Int[Tensor, " layers"] | None = None
    ) -> tuple[Int[Tensor, " layers"], Float[Tensor, ""]]:
        """Draw an action for each layer, or take those given; return them and the logarithm of their joint probability.

        Args:
            layers: what describes them.
            actions: of a rollout whose probability is asked for.

        Raises:
            ShapeError: if a layer is described by another number of numbers, or there is not one action for each.
        """
        _check("RemovalPolicy", layers, self.input, actions, (len(layers),))
        logits = self.head(self.lstm(_small(layers).unsqueeze(1))[0][:, 0])
        drawn = _draw(logits) if actions is None else actions
        return drawn, _log_prob(logits, drawn).sum()


class ShrinkagePolicy(nn.Module):
    """LSTM cells that go through the layers and their five numbers, and choose a factor for each from a table.

    A number is multiplied by its factor before the cells see the layer again; the type, the first, never changes.

    Args:
        table: factors to choose from, in (0, 1].
        input: numbers that describe a layer: 5, or 7 with its place in a residual block.
        hidden: width of the cells.

    >>> policy = ShrinkagePolicy()
    >>> [sum(p.numel() for p in part.parameters()) for part in (*policy.cells, policy.head)]
    [4440, 7440, 341]
    """

    kind = "shrinkage"

    def __init__(self, table: Sequence[float] = TABLE, input: int = 5, hidden: int = 30) -> None:
        super().__init__()
        _positive("ShrinkagePolicy", input=input, hidden=hidden)
        if not table or not all(0 < factor <= 1 for factor in table):
            raise ArgumentError(f"ShrinkagePolicy: `table` must hold factors in (0, 1], got {list(table)}.")
        self.table, self.input, self.hidden = tuple(float(factor) for factor in table), input, hidden
        self.cells = nn.ModuleList([nn.LSTMCell(input, hidden), nn.LSTMCell(hidden, hidden)])
        self.head = nn.Linear(hidden, len(table))

    def forward(
        self, layers: Float[Tensor, "layers numbers"], actions: Int[Tensor, "layers 5"] | None = None
    ) -> tuple[Int[Tensor, "layers 5"], Float[Tensor, ""]]:
        """Draw the entries of the table, or take those given; return them and the logarithm of their joint probability.

        Args:
            layers: what describes them.
            actions: of a rollout whose probability is asked for.

        Raises:
            ShapeError: if a layer is described by another number of numbers, or there are not five actions for each.
        """
        _check("ShrinkagePolicy", layers, self.input, actions, (len(layers), FIELDS))
        states = [(layers.new_zeros(1, self.hidden),) * 2 for _ in self.cells]
        rows, total = [], layers.new_zeros(())
        for i, layer in enumerate(layers):
            seen, row = layer.clone(), []
            for j in range(FIELDS):
                x = _small(seen).unsqueeze(0)
                for number, cell in enumerate(self.cells):
                    states[number] = cell(x, states[number])
                    x = states[number][0]
                logits = self.head(x)[0]
                chosen = _draw(logits) if actions is None else actions[i, j]
                total = total + _log_prob(logits, chosen)
                row.append(chosen)
                if j > 0:
                    seen = seen.clone()
                    seen[j] = seen[j] * self.table[int(chosen)]
            rows.append(torch.stack(row))
        return torch.stack(rows), total

    def factors(self, actions: Int[Tensor, "layers 5"]) -> list[list[float]]:
        """Return the factors that actions stand for; that of the type is always 1."""
        return [[1.0, *(self.table[entry] for entry in row[1:])] for row in actions.tolist()]


Policy = RemovalPolicy | ShrinkagePolicy


def policy_loss(log_probs: Float[Tensor, " rollouts"], rewards: Float[Tensor, " rollouts"], baseline: float) -> Float[Tensor, ""]:
    """Compute -mean over rollouts of log pi(actions) (R - b), whose gradient is that of the expected reward (equation 4).

    Args:
        log_probs: of each rollout, summed over its decisions.
        rewards: of each.
        baseline: b; it changes nothing in the mean and lowers the variance.
    """
    return -(log_probs * (rewards - baseline)).mean()


def uniform_actions(policy: Policy, layers: int) -> Int[Tensor, " layers *five"]:
    """Draw actions that no policy has learned: each entry as probable as the others."""
    if isinstance(policy, RemovalPolicy):
        return torch.randint(2, (layers,))
    return torch.randint(len(policy.table), (layers, FIELDS))


def save_policy(policy: Policy, folder: str | Path) -> None:
    """Write a policy, from which a run on another teacher can begin.

    Args:
        policy: either.
        folder: is made.
    """
    options: dict[str, Any] = {"input": policy.input, "hidden": policy.hidden}
    if isinstance(policy, ShrinkagePolicy):
        options["table"] = list(policy.table)
    checkpoint.save(Path(folder), policy.state_dict(), {"policy": policy.kind, "options": options})


def load_policy(folder: str | Path) -> Policy:
    """Read a policy that `save_policy` or a run has written.

    Args:
        folder: such as `RUN/policies/removal`.

    Raises:
        CheckpointError: if there is none.
    """
    found = checkpoint.read(Path(folder), training=False)
    kinds = {"removal": RemovalPolicy, "shrinkage": ShrinkagePolicy}
    if found.facts.get("policy") not in kinds:
        raise CheckpointError(f"{folder} holds no policy of n2n. A run writes them to RUN/policies/removal and RUN/policies/shrinkage.")
    policy: Policy = kinds[found.facts["policy"]](**found.facts["options"])
    policy.load_state_dict(found.tensors)
    return policy


def _small(layers: Tensor) -> Tensor:
    """Bring widths in the hundreds, which would saturate the cells, to the size of the other numbers (not in the paper)."""
    return layers.log1p()


def _draw(logits: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits.detach()).sample()


def _log_prob(logits: Tensor, actions: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits).log_prob(actions)


def _positive(where: str, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < (FIELDS if name == "input" else 1):
            raise ArgumentError(f"{where}: `{name}` must be at least {FIELDS if name == 'input' else 1}, got {number}.")


def _check(where: str, layers: Tensor, numbers: int, actions: Tensor | None, shape: tuple[int, ...]) -> None:
    if layers.ndim != 2 or layers.shape[1] != numbers or not len(layers):
        raise ShapeError(f"{where}: `layers` needs a row of {numbers} numbers for each layer, got {tuple(layers.shape)}.")
    if actions is not None and tuple(actions.shape) != shape:
        raise ShapeError(f"{where}: `actions` must be of shape {shape}, one for each decision, got {tuple(actions.shape)}.")
