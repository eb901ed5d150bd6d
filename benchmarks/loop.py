"""The training loop: `fit` with logs and checkpoints on, beside a bare PyTorch loop and `lightning.Trainer`, on the same tensors."""

import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retinue
from retinue.data import Data
from retinue.engine.seeds import seed_all

BATCH, EPOCHS, SEED = 64, 2, 0


def network() -> nn.Module:
    """A small convolutional network: about 10 ms a step on two cores, so that a loop's own cost shows."""
    torch.manual_seed(0)
    return retinue.create_model("small_convnet", num_classes=10, in_chans=3, input_size=32)


def images(count: int) -> Data:
    """Random colour images of 32 pixels."""
    pixels = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = ["train"] * (count - 64) + ["val"] * 64
    return retinue.data.from_arrays(pixels.numpy(), torch.arange(count) % 10, split=split, test_fraction=0.0)


def with_fit(data: Data) -> tuple[float, list[Tensor]]:
    """Seconds of training by `fit`, everything on, and the weights."""
    model = network()
    with tempfile.TemporaryDirectory() as folder:
        run = retinue.fit(
            model, retinue.train.Supervised(), data, epochs=EPOCHS, batch_size=BATCH, optimizer="sgd", lr=0.05, weight_decay=0.0,
            schedule="constant", seed=SEED, run_dir=folder, progress=False,
        )  # fmt: skip
        return run.seconds, [parameter.detach() for parameter in run.model.parameters()]


def with_a_bare_loop(data: Data) -> tuple[float, list[Tensor]]:
    """Seconds of the same training by a loop without anything else, and the weights."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    pixels, labels = data.train.images(), data.train.labels
    loader = data.train.loader(BATCH, shuffle=True, seed=SEED)
    model.train()
    started = time.perf_counter()
    step = 0
    for epoch in range(EPOCHS):
        for indices in loader.order(epoch)[: len(loader) * BATCH].split(BATCH):
            seed_all(SEED, step, 0)
            x = data.preprocessing.normalize(pixels[indices])
            optimizer.zero_grad()
            F.cross_entropy(model(x), labels[indices]).backward()
            optimizer.step()
            step += 1
    return time.perf_counter() - started, [parameter.detach() for parameter in model.parameters()]


def with_lightning(data: Data) -> tuple[float, list[Tensor]]:
    """Seconds of the same training by `lightning.Trainer`, with its logs and checkpoints, from a DataLoader over tensors."""
    import lightning
    from torch.utils.data import DataLoader, TensorDataset

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = network()
            self.started = 0.0

        def on_train_start(self) -> None:
            self.started = time.perf_counter()

        def on_train_end(self) -> None:
            self.seconds = time.perf_counter() - self.started

        def training_step(self, batch: Any, _: int) -> Tensor:
            logits = self.model(data.preprocessing.normalize(batch[0]))
            loss = F.cross_entropy(logits, batch[1])
            self.log_dict({"train/loss": loss, "train/top1": (logits.argmax(-1) == batch[1]).float().mean()})
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, nesterov=True)

    loader = DataLoader(TensorDataset(data.train.images(), data.train.labels), BATCH, shuffle=True, drop_last=True)
    module = Module()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=EPOCHS, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
            logger=lightning.pytorch.loggers.CSVLogger(folder),
        )  # fmt: skip
        trainer.fit(module, loader)
    return module.seconds, [parameter.detach() for parameter in module.model.parameters()]


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Measure all three, one after the other, several times; medians."""
    data = images(64 + (640 if quick else 6400))
    rounds = 2 if quick else 7
    ways: dict[str, Callable[[Data], tuple[float, list[Tensor]]]] = {"fit": with_fit, "bare": with_a_bare_loop, "lightning": with_lightning}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    weights: dict[str, list[Tensor]] = {}
    for number in range(rounds + 1):
        for name, way in ways.items():
            took, weights[name] = way(data)
            if number:  # the first round warms up
                seconds[name].append(took)
    count = len(data.train) // BATCH * BATCH * EPOCHS
    rate = {name: count / statistics.median(values) for name, values in seconds.items()}
    equal = all(torch.equal(a, b) for a, b in zip(weights["fit"], weights["bare"]))
    note = "equal weights, bit for bit" if equal else "WEIGHTS DIFFER"
    named = {"bare": (f"fit, everything on, vs bare loop ({note})", 0.97), "lightning": ("fit vs lightning.Trainer", 1.0)}
    return [
        {"name": name, "ours": rate["fit"], "peer": rate[peer], "ratio": rate["fit"] / rate[peer], "unit": "images/s", "target": target}
        for peer, (name, target) in named.items()
    ]
