"""NoProp: train blocks one by one, without back-propagation through the network (Li, Teh and Pascanu 2025, arXiv 2503.24322).

Each block of a `NoPropDT` learns alone to clean a noisy label, given the image. No gradient and no activation passes between blocks, so
they can be trained in any order, on different machines, in the memory of one of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from retinue.data import Batch, Data, Loader
from retinue.engine import Objective, evaluating, judge
from retinue.engine.seeds import mix, own_randomness
from retinue.errors import ArgumentError, unknown
from retinue.models.noprop import NoPropCT, NoPropDT, NoPropFM, NoPropNet, around
from retinue.models.noprop_blocks import prototypes
from retinue.models.noprop_schedule import CosineSchedule, LearnedSchedule

__all__ = ["CosineSchedule", "LearnedSchedule", "NoProp", "NoPropCT", "NoPropDT", "NoPropFM", "activation_bytes", "local_step"]

LABELS = "labels"  # the player that owns embedding and output layer
SPREAD = 8  # draws of noise of which the accuracies' spread is reported
PROTOTYPES_FROM = 10_000  # images among which prototypes are chosen


class NoProp(Objective):
    """Train a NoProp network, or one that is built around any other backbone.

    In discrete time every block is a player with an optimiser of its own ("block_1", ..., "block_T"), and so are the embedding and the
    output layer together ("labels"); each step updates one after the other, each from its own loss and its own noise. The expectation is
    that of the paper's algorithm, which finishes one block after the other. In continuous time and flow matching there is one player.

    Args:
        form: what is built around a backbone that is no NoProp network: "dt", "ct" or "fm".
        options: of that network (`noprop_dt`, `noprop_ct` or `noprop_fm`), such as {"num_blocks": 4}.
        players: in discrete time, those that are trained in this run, such as ["block_3"]; None trains all. Blocks trained in runs of
            their own, from the same network, have the weights that one run of all would give them (where the embedding is fixed).

    Raises:
        ArgumentError: if there is no such form.

    >>> objective = NoProp(options={"num_blocks": 4})
    """

    monitor, mode = "top1", "max"

    def __init__(
        self,
        form: Literal["dt", "ct", "fm"] = "dt",
        options: dict[str, Any] | None = None,
        players: list[str] | None = None,
    ) -> None:
        super().__init__()
        if form not in ("dt", "ct", "fm"):
            raise unknown("NoProp", "`form`", form, ("dt", "ct", "fm"))
        if players is not None and not players:
            raise ArgumentError('NoProp: `players` is empty. Name what is trained, such as ["block_1", "labels"], or leave it out.')
        self.form, self.options, self.chosen = form, dict(options or {}), players

    def prepare(self, model: nn.Module, data: Data) -> nn.Module:
        """Return the network: the model, or one built around it; prototypes are chosen among the training images."""
        seen = data.preprocessing
        if not isinstance(model, NoPropNet):
            shape: dict[str, Any] = {"num_classes": len(data.classes), "in_chans": seen.channels, "input_size": seen.input_size}
            model = around(model, self.form, **{**self.options, **shape})
        if not bool(model.embedding.filled):
            some = range(0, len(data.train), max(1, len(data.train) // PROTOTYPES_FROM))
            images = seen.normalize(seen.centre(data.train.images(some)))
            model.embedding.fill(prototypes(images, data.train.labels[some], model.num_classes))
        return model

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse other images or another number of classes than the network was built for, and players that it does not have."""
        network, seen = _network(model), data.preprocessing
        if network.num_classes != len(data.classes):
            raise ArgumentError(
                f"NoProp: the network has {network.num_classes} classes and {data.name} has {len(data.classes)}. "
                f"Build it with num_classes={len(data.classes)}."
            )
        network.check_images(torch.empty(1, seen.channels, *seen.input_size))
        self.players(network)

    def players(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Name each block, and the labels' parts, where blocks learn alone."""
        if not isinstance(model, NoPropDT):
            if self.chosen is not None and isinstance(model, NoPropNet):
                raise ArgumentError("NoProp: `players` is of discrete time, whose blocks learn alone. Leave it out.")
            return super().players(model)
        every = {f"block_{t}": list(block.parameters()) for t, block in enumerate(model.blocks, start=1)}
        every[LABELS] = [*model.embedding.parameters(), *model.readout.parameters()]
        for name in self.chosen or ():
            if name not in every:
                raise unknown("NoProp", "player", name, every)
        return {name: own for name, own in every.items() if self.chosen is None or name in self.chosen}

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield each block's loss in turn, then the labels'; or the whole loss of the one block that serves all times."""
        network = _network(model)
        labels = batch.labels if batch.targets is None else batch.targets
        if isinstance(network, NoPropDT):
            yield from local_losses(network, batch.images, labels, list(self.players(network)))
            return
        parts = network.training_losses(batch.images, labels)
        total = torch.stack(list(parts.values())).sum()
        yield "model", {"loss": total, **{name: value.detach() for name, value in parts.items()}}

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the whole loss of a batch at once: ce + kl + denoise, of the latter the mean over the blocks."""
        parts = _network(model).training_losses(batch.images, batch.labels if batch.targets is None else batch.targets)
        total = torch.stack([value.mean() for value in parts.values()]).sum()
        return {"loss": total, **{name: value.detach().mean() for name, value in parts.items()}}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, loader: Loader) -> dict[str, float]:
        """Compute the numbers of `retinue.evaluate`, and mean and standard deviation of the accuracies of single draws of noise."""
        network, found, labels = _network(model), [], []
        with evaluating(model):
            for batch in loader.batches():
                states = network.forward_features(batch.images)
                each = network.readout(states.flatten(0, 1), network.embedding.weight).unflatten(0, states.shape[:2])
                found.append((network.forward_head(states).float(), each.argmax(-1)))
                labels.append(batch.labels)
        right = torch.cat([said for _, said in found]) == torch.cat(labels)[:, None]
        single = right.float().mean(0)
        spread = float(single.std()) if len(single) > 1 else 0.0
        return {
            **judge(torch.cat([logits for logits, _ in found]), torch.cat(labels)),
            "top1_draw": float(single.mean()),
            "top1_spread": spread,
        }


