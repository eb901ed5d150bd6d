"""imaginet: a detector pre-trained by self-contrast is as good as one trained by cross-entropy, after recompression too.

The page's experiment: photographs, and four makeshift generators fitted to them: Gaussian scores of 20 principal components, samples of a
small variational autoencoder, images put together of other images' patches, and, seen in the test alone, reconstructions by an
autoencoder. CIFAR-100 is taken, as its copy is stored without losses. Beside it stands CIFAKE, real photographs and images of Stable
Diffusion, whose files differ in their compression: its numbers are reported, and judge nothing. What DALL-E or Midjourney leave in images
of 256 px cannot be tested here.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from torch import Tensor, nn

import retinue
from retinue.audit.imaginet import balanced_images, fit_calibration, synthetic_logit
from retinue.audit.imaginet_perturbations import SocialNetworkPerturbation
from retinue.audit.imaginet_report import TwoTrackReport, two_track_report
from retinue.audit.imaginet_stages import families_table, train_detector
from retinue.claims.harness import Budget, Figures, pooled_standard_error, standard_error
from retinue.data import Data, Split, from_arrays
from retinue.data.annotations import by_origin
from retinue.data.store import MemoryStore
from retinue.data.views.perturbations import training_views
from retinue.engine import Supervised
from retinue.engine.seeds import own_randomness, seed_all
from retinue.pretrain.selfcon import SelfCon

RULE = (
    "on CIFAR-100 and four makeshift generators at 32 px, over 3 seeds, under the perturbed test (crop, resize, JPEG or WebP 60-100): (3) "
    "the balanced accuracy, mean over families, is higher with the perturbation block in training than without, by more than the pooled "
    "standard error; and (1) the AUC, mean over families, is not lower than that of the same network trained by cross-entropy with the "
    "same views, by more than one pooled standard error; the AUC on the held-out generator, and that on CIFAKE, are reported"
)
DATA = ("cifar100", "cifake")
FAMILIES = ("real", "principal components", "autoencoder samples", "patches", "reconstructions")
HELD_OUT = FAMILIES[-1]
SIDE, SMALLEST = 32, 24  # pixels: of the images, and of the crops of the perturbed test
MADE, TESTED = 400, 150  # images of each generator for training and validation, and for the test
EFFECTS = {
    "AUC, perturbed, self-contrast - cross-entropy": ("auc_perturbed", "auc_perturbed_ce"),
    "AUC on the held-out generator, perturbed, self-contrast - cross-entropy": ("auc_held_out", "auc_held_out_ce"),
    "balanced accuracy, perturbed, with - without the perturbation block": ("accuracy_perturbed", "accuracy_perturbed_plain"),
}


def measure(seed: int, budget: Budget) -> dict[str, Any]:
    """One seed: AUC and balanced accuracy of three detectors on clean and perturbed test images, and of one on CIFAKE."""
    data = synthetic_data(seed, budget)
    dirty = replace(data, test=perturbed(data.test, seed))
    ours = selfcon(data, budget, seed)
    plain = selfcon(data, budget, seed, perturb=False)
    theirs = cross_entropy(data, budget, seed)
    held = balanced_images(by_origin(data).val, 80, seed)
    clean, shaken = (judged(ours.origin, one, held) for one in (data, dirty))
    bare = judged(plain.origin, dirty, held)
    clean_ce, shaken_ce = judged(theirs, data, held), judged(theirs, dirty, held)
    figures = {
        "auc_clean": clean.mean.auc, "auc_perturbed": shaken.mean.auc, "auc_clean_ce": clean_ce.mean.auc,
        "auc_perturbed_ce": shaken_ce.mean.auc, "auc_held_out": shaken.families[HELD_OUT].auc,
        "auc_held_out_ce": shaken_ce.families[HELD_OUT].auc, "accuracy_perturbed": shaken.mean.accuracy,
        "accuracy_perturbed_ce": shaken_ce.mean.accuracy, "accuracy_perturbed_plain": bare.mean.accuracy,
        "auc_perturbed_plain": bare.mean.auc, "which_family": ours["which family"]["accuracy"],
    }  # fmt: skip
    return figures | on_cifake(seed, budget)


def shown(figures: Figures) -> bool:
    """Judge by `RULE`."""
    return all(parts(figures).values())


def parts(figures: Figures) -> dict[str, bool]:
    """Judge both parts of `RULE`."""
    gain = figures["accuracy_perturbed"].mean() - figures["accuracy_perturbed_plain"].mean()
    lead = figures["auc_perturbed"].mean() - figures["auc_perturbed_ce"].mean()
    return {
        "(3) the perturbation block helps": bool(
            gain > pooled_standard_error(figures["accuracy_perturbed"], figures["accuracy_perturbed_plain"])
        ),
        "(1) not below cross-entropy": bool(lead > -pooled_standard_error(figures["auc_perturbed"], figures["auc_perturbed_ce"])),
    }


def synthetic_data(seed: int, budget: Budget) -> Data:
    """Make the data: photographs, and images of three generators for training and validation, of four for the test."""
    made, tested = budget.pick(laptop=(MADE, TESTED), smoke=(40, 12))
    source = retinue.data.open(budget.pick(laptop="cifar100", smoke="digits"), input_size=SIDE, channels=3, seed=seed)
    random = np.random.default_rng(seed)
    photographs = source.train.images(random.permutation(len(source.train))[: 4 * made].tolist())
    others = source.test.images(random.permutation(len(source.test))[: 4 * tested].tolist())
    with own_randomness():
        seed_all(seed)
        generators = fit_generators(photographs, steps=budget.pick(laptop=400, smoke=5))
        learned = [generators[i](made + tested, photographs) for i in range(3)]
        held_out = generators[3](tested, others[3 * tested :])
    real = torch.cat([photographs[: 3 * made], others[: 3 * tested]])
    groups = [real, *learned, held_out]
    testing = [torch.arange(len(group)) >= len(group) - (3 * tested if i == 0 else tested) for i, group in enumerate(groups)]
    drawn = [torch.rand(len(group), generator=torch.Generator().manual_seed(seed + i)) < 0.12 for i, group in enumerate(groups)]
    split = [
        "test" if last else "val" if chosen else "train"
        for tests, vals in zip(testing, drawn)
        for last, chosen in zip(tests.tolist(), vals.tolist())
    ]
    labels = torch.cat([torch.full((len(group),), i) for i, group in enumerate(groups)])
    return from_arrays(torch.cat(groups), labels, classes=list(FAMILIES), split=split, name="photographs and four generators")


def selfcon(data: Data, budget: Budget, seed: int, perturb: bool = True) -> Any:
    """Train a detector by the paper's stages; its heads see the views that the network by cross-entropy sees."""
    seen = learned_families(data)
    return train_detector(
        network(seed), seen, objective=lambda model, data: SelfCon(model, data, real="real", feat_dim=32), perturb=perturb,
        pretrain_fit=training(budget), head_fit=heading(budget), head_views="training", seed=seed, progress=False,
    )  # fmt: skip


