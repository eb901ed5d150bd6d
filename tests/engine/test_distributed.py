"""Two processes on this machine give the loss curve of one with the double batch."""

import csv
import os
import subprocess
import sys
from pathlib import Path

from support import ROOT

# A network without batch norm, whose statistics are those of a process's own half of the batch.
PROGRAM = """
import sys, torch, retinue
devices, folder = int(sys.argv[1]), sys.argv[2]
data = retinue.data.open("digits", train_images=320)
torch.manual_seed(0)
model = retinue.create_model("timm:vit_tiny_patch16_224", embed_dim=32, depth=2, num_heads=2, num_classes=10, in_chans=1, input_size=8)
retinue.fit(
    model, retinue.train.Supervised(), data, epochs=2, batch_size=32 // devices, optimizer="sgd", lr=0.05, clip_grad=1.0,
    views="crop(1), flip", log_every=1, seed=3, ema=0.9, devices=devices, accelerator="cpu",
    run_dir=folder, loggers=("csv",), progress=False,
)
"""


def losses(devices: int, folder: Path) -> list[float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    script = folder.parent / "program.py"
    script.write_text(PROGRAM)
    done = subprocess.run([sys.executable, script, str(devices), folder], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["name"] in ("train/loss", "val/loss")]


def test_two_processes_are_one_with_the_double_batch(tmp_path: Path) -> None:
    one, two = losses(1, tmp_path / "one"), losses(2, tmp_path / "two")
    assert len(one) == len(two) == 2 * 10 + 2
    worst = max(abs(a - b) / a for a, b in zip(one, two))
    assert worst < 1e-4, "float32 sums in another order; the same images and the same draws"
