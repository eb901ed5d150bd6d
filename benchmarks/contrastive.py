"""Contrastive losses and their views, forward and backward on random embeddings of length 128: ours beside lightly's and a plain form.

Seconds are of a forward and a backward pass; MiB are the most bytes that torch holds at once meanwhile, beyond what it held before (less is
better in both). Views are the two of SimCLRv2 for 256 images of 32 px, beside torchvision's transforms on one Pillow image after another.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.transforms as T
from lightly.loss import NTXentLoss
from PIL import Image
from torch import Tensor

from retinue.data import views
from retinue.losses.contrastive import nt_xent
from retinue.losses.self_contrastive import SelfConLoss
from retinue.pretrain.simclr_v2 import contrastive_views

DIM, CLASSES, SIDE, IMAGES = 128, 10, 32, 256
Loss = Callable[[Tensor, Tensor], Tensor]


def plain_nt_xent(z1: Tensor, z2: Tensor) -> Tensor:
    """One cross-entropy over the whole matrix of similarities."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    logits = (z @ z.T / 0.1).masked_fill(torch.eye(len(z), dtype=torch.bool), -1e9)
    count = len(z1)
    return F.cross_entropy(logits, torch.cat([torch.arange(count) + count, torch.arange(count)]))


def plain_selfcon(z1: Tensor, z2: Tensor) -> Tensor:
    """The supervised loss as it is usually written: a matrix of logarithms, and a mask of the positives."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    labels = (torch.arange(len(z1)) % CLASSES).repeat(2)
    own = torch.eye(len(z), dtype=torch.bool)
    logarithms = (z @ z.T / 0.1).masked_fill(own, -1e9).log_softmax(1)
    positives = (labels[:, None] == labels) & ~own
    return -(logarithms.masked_fill(~positives, 0).sum(1) / positives.sum(1)).mean()


def seconds(loss: Loss, embeddings: tuple[Tensor, Tensor]) -> float:
    """Time a forward and a backward pass."""
    started = time.perf_counter()
    torch.autograd.grad(loss(*embeddings), embeddings)
    return time.perf_counter() - started


def watched(loss: Loss, embeddings: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Measure the time of a forward and a backward pass, and the most MiB held at once, by the profiler's record of the allocator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        took = seconds(loss, embeddings)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return took, most / 2**20


def compare(name: str, ours: Loss, peer: Loss, images: int, rounds: int) -> list[dict[str, Any]]:
    """Measure time and memory of both in turn; without rounds, the time is that of the pass whose memory was measured."""
    generator = torch.Generator().manual_seed(0)
    embeddings = tuple(torch.randn(images, DIM, generator=generator).requires_grad_() for _ in range(2))
    (one, mine), (other, theirs) = watched(ours, embeddings), watched(peer, embeddings)  # type: ignore[arg-type]
    pairs = [(seconds(ours, embeddings), seconds(peer, embeddings)) for _ in range(rounds)] or [(one, other)]  # type: ignore[arg-type]
    ratio = statistics.median(a / b for a, b in pairs)
    taken = [statistics.median(values) for values in zip(*pairs)]
    target = {"target": 0.25, "lower": True} if images >= 8192 else {}
    return [
        {"name": f"{name}, {images} images", "ours": taken[0], "peer": taken[1], "ratio": ratio, "unit": "s"},
        {"name": f"{name}, {images} images, memory", "ours": mine, "peer": theirs, "ratio": mine / theirs, "unit": "MiB", **target},
    ]


def two_views(rounds: int) -> dict[str, Any]:
    """Measure both views of a batch of images, in this process."""
    images = torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    view, indices = views.parse(contrastive_views((SIDE, SIDE), 0.5)), torch.arange(IMAGES)
    transform = T.Compose(
        [
            T.RandomResizedCrop(SIDE, interpolation=T.InterpolationMode.BICUBIC), T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8), T.RandomGrayscale(0.2), T.ToTensor(),
        ]
    )  # fmt: skip
    pictures = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).contiguous().numpy()]

    def ours(epoch: int) -> float:
        started = time.perf_counter()
        own = views.keys(0, epoch, indices)
        for number in range(2):
            view(images, views.derive(own, number)).float().div_(255)
        return IMAGES / (time.perf_counter() - started)

    def usual() -> float:
        started = time.perf_counter()
        for _ in range(2):
            torch.stack([transform(picture) for picture in pictures])
        return IMAGES / (time.perf_counter() - started)

    ours(0), usual()
    mine, theirs = zip(*((statistics.median(ours(epoch) for _ in range(5)), usual()) for epoch in range(1, rounds + 1)))
    ratio = statistics.median(a / b for a, b in zip(mine, theirs))
    figures = {"ours": statistics.median(mine), "peer": statistics.median(theirs), "ratio": ratio}
    return {"name": "two views of each image, beside torchvision's", **figures, "unit": "images/s", "target": 5.0}


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Measure everything.

    Args:
        quick: few images and rounds, to see that it runs.
    """
    lightly = NTXentLoss(temperature=0.1)
    rows = []
    for images, rounds in ((64, 2),) if quick else ((128, 25), (512, 9), (2048, 3), (8192, 0)):
        rows += compare("NT-Xent beside lightly's", lambda a, b: nt_xent(a, b, 0.1), lightly, images, rounds)
        rows += compare("NT-Xent beside the plain form", lambda a, b: nt_xent(a, b, 0.1), plain_nt_xent, images, rounds)
        labels = torch.arange(images) % CLASSES
        ours = lambda a, b, labels=labels: SelfConLoss(0.1)(F.normalize(torch.stack([a, b], 1), dim=-1), labels)  # noqa: E731
        rows += compare("SelfCon, two exits, beside the plain form", ours, plain_selfcon, images, rounds)
    return [*rows, two_views(1 if quick else 5)]