def cross_entropy(data: Data, budget: Budget, seed: int) -> nn.Module:
    """Train the same network by cross-entropy on the origin, with the same views and settings."""
    origins = by_origin(learned_families(data))
    model = network(seed, num_classes=2)
    return retinue.fit(model, Supervised(), origins, views=training_views(SIDE), **training(budget), seed=seed, progress=False).model


def training(budget: Budget) -> dict[str, Any]:
    """Return the settings of a training, the same for all."""
    return {
        "epochs": budget.pick(laptop=10, smoke=1), "batch_size": 128, "optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4,
        "schedule": "cosine", "warmup_epochs": budget.pick(laptop=1, smoke=0), "clip_grad": 1.0,
    }  # fmt: skip


def heading(budget: Budget) -> dict[str, Any]:
    """Return the settings of the heads on the frozen network; their rate is ten times the paper's, as they take so few steps."""
    return {
        "epochs": budget.pick(laptop=5, smoke=1), "batch_size": 128, "optimizer": "adam", "lr": 1e-3, "weight_decay": 1e-3,
        "schedule": "cosine",
    }  # fmt: skip


def network(seed: int, num_classes: int = 0) -> nn.Module:
    """Build the small ResNet (16, 32 and 64 channels), of whose stages the second has the side exit."""
    with own_randomness():
        seed_all(seed)
        return retinue.create_model("cifar_resnet", depth=8, num_classes=num_classes, input_size=SIDE)


