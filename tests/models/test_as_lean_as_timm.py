"""Beside timm's network of the same name ours does no more work: no operation more in the exported graph, none with more arithmetic."""

import collections
from typing import Any

import pytest
import timm
import torch

import retinue
from retinue.models import count_macs

FREE = ("dropout", "view", "reshape", "flatten", "slice")  # nothing is computed or copied in evaluation
FUSED = {"addcmul": 2}  # one pass over the map in the place of two


def operations(model: Any, side: int) -> collections.Counter[str]:
    """Count what is computed in evaluation, in-place forms with the others."""
    with torch.no_grad():
        graph = torch.export.export(model.eval(), (torch.zeros(1, 3, side, side),)).graph
    names = [str(node.target).split(".")[1].rstrip("_") for node in graph.nodes if str(node.target).startswith("aten.")]
    return collections.Counter(name for name in names if name not in FREE)


@pytest.mark.parametrize(
    ("name", "theirs", "side"),
    [
        ("inception_next_atto", "inception_next_atto", 64),
        ("resnet_rs_50", "resnetrs50", 64),
        ("inception_v4", "inception_v4", 96),
        ("inception_resnet_v2", "inception_resnet_v2", 96),
    ],
)
def test_a_network_computes_nothing_that_timms_does_not(name: str, theirs: str, side: int) -> None:
    ours, peer = retinue.create_model(name, num_classes=10), timm.create_model(theirs, num_classes=10)
    mine, its = operations(ours, side), operations(peer, side)
    assert sum(mine.values()) <= sum(its.values())
    extra = mine - its
    assert set(extra) <= set(FUSED)
    assert sum(FUSED[one] * count for one, count in extra.items()) <= sum((its - mine).values())
    assert count_macs(ours, side) <= count_macs(peer, side)
