"""Training on stored answers of teachers beside plain training with the same augmentation, 32 px, batches of 128; and the store's size.

A step is loading, view, forward, backward and update of a small convolutional network. The size is beside that of the paper's repository:
ImageNet+ (+RA/RE, N = 400, K = 10) in 37.5 GB, 73.2 bytes for each answer to one of 1,281,167 images.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import retinue
from retinue.data import Data, from_arrays
from retinue.distill.dataset_reinforcement import Reinforced, ReinforcedDataset, ReinforcementBuilder
from retinue.distill.replayable import Augmentation, KeyedViews, recipe
from retinue.engine import Objective
from retinue.train import Supervised

SIDE, BATCH = 32, 128
KEYED = "random_resized_crop(32), flip, randaugment, erase(0.25)"
PUBLISHED = 37.5e9 / 1_281_167 / 400


def made(images: int, classes: int) -> Data:
    """Make images of noise."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (images, SIDE, SIDE, 3), dtype=np.uint8)
    return from_arrays(pixels, np.arange(images) % classes, split=["train"] * images)


def network(classes: int) -> torch.nn.Module:
    """Build the network that is trained, and that stands for a teacher."""
    torch.manual_seed(0)
    return retinue.create_model("small_convnet", num_classes=classes, in_chans=3, input_size=SIDE)


def steps_per_second(objective: Objective, data: Data, shown: Any, epoch: int) -> float:
    """Train for one epoch, and time it."""
    model = network(len(data.classes)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = data.train.loader(BATCH, shuffle=True, views=objective.views or shown)
    started = time.perf_counter()
    for batch in loader.batches(epoch):
        optimizer.zero_grad()
        objective(model, batch)["loss"].backward()
        optimizer.step()
    return len(loader) / (time.perf_counter() - started)


def cost(name: str, augmentation: Augmentation, plain: str, data: Data, folder: Path, rounds: int) -> dict[str, Any]:
    """Measure steps a second on stored answers and on labels, in turn."""
    ReinforcementBuilder(data, network(len(data.classes)), augmentation, num_samples=4, topk=10, device="cpu").build(folder)
    plus = ReinforcedDataset(data, folder)
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    for number in range(rounds + 1):
        for who, objective, shown, images in (
            ("ours", Reinforced(plus), None, plus.data),
            ("peer", Supervised(), retinue.views.parse(plain), data),
        ):
            rate = steps_per_second(objective, images, shown, number)
            if number:  # the first round is for warming up
                rates[who].append(rate)
    middle = {who: statistics.median(values) for who, values in rates.items()}
    ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["peer"]))
    return {"name": name, **middle, "ratio": ratio, "unit": "steps/s", "target": 0.95}


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Measure the cost of a step with both kinds of stores, and the bytes of an answer."""
    data = made(256 if quick else 1536, 100)
    rounds = 1 if quick else 9
    with tempfile.TemporaryDirectory() as scratch:
        rows = [
            cost("training step, keys of views stored", KeyedViews(KEYED), KEYED, data, Path(scratch) / "keys", rounds),
            cost("training step, parameters stored (+RA/RE)", recipe("+RA/RE", SIDE), KEYED, data, Path(scratch) / "drawn", rounds),
        ]
        wide = made(1000, 1000)
        for name, augmentation in (("parameters (+RA/RE)", recipe("+RA/RE", SIDE)), ("keys of views", KeyedViews(KEYED))):
            samples = 2 if quick else 20
            store = ReinforcementBuilder(wide, network(1000), augmentation, num_samples=samples, topk=10, device="cpu").build(
                Path(scratch) / f"size of {name[:4]}"
            )
            ours = sum(path.stat().st_size for path in store.folder.glob("shard-*")) / (store.images * samples)
            row = {"name": f"an answer on disk, {name}, 10 of 1,000 classes", "ours": ours, "peer": PUBLISHED, "unit": "bytes"}
            rows.append({**row, "ratio": ours / PUBLISHED, "target": 1.0, "lower": True})
    return rows
