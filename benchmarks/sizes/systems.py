"""The networks of every size that each system gives for one budget: the multiply-adds of training one network, `PARENT`.

Each system spends as much, teachers and searches included, and so does each network from scratch.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import retinue
from retinue.compress import IMP, N2N, SpanTraining
from retinue.data import Data
from retinue.engine.seeds import seed_all
from retinue.grow import HyperTraining, save_network, train_learngene_pool, train_mixture_growth, train_sws
from retinue.models import count_macs

DATA, SIDE, IMAGES, TEST = "cifar10", 16, 4000, 2000
PARENT: dict[str, Any] = {"name": "cifar_resnet", "depth": 14, "width": 16}
VIT: dict[str, Any] = {"name": "timm:vit_tiny_patch16_224", "num_heads": 4, "mlp_ratio": 2, "patch_size": 4, "weight_init": "jax"}
WIDE, LAYERS = 64, 6
EPOCHS = 40  # of the parent: the budget
MOST = 100  # epochs of any training, also where the budget allows more
PASSES = 3  # of a training step, beside one forward pass
VIEWS = "crop(2), flip"
BATCH = 64
CNN_FIT: dict[str, Any] = {"optimizer": "momentum", "lr": 0.05, "weight_decay": 5e-4, "schedule": "cosine", "batch_size": BATCH}
VIT_FIT: dict[str, Any] = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "schedule": "cosine", "batch_size": BATCH}


class Study:
    """What all systems share: the data, the budget, and the folder of one run."""

    def __init__(self, folder: Path, quick: bool, seed: int = 0) -> None:
        self.folder, self.seed, self.quick = folder, seed, quick
        self.images, self.epochs = (200, 1.0) if quick else (IMAGES, EPOCHS)
        self.data: Data = retinue.data.open(
            DATA, input_size=SIDE, train_images=self.images, test_images=100 if quick else TEST, val_fraction=0.1, seed=seed
        )
        self.passes = PASSES * len(self.data.train)
        self.budget = self.passes * count_macs(self.build(**PARENT), SIDE) * self.epochs

    def build(self, **made: Any) -> nn.Module:
        """Build a network for the data, with weights of the seed."""
        seed_all(self.seed)
        return retinue.create_model(**made, num_classes=10, input_size=SIDE)

    def epochs_of(self, share: float, *networks: nn.Module) -> float:
        """Return for how many epochs a share of the budget trains some networks, each."""
        return min(MOST, share * self.budget / (self.passes * sum(count_macs(network, SIDE) for network in networks)))


Rows = list[dict[str, Any]]


def scratch(study: Study) -> Rows:
    """Ordinary networks, each trained for the whole budget."""
    rows = []
    for kind, width, made, settings in (
        *(("CNN", width, {**PARENT, "width": width}, CNN_FIT) for width in (4, 8, 16)),
        *(("ViT", depth, {**VIT, "embed_dim": WIDE, "depth": depth}, VIT_FIT) for depth in (3, LAYERS)),
    ):
        name, network = f"scratch-{kind}-{width}", study.build(**made)
        retinue.fit(
            network, retinue.train.Supervised(), study.data, epochs=study.epochs_of(1, network), views=VIEWS, seed=study.seed,
            run_dir=study.folder / name, progress=False, eval_every=1 << 20, **settings,
        )  # fmt: skip
        rows.append({"system": f"from scratch, {kind}", "size": f"{'width' if kind == 'CNN' else 'depth'} {width}", "folder": name})
    return rows


def tickets(study: Study) -> Rows:
    """Three rounds of pruning to 40 percent; a quarter of the budget for each training."""
    network: Any = study.build(**PARENT)
    steps = int(study.epochs_of(0.25, network) * -(-len(study.data.train) // BATCH))
    search = IMP(
        lambda: network, SpanTraining(study.data, steps=steps, views=VIEWS, **CNN_FIT), steps=steps, rewind_step=steps // 20, levels=3,
        fraction=0.6, seed=study.seed, run_dir=study.folder / "lottery-ticket",
    )  # fmt: skip
    rows = []
    for number, level in enumerate(search.run()[1:], start=1):
        network.load_state_dict(level.weights)
        name = f"lottery-ticket/ordinary-{number}"
        save_network(network, study.data, study.folder / name)
        kept = sum(int(level.mask[name].sum()) if name in level.mask else p.numel() for name, p in network.named_parameters())
        rows.append({"system": "lottery-ticket", "size": f"{100 * level.density:.0f} % left", "folder": name, "parameters": kept})
    return rows


def n2n(study: Study) -> Rows:
    """A teacher for half of the budget, a search for about a quarter, and the student that is found for the rest."""
    teacher = study.build(**PARENT)
    common: dict[str, Any] = {"seed": study.seed, "progress": False}
    retinue.fit(
        teacher, retinue.train.Supervised(), study.data, epochs=study.epochs_of(0.5, teacher), views=VIEWS, run_dir=study.folder / "n2n-t",
        eval_every=1 << 20, **CNN_FIT, **common,
    )  # fmt: skip
    teacher = retinue.load(study.folder / "n2n-t")
    epochs, rollouts = (1, 2) if study.quick else (8, 5)
    steps = max(2, int(study.epochs_of(0.25, teacher) * len(study.data.train) / BATCH / (2 * epochs * rollouts)))
    final = {**CNN_FIT, "epochs": study.epochs_of(0.25, teacher), "views": VIEWS}
    search = N2N(
        teacher, study.data, student_fit={"max_steps": steps, "lr": 2e-3, "batch_size": BATCH}, final_fit=final,
        run_dir=study.folder / "n2n", **common,
    )  # fmt: skip
    search.run(epochs, rollouts)
    return [{"system": "n2n", "size": "found", "folder": "n2n/student"}]


def mixture_growth(study: Study) -> Rows:
    """Two members and what grows out of them, a third of the budget each."""
    wide, narrow = study.build(**PARENT), study.build(**{**PARENT, "width": PARENT["width"] // 2})
    member = study.epochs_of(1 / 3, narrow)
    train_mixture_growth(
        wide, study.data, member_epochs=(member, member), grown_epochs=study.epochs_of(1 / 3, wide), lr_member=0.05, lr_grown=0.02,
        schedule_grown="cosine", twin=None, batch_size=BATCH, optimizer="momentum", weight_decay=5e-4, views=VIEWS, seed=study.seed,
        run_dir=study.folder / "mixture-growth", progress=False,
    )  # fmt: skip
    sizes = {"member 0": "member-0", "grown": "grown"}
    return [{"system": "mixture-growth", "size": told, "folder": f"mixture-growth/ordinary/{name}"} for told, name in sizes.items()]


def sws(study: Study) -> Rows:
    """A convolutional teacher, an auxiliary network of shared layers, and four descendants: 30, 40 and 30 percent of the budget."""
    made = {"patch_size": 4, "embed_dim": WIDE, "num_heads": 4, "mlp_ratio": 2, "init": "torch"}
    auxiliary, teacher = study.build(name="stage_shared_vit", stages=[2, 2, 2], **made), study.build(**PARENT)
    depths = (3, 4, 6, 8)
    sizes = [study.build(name="stage_shared_vit", stages=[depth], **made) for depth in depths]
    asked = study.passes * (count_macs(auxiliary, SIDE) + count_macs(teacher, SIDE) / PASSES)
    train_sws(
        auxiliary, study.data, teacher=PARENT["name"], teacher_args={k: v for k, v in PARENT.items() if k != "name"},
        teacher_fit={**CNN_FIT, "epochs": study.epochs_of(0.3, teacher)},
        auxiliary_fit={"epochs": 0.4 * study.budget / asked, "batch_size": BATCH, "lr": 3e-3, "warmup_epochs": 0}, depths=depths,
        descendant_fit={"epochs": study.epochs_of(0.3, *sizes), "batch_size": BATCH, "lr": 5e-4},
        scratch_fit={"epochs": None, "max_steps": 1}, views=VIEWS, seed=study.seed, run_dir=study.folder / "sws", progress=False,
    )  # fmt: skip
    return [{"system": "sws", "size": f"depth {depth}", "folder": f"sws/depth-{depth}"} for depth in depths]


def learngene_pool(study: Study) -> Rows:
    """An ancestry, two instances and their pool: a third of the budget each."""
    depth, widths = LAYERS // 2, (WIDE // 2, WIDE)
    ancestry = study.build(**{**VIT, "embed_dim": WIDE, "depth": LAYERS})
    made = [{**VIT, "embed_dim": width, "depth": depth, "num_heads": width // 16} for width in widths]
    small = [study.build(**one) for one in made]
    third = study.budget / 3 / study.passes
    each = sum(count_macs(network, SIDE) + count_macs(ancestry, SIDE) / PASSES for network in small)
    joint = sum(count_macs(network, SIDE) for network in small) / 2 + count_macs(ancestry, SIDE) / PASSES
    train_learngene_pool(
        ancestry, study.data, instances=made, ancestry_epochs=study.epochs_of(1 / 3, ancestry), instance_epochs=third / each,
        pool_epochs=third / joint, batch_size=BATCH, lr=1e-3, lr_pool=1e-3, twins=None, views=VIEWS, seed=study.seed,
        run_dir=study.folder / "learngene-pool", progress=False,
    )  # fmt: skip
    names = sorted(path.name for path in (study.folder / "learngene-pool" / "ordinary").iterdir())
    return [{"system": "learngene-pool", "size": name, "folder": f"learngene-pool/ordinary/{name}"} for name in names]


def hypernetworks(study: Study) -> Rows:
    """Hypernetworks of about a half and a quarter of the parent's weights, half of the budget each, generation left out of account."""
    rows = []
    for token, told in ((32, "larger"), (12, "smaller")):
        name, parent = f"hypernetworks-{told}", study.build(**PARENT)
        objective = HyperTraining(options={
            "condition": "task", "emit": "chunk", "chunk_size": 512, "token_dim": token, "trunk": "linear", "init": "match",
        })  # fmt: skip
        run = retinue.fit(
            parent, objective, study.data, epochs=study.epochs_of(0.5, parent), batch_size=BATCH, optimizer="adam", lr=3e-3,
            weight_decay=0.0, schedule="cosine", views=VIEWS, seed=study.seed, run_dir=study.folder / f"{name}-run", progress=False,
            eval_every=1 << 20,
        )  # fmt: skip
        model: Any = run.model
        save_network(model.materialise(), study.data, study.folder / name)
        rows.append({"system": "hypernetworks", "size": told, "folder": name, "parameters": model.num_hyper})
    return rows


SYSTEMS: dict[str, Callable[[Study], Rows]] = {
    "learngene-pool": learngene_pool, "sws": sws, "scratch": scratch, "n2n": n2n, "lottery-ticket": tickets,
    "mixture-growth": mixture_growth, "hypernetworks": hypernetworks,
}  # fmt: skip


def run(job: tuple[str, Path, bool]) -> tuple[str, Rows]:
    """Run one system in a process of its own, on one thread."""
    name, folder, quick = job
    torch.set_num_threads(1)
    started = time.process_time()
    rows = SYSTEMS[name](Study(folder, quick))
    print(f"{name}: {time.process_time() - started:.0f} s", flush=True)
    return name, rows
