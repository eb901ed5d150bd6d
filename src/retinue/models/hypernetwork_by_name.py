"""`hypernetwork`: a network with generated weights by name, so that checkpoints can rebuild it, and `around` one that exists."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from retinue.models.factory import create_model, image_size, register
from retinue.models.hypernetwork import CODES, HyperNetwork
from retinue.models.hypernetwork_emitters import Emit, Trunk
from retinue.models.hypernetwork_layout import Init
from retinue.models.protocol import adapt, config


@register(cfg={"input_size": (3, 32, 32), "crop_pct": 1.0, "first_conv": None, "classifier": None})
def hypernetwork(
    target: str = "small_convnet",
    target_args: Mapping[str, Any] | None = None,
    condition: str = "task",
    num_tasks: int | None = None,
    emb_dim: int | None = None,
    emit: Emit = "chunk",
    chunk_size: int | None = None,
    token_dim: int = 8,
    trunk: Trunk = "mlp",
    hidden: Sequence[int] = (100, 100),
    generate: str | Sequence[str] = "all",
    residual: bool | str = False,
    init: Init = "hyperfan_in",
    gain: float = 2.0,
    samples: int = CODES,
    *,
    num_classes: int = 10,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
) -> HyperNetwork:
    """Build a network by name whose weights a hypernetwork generates.

    Args:
        target: name of any network.
        target_args: its options.
        condition: as in `HyperNetwork`.
        num_tasks: as there; None is one task where there are tasks.
        emb_dim: as there.
        emit: as there.
        chunk_size: as there.
        token_dim: as there.
        trunk: as there.
        hidden: as there.
        generate: as there.
        residual: as there.
        init: as there.
        gain: as there.
        samples: as there.
        num_classes: classes.
        in_chans: channels of the images.
        input_size: side of the images, or height and width.

    Raises:
        ArgumentError: if an option cannot be.
    """
    size = image_size(input_size)
    shape: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans, "input_size": size}
    network = create_model(target, **{**(target_args or {}), **shape})
    return HyperNetwork(
        network, condition, _tasks(condition, num_tasks), emb_dim, emit, chunk_size, token_dim, trunk, hidden, generate, residual, init,
        gain, samples=samples,
    )  # fmt: skip


def around(target: nn.Module, *, input_size: tuple[int, int] | None = None, **options: Any) -> HyperNetwork:
    """Build the network of `hypernetwork` around a network that exists; a checkpoint can rebuild it where `create_model` made that.

    Args:
        target: any network; it is taken over.
        input_size: height and width of the images, for a network without timm's protocol.
        options: of `HyperNetwork`; without `num_tasks`, one task where there are tasks.
    """
    made = config(target)
    options = {**options, "num_tasks": _tasks(options.get("condition", "task"), options.get("num_tasks"))}
    network: Any = HyperNetwork(adapt(target, input_size=input_size), **options)
    if made is not None and "encoder" not in options:
        own = copy.deepcopy(made["arguments"])
        common = {name: own.pop(name) for name in ("num_classes", "in_chans", "input_size")}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
        network.retinue_config = {"name": "hypernetwork", "arguments": {**common, **plain, "target": made["name"], "target_args": own}}
    return network


def _tasks(condition: str, num_tasks: int | None) -> int | None:
    return 1 if num_tasks is None and "task" in condition.split("+") else num_tasks
