"""Sparse checkpoints: the same network, fewer bytes."""

from pathlib import Path

import pytest
import torch
from torch import nn
from twelve import NETWORKS, network

import retinue
from retinue.compress.masks import apply_mask, full_mask, magnitude_mask
from retinue.compress.sparse_checkpoint import load_sparse, read_sparse, save_sparse
from retinue.engine import checkpoint
from retinue.errors import ArgumentError, CheckpointError


def pruned(model: nn.Module, fraction: float) -> dict[str, torch.Tensor]:
    mask = magnitude_mask(model, full_mask(model), fraction)
    apply_mask(model, mask)
    return mask


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = network(name).eval()
    mask = pruned(model, 0.7)
    save_sparse(tmp_path / "sparse", model, mask)
    again, mask_again = load_sparse(tmp_path / "sparse", network(name, seed=1))
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())
    assert all(torch.equal(kept, mask_again[key]) for key, kept in mask.items())


@pytest.mark.parametrize(("fraction", "times"), [(0.5, 1.7), (0.9, 6), (0.99, 35)])
def test_it_is_smaller_on_disk(fraction: float, times: float, tmp_path: Path) -> None:
    model = retinue.create_model("mlp", widths=[300, 100], num_classes=10, in_chans=1, input_size=28)
    size = save_sparse(tmp_path / "sparse", model, pruned(model, fraction))
    checkpoint.save(tmp_path / "plain", model.state_dict(), {})
    plain = sum(path.stat().st_size for path in (tmp_path / "plain").iterdir())
    assert size == sum(path.stat().st_size for path in (tmp_path / "sparse").iterdir())
    assert plain / size > times
    again, _ = load_sparse(tmp_path / "sparse")  # built by its name
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_what_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    save_sparse(tmp_path / "own", model, full_mask(model))
    with pytest.raises(CheckpointError, match=r"holds the weights of your own torch\.nn\.modules\.container\.Sequential\. Build it"):
        load_sparse(tmp_path / "own")
    with pytest.raises(CheckpointError, match=r"does not fit this network"):
        load_sparse(tmp_path / "own", nn.Sequential(nn.Linear(3, 2)))
    checkpoint.save(tmp_path / "plain", model.state_dict(), {})
    with pytest.raises(CheckpointError, match=r"is no sparse checkpoint\. Open it with retinue\.load\."):
        read_sparse(tmp_path / "plain")
    with pytest.raises(ArgumentError, match=r'the weight "0.weight" is missing'):
        save_sparse(tmp_path / "none", model, {})