def learned_families(data: Data) -> Data:
    """Leave the held-out generator out of the test split, and out of the classes."""
    classes = list(FAMILIES[:-1])
    cut = {}
    for name in ("train", "val", "test"):
        split: Split = getattr(data, name)
        cut[name] = replace(split.subset((split.labels < len(classes)).nonzero()[:, 0]), classes=classes)
    return replace(data, train=cut["train"], val=cut["val"], test=cut["test"], classes=classes)


def perturbed(split: Split, seed: int) -> Split:
    """Perturb all images of a split, once."""
    images = SocialNetworkPerturbation(SMALLEST, SIDE, seed=seed, size=SIDE).all(split.images())
    return replace(split, store=MemoryStore(images), positions=torch.arange(len(split)))


def judged(model: nn.Module, data: Data, held: Split) -> TwoTrackReport:
    """Calibrate a classifier of real and synthetic on held-out images, and judge it on the test images."""
    calibration = fit_calibration(synthetic_logit(model, held), held.labels)
    table, names = families_table(data.test)
    scores = calibration.slope * synthetic_logit(model, data.test) + calibration.intercept
    return two_track_report(scores, None, table, families=names)


def on_cifake(seed: int, budget: Budget) -> dict[str, float]:
    """Train a detector on 1,800 images of CIFAKE: AUC and balanced accuracy on its test images, clean and perturbed."""
    data = retinue.data.open(
        budget.pick(laptop="cifake", smoke="digits"), input_size=SIDE, channels=3, train_images=budget.pick(laptop=1800, smoke=200),
        test_images=budget.pick(laptop=600, smoke=60), seed=seed,
    )  # fmt: skip
    real = data.classes[0]
    data = replace(data, val=data.val.subset(range(min(len(data.val), 300))))
    found = train_detector(
        network(seed), data, objective=lambda model, data: SelfCon(model, data, real=real, feat_dim=32), real=real,
        pretrain_fit=training(budget), head_fit=heading(budget), head_views="training", seed=seed, progress=False,
    )  # fmt: skip
    table, names = families_table(data.test, real)
    rows = {
        name: two_track_report(synthetic_logit(found.origin, split), None, table, families=names).mean
        for name, split in (("clean", data.test), ("perturbed", perturbed(data.test, seed)))
    }
    return {f"cifake_{kind}_{name}": getattr(row, kind) for name, row in rows.items() for kind in ("auc", "accuracy")}


class Bottleneck(nn.Module):
    """An autoencoder of two layers each way; variational, where `noisy`."""

    def __init__(self, length: int, code: int, noisy: bool) -> None:
        super().__init__()
        self.code, self.noisy = code, noisy
        self.encode = nn.Sequential(nn.Linear(length, 256), nn.ReLU(), nn.Linear(256, 2 * code if noisy else code))
        self.decode = nn.Sequential(nn.Linear(code, 256), nn.ReLU(), nn.Linear(256, length))

    def loss(self, x: Tensor) -> Tensor:
        """Compute the error of the reconstruction, summed over pixels, and the divergence of the code from the normal distribution."""
        mean, spread = self.encode(x).chunk(2, dim=1) if self.noisy else (self.encode(x), None)
        if spread is None:
            return F.mse_loss(self.decode(mean), x) * x.shape[1]
        code = mean + torch.randn_like(mean) * (spread / 2).exp()
        divergence = 0.5 * (spread.exp() + mean.square() - 1 - spread).sum(1).mean()
        return F.mse_loss(self.decode(code), x) * x.shape[1] + 0.02 * divergence

    def fitted(self, x: Tensor, steps: int) -> "Bottleneck":
        """Learn from rows in [0, 1]."""
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            self.loss(x[torch.randint(len(x), (128,))]).backward()
            optimizer.step()
        return self


