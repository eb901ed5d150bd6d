"""`torch.jit.script` of each family of networks: the same outputs bit for bit, the same names of weights, any batch and side."""

import subprocess
import sys

import pytest
import torch
from support import images
from torch import nn

import retinue
from retinue.errors import ArgumentError
from retinue.models.fusion import scriptable

# in a process of its own, whose functions are as they are written: TorchScript cannot read the ones whose shapes are checked while they run
FAMILIES = """
import io, torch, retinue
families = {
    "inception_next_atto": {"drop_path_rate": 0.1}, "iformer_small": {}, "resnet18_ibn_a": {},
    "resnet18_ibn_b": {}, "simplenet_cifar_5m": {}, "resnet_rs_50": {"drop_rate": 0.2}, "nasnet_a_cifar": {},
    "inception_v4": {"width_mult": 0.125}, "cifar_resnet": {"depth": 8}, "small_convnet": {}, "network_in_network": {},
}
torch.set_num_threads(1)
for name, options in families.items():
    model = retinue.create_model(name, num_classes=5, input_size=64, **options).eval()
    names, kept = list(model.state_dict()), io.BytesIO()
    torch.jit.save(torch.jit.script(model), kept)
    kept.seek(0)
    again = torch.jit.load(kept)
    assert sorted(again.state_dict()) == sorted(names), name
    assert list(model.state_dict()) == names, f"{name} itself was changed"
    with torch.no_grad():
        for batch, side in ((2, 64), (3, 75)):
            x = torch.randn(batch, 3, side, side)
            assert torch.equal(again(x), model(x)), (name, side)
    print(name, "ok")
"""


def test_each_family_is_scripted() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FAMILIES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" ok\n") == 11


def test_one_in_training_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"torch\.jit\.script: a network of ours is scripted for evaluation\. Call \.eval\(\) first"):
        torch.jit.script(retinue.create_model("small_convnet", num_classes=2).train())


def test_anyones_network_becomes_scriptable() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5))

        def forward(self, x: "torch.Tensor | None") -> object:  # a signature that TorchScript does not know
            return self.steps(x).relu()

    model = Own().eval()
    with pytest.raises(RuntimeError):
        torch.jit.script(model)
    assert torch.equal(torch.jit.script(scriptable(model))(images(2, 1, 8, 8)), model(images(2, 1, 8, 8)))