def local_losses(
    network: NoPropDT, images: Tensor, labels: Tensor, names: Sequence[str]
) -> Iterator[tuple[str, dict[str, Float[Tensor, ""]]]]:
    """Yield players' losses, each with noise that depends on the player's name and one common draw alone, not on the order.

    Where the embedding is learned, the labels' loss has the denoising loss of one block more, drawn at random: an estimate of the mean over
    the blocks without bias.
    """
    common = int(torch.randint(1 << 62, ()))
    for name in names:
        with own_randomness():
            torch.manual_seed(mix(common, 0 if name == LABELS else int(name.removeprefix("block_"))))
            if name == LABELS:
                parts = network.label_losses(labels)
                total = parts["ce"] + parts["kl"]
                if network.embedding.learns:
                    total = total + network.block_loss(int(torch.randint(network.num_blocks, ())) + 1, images, labels)
                numbers = {"loss": total, **{part: value.detach() for part, value in parts.items()}}
            else:
                numbers = {"loss": network.block_loss(int(name.removeprefix("block_")), images, labels)}
        yield name, numbers


def local_step(
    network: NoPropDT,
    optimizers: Mapping[str, torch.optim.Optimizer],
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"] | Float[Tensor, "batch classes"],
) -> dict[str, float]:
    """Update players one at a time, in the order of their optimisers, for those who have a loop of their own.

    Args:
        network: in training mode.
        optimizers: of each player that is trained, by its name ("block_1", ..., "labels"); see `NoProp().players(network)`.
        images: normalised images.
        labels: class numbers, or shares of the classes.

    Returns:
        Each player's loss.

    Raises:
        ArgumentError: if there is no such player.
    """
    NoProp(players=list(optimizers)).players(network)
    told = {}
    for name, numbers in local_losses(network, images, labels, list(optimizers)):
        optimizers[name].zero_grad(set_to_none=True)
        numbers["loss"].backward()
        optimizers[name].step()
        told[name] = float(numbers["loss"].detach())
    return told


def activation_bytes(compute: Callable[[], Tensor], model: nn.Module) -> int:
    """Count the bytes that a computation keeps for its backward pass, beside the model's own parameters and buffers.

    Args:
        compute: returns a loss; it is not back-propagated.
        model: whose tensors do not count.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = compute()  # held until the sum is made, so that no storage is used twice
    total = sum(kept.values())
    del loss
    return total


def _network(model: nn.Module) -> Any:
    if not isinstance(model, NoPropNet):
        raise ArgumentError(
            f"NoProp: the model must be a NoProp network, got {type(model).__name__}. retinue.fit builds one around any backbone; by hand: "
            "NoProp().prepare(model, data)."
        )
    return model
