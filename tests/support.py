"""What several test files share."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "retinue"
HEAVY = ("torch", "torchvision", "timm", "numpy", "sklearn", "matplotlib", "lightning")  # what the command line must not import in vain


def python(code: str, *arguments: str, check: bool = True, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh Python, as a user's program."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=check, cwd=cwd, env={**os.environ, **environment}
    )


def retinue_command(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `retinue WORDS` in a process of its own."""
    code = "import sys, retinue.cli; sys.exit(retinue.cli.main())"
    return python(code, *words, check=False, cwd=cwd, COLUMNS="140")


def tool(name: str) -> ModuleType:
    """Import `tools/NAME.py`, which belongs to no package."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def images(*shape: int, seed: int = 0) -> Tensor:
    """Draw images, normal with mean 0 and deviation 1 as normalised ones have."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parameters(model: nn.Module) -> int:
    """Count the parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def reductions(model: Any) -> list[int]:
    """List the strides that a network's `feature_info` states."""
    return [tap["reduction"] for tap in (model.feature_info if isinstance(model.feature_info, list) else model.feature_info.info)]


def train_a_little(seed: int) -> tuple[int, Tensor, int]:
    """Train a small network for three steps; importable, so that other processes can run it. Returns seed, weights and threads."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(5, 1, 8, 8)).square().mean().backward()
        optimizer.step()
    return seed, torch.cat([parameter.detach().flatten() for parameter in net.parameters()]), torch.get_num_threads()


def fails_at_three(item: int) -> float:
    """Fail for one item; importable."""
    return 1 / (item - 3)


def same(a: Any, b: Any) -> bool:
    """Compare nested dicts and lists of tensors and values, bit for bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
