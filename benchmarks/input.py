"""Images per second into a training loop: views of whole batches in memory, beside the usual one image at a time in worker processes.

The usual set-up is torchvision's transforms on Pillow images in a DataLoader with two workers that stay alive. Both sides read the same
10,000 random images of 32 px and hand over normalised float batches. Every figure is the median of several runs, the two sides in turn,
so that what else the machine does falls on both.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms as T
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from retinue.data import from_arrays, views

BATCH, SIDE, CLASSES, WORKERS = 128, 32, 10, 2
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]

PAIRS: dict[str, tuple[str, list]] = {  # the view, and torchvision's transform of one Pillow image
    "crop": ("crop(4)", [T.RandomCrop(SIDE, padding=4)]),
    "flip": ("flip", [T.RandomHorizontalFlip()]),
    "random_resized_crop": (f"random_resized_crop({SIDE})", [T.RandomResizedCrop(SIDE)]),
    "color_jitter": ("color_jitter(0.4, 0.4, 0.4, 0.1)", [T.ColorJitter(0.4, 0.4, 0.4, 0.1)]),
    "grayscale": ("grayscale(0.2)", [T.RandomGrayscale(0.2)]),
    "gaussian_blur": ("gaussian_blur(3, p=1)", [T.GaussianBlur(3)]),
    "rotate": ("rotate(15)", [T.RandomRotation(15, T.InterpolationMode.BILINEAR)]),
    "randaugment": ("randaugment(2, 9)", [T.RandAugment(2, 9)]),
    "trivialaugment": ("trivialaugment", [T.TrivialAugmentWide()]),
}
USUAL = [T.RandomCrop(SIDE, padding=4), T.RandomHorizontalFlip(), T.ColorJitter(0.4, 0.4, 0.4, 0.1)]
OURS = "crop(4), flip, color_jitter(0.4, 0.4, 0.4, 0.1)"


class Images(Dataset):
    """One image at a time: an array, made a Pillow image, transformed."""

    def __init__(self, images: np.ndarray, labels: Tensor, transforms: Sequence[Callable]) -> None:
        self.images, self.labels = images, labels
        self.transform = T.Compose([*transforms, T.ToTensor(), T.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def usual_batches(images: Tensor, labels: Tensor, transforms: Sequence[Callable]) -> Batches:
    """Batches of an epoch from worker processes."""
    data = Images(images.permute(0, 2, 3, 1).contiguous().numpy(), labels, transforms)
    loader = DataLoader(data, BATCH, shuffle=True, drop_last=True, num_workers=WORKERS, persistent_workers=True)
    return lambda epoch: iter(loader)


def our_batches(images: Tensor, labels: Tensor, view: views.Compose) -> Batches:
    """Batches of an epoch, from the loader that `retinue.fit` uses."""
    data = from_arrays(images, labels, split=["train"] * len(images), mean=MEAN, std=STD, val_fraction=0.0, test_fraction=0.0)
    loader = data.train.loader(BATCH, shuffle=True, views=view)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader.batches(epoch):
            yield batch.images, batch.labels

    return batches


def read(batches: Batches, epoch: int, images: int) -> float:
    """Images per second of an epoch in which nothing is done with them."""
    start, seen = time.perf_counter(), 0
    for batch, _ in batches(epoch):
        seen += len(batch)
        if seen >= images:
            break
    return seen / (time.perf_counter() - start)


def small_network() -> nn.Module:
    """Four convolutions, 47,000 parameters, in the layout that convolutions on the CPU like best."""
    widths = (3, 16, 32, 48, 64)
    layers = [
        part
        for inputs, outputs in itertools.pairwise(widths)
        for part in (nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(outputs), nn.ReLU())
    ]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], CLASSES))
    return network.to(memory_format=torch.channels_last)


def train(batches: Batches, epoch: int, images: int) -> float:
    """Images per second of an epoch of training."""
    torch.manual_seed(0)
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    start, seen = time.perf_counter(), 0
    for batch, labels in batches(epoch):
        optimizer.zero_grad()
        F.cross_entropy(model(batch.to(memory_format=torch.channels_last)), labels).backward()
        optimizer.step()
        seen += len(batch)
        if seen >= images:
            break
    return seen / (time.perf_counter() - start)


def row(name: str, ours: Sequence[float], peer: Sequence[float]) -> dict:
    """A row of the table; the ratio is the median of the ratios of runs side by side."""
    ratio = statistics.median(a / b for a, b in zip(ours, peer))
    return {"name": name, "ours": statistics.median(ours), "peer": statistics.median(peer), "ratio": ratio, "unit": "images/s"}


def side_by_side(name: str, measure: Callable[[Batches, int, int], float], ours: Batches, usual: Batches, images: int, rounds: int) -> dict:
    """Measure both sides in turn, after a warm-up of each."""
    measure(usual, 0, images), measure(ours, 0, images)
    pairs = [
        (statistics.median(measure(ours, epoch, images) for _ in range(3)), measure(usual, epoch, images)) for epoch in range(1, rounds + 1)
    ]
    return row(name, *zip(*pairs))


def one_view(name: str, text: str, transforms: list, images: Tensor, rounds: int) -> dict:
    """A view on batches beside the transform on one Pillow image after the other, both in this process."""
    view, transform = views.parse(text), T.Compose(transforms)
    pictures = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).contiguous().numpy()]
    indices = torch.arange(len(images))

    def ours(epoch: int) -> float:
        start = time.perf_counter()
        view(images, views.keys(0, epoch, indices))
        return len(images) / (time.perf_counter() - start)

    def usual(epoch: int) -> float:
        start = time.perf_counter()
        for picture in pictures:
            transform(picture)
        return len(pictures) / (time.perf_counter() - start)

    ours(0), usual(0)
    pairs = [(statistics.median(ours(epoch) for _ in range(9)), usual(epoch)) for epoch in range(1, rounds + 1)]
    return row(f"view: {name}", *zip(*pairs))


def run(quick: bool = False) -> list[dict]:
    """Measure everything.

    Args:
        quick: few images and rounds, to see that it runs.

    Returns:
        A row for each measure: name, ours and peer in `unit`, and the ratio of the two.
    """
    count, rounds = (512, 1) if quick else (10_000, 3)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    ours, usual = our_batches(images, labels, views.parse(OURS)), usual_batches(images, labels, USUAL)
    rows = [
        {**side_by_side("input: crop + flip + colour jitter", read, ours, usual, count, rounds), "target": 10.0},
        {**side_by_side("training: small network, batch 128", train, ours, usual, count, rounds), "target": 2.0},
    ]
    return rows + [one_view(name, text, transforms, images[:BATCH], rounds) for name, (text, transforms) in PAIRS.items()]


def main() -> dict:
    """Print the table, and return its rows by name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few images and rounds")
    rows = run(parser.parse_args().quick)
    print(f"{'':40} {'ours':>12} {'usual':>12} {'ratio':>8}")
    for line in rows:
        print(f"{line['name']:40} {line['ours']:12,.0f} {line['peer']:12,.0f} {line['ratio']:7.1f}x  {line['unit']}")
    return {line["name"]: line for line in rows}


if __name__ == "__main__":
    main()