def fit_generators(photographs: Tensor, steps: int) -> list[Any]:
    """Fit the four generators to photographs; each is a function of how many images and of photographs to work on."""
    rows = photographs.flatten(1).float() / 255
    components = PCA(min(20, len(rows) - 1), random_state=0).fit(rows.numpy())
    deviations = torch.from_numpy(np.sqrt(components.explained_variance_)).float()
    sampler = Bottleneck(rows.shape[1], 32, noisy=True).fitted(rows, steps)
    copier = Bottleneck(rows.shape[1], 64, noisy=False).fitted(rows, steps)
    shape = photographs.shape[1:]

    def bytes_of(x: Tensor) -> Tensor:
        return (x.detach().clamp(0, 1) * 255).round().to(torch.uint8).unflatten(1, shape)

    def from_components(count: int, some: Tensor) -> Tensor:
        scores = torch.randn(count, len(deviations)) * deviations
        return bytes_of(torch.from_numpy(components.inverse_transform(scores.numpy())).float())

    def samples(count: int, some: Tensor) -> Tensor:
        return bytes_of(sampler.decode(torch.randn(count, sampler.code)))

    def reconstructions(count: int, some: Tensor) -> Tensor:
        return bytes_of(copier.decode(copier.encode(some[:count].flatten(1).float() / 255)))

    return [from_components, samples, partial(patchwork, library=photographs), reconstructions]


def patchwork(count: int, some: Tensor, library: Tensor, most: int = 800) -> Tensor:
    """Put images together of the nearest patches of other images: of 16 px, then of 8 px where the result is looked at again."""
    pool, images = library[:most].float(), some[torch.arange(count) % len(some)].float()
    own = torch.arange(count) % len(some)
    for side in (16, 8):
        patches, bank = _patches(pool, side), _patches(images, side)
        owners = torch.arange(len(pool)).repeat_interleave(patches.shape[1])
        flat = patches.flatten(0, 1)
        found = torch.empty_like(bank)
        for i in range(count):
            distance = flat.square().sum(1) - 2 * bank[i] @ flat.T
            distance[:, owners == own[i]] = torch.inf
            found[i] = flat[distance.argmin(1)]
        images = F.fold(found.transpose(1, 2), images.shape[-2:], side, stride=side)
    return images.round().to(torch.uint8)


def _patches(images: Tensor, side: int) -> Tensor:
    return F.unfold(images, side, stride=side).transpose(1, 2).contiguous()


def draw(figures: Figures, folder: Path) -> None:
    """Draw AUC under the perturbed test, of all generators and of the held-out one, and balanced accuracy with and without the block."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9, 3.6), layout="constrained")
    areas, accuracies = picture.subplots(1, 2, width_ratios=(3, 2))
    bars = {
        areas: [("auc_perturbed", "self-contrast,\nall"), ("auc_perturbed_ce", "cross-entropy,\nall"),
                ("auc_held_out", "self-contrast,\nheld out"), ("auc_held_out_ce", "cross-entropy,\nheld out")],
        accuracies: [("accuracy_perturbed", "with the\nblock"), ("accuracy_perturbed_plain", "without")],
    }  # fmt: skip
    for axes, names in bars.items():
        for place, (name, _) in enumerate(names):
            values = figures[name]
            color = "grey" if place % 2 else "tab:blue"
            axes.bar(place, values.mean(), yerr=standard_error(values), color=color, alpha=0.5, capsize=4)
            axes.plot([place] * len(values), values, "o", color="black", markersize=3)
        axes.set(xticks=range(len(names)), xticklabels=[label for _, label in names], ylim=(0.4, 1.02))
    areas.set(ylabel="AUC, mean over families", title="perturbed test")
    accuracies.set(ylabel="balanced accuracy", title="perturbed test, self-contrast")
    picture.savefig(folder / "imaginet.png", dpi=110)
