"""MixtureGrowth from the first member to the wide network, with what each phase costs (Pham et al. 2024, arXiv 2311.04251, section 4)."""

import copy
import csv
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from retinue.data import Data, Loader
from retinue.engine import Supervised, checkpoint, evaluating, fit, judge, stages
from retinue.engine.optim import make_optimizer
from retinue.engine.run import facts
from retinue.engine.seeds import own_randomness, seed_all
from retinue.errors import ArgumentError, CheckpointError, unknown
from retinue.grow.mixture_growth import MixtureGrowth, MixtureGrowthNet, convert, grow, materialise
from retinue.grow.mixture_growth_costs import PASSES, TWINS, GrowthPlan, Twin, multiply_adds, parameters, sizes
from retinue.models import create_model
from retinue.models.template_weights import Init, OrthogonalMode

State = dict[nn.Parameter, dict[str, Any]]


@torch.no_grad()
def refresh_norms(model: nn.Module, loader: Loader) -> None:
    """Compute the running statistics of batch norms anew, as the mean over one pass of the data.

    Args:
        model: such as one that has just grown, where statistics of the members do not fit any more.
        loader: of the training images.
    """
    norms: list[Any] = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all batches
            norm.train()
        try:
            for batch in loader.batches():
                model(batch.images)
        finally:
            for norm, momentum in zip(norms, before):
                norm.momentum = momentum


@torch.no_grad()
def ensemble(model: MixtureGrowthNet, loader: Loader) -> dict[str, float]:
    """Measure the sum of the members' logits, before growth: what "zero" begins with.

    Args:
        model: a `MixtureGrowthNet`.
        loader: of held-out images.
    """
    with evaluating(model):
        pairs = [((model(batch.images, member=0) + model(batch.images, member=1)).float(), batch.labels) for batch in loader.batches()]
    return judge(torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs]))


def save_ordinary(model: MixtureGrowthNet, member: int | None, data: Data, folder: str | Path) -> nn.Module:
    """Write the ordinary network of a member, or of what has grown, so that `retinue.load` reads it; and return it.

    Args:
        model: a `MixtureGrowthNet`.
        member: 0, 1 or None.
        data: what it is for: classes and preprocessing are written with it.
        folder: is made.

    Raises:
        CheckpointError: if it cannot be written.
    """
    network = materialise(model, member)
    checkpoint.save(Path(folder), network.state_dict(), facts(network, data, 0, {}))
    return network


def optimizer_state(folder: Path, objective: MixtureGrowth, model: nn.Module, optimizer: str) -> State:
    """Read what the optimiser of a finished phase remembers of each parameter from the run's last checkpoint.

    Args:
        folder: of the run.
        objective: of the phase.
        model: the network as it was trained, before growth.
        optimizer: its name.

    Raises:
        CheckpointError: if there is no whole checkpoint.
    """
    found, refused = checkpoint.newest_valid(folder / "checkpoints", "step-")
    if found is None or found.training is None:
        raise CheckpointError(f"train_mixture_growth: {folder} has no whole checkpoint. {' '.join(refused)} Use keep_optimizer=False.")
    state: State = {}
    for player, own in objective.players(model).items():
        like = make_optimizer(optimizer, own, lr=1.0, weight_decay=1.0, momentum=0.9)  # these are overwritten; groups are not
        like.load_state_dict(found.training["optimizers"][player])
        state |= {parameter: dict(like.state[parameter]) for parameter in own if parameter in like.state}
    return state


@contextmanager
def remembered(state: State) -> Iterator[None]:
    """Let the next optimiser that moves parameters of `state` begin with what others remembered of them; one that is resumed does not.

    Args:
        state: of each parameter.
    """

    def begin(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer.state:
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in state:
                    own = state[parameter]
                    optimizer.state[parameter] = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in own.items()}

    hook = register_optimizer_step_pre_hook(begin)
    try:
        yield
    finally:
        hook.remove()


def train_mixture_growth(
    model: nn.Module,
    data: Data,
    *,
    member_epochs: tuple[float, float] = (200, 200),
    grown_epochs: float = 40,
    lr_member: float = 0.1,
    lr_grown: float = 1e-4,
    init: Init = "orthogonal",
    scale: float = 1.0,
    noise: float = 0.0,
    orthogonal_mode: OrthogonalMode = "exact",
    other_weight: float = 0.0,
    decay_norms: bool = False,
    keep_optimizer: bool = False,
    refresh: bool = False,
    twin: Twin = "cost",
    batch_size: int = 128,
    optimizer: str = "sgd",
    weight_decay: float = 5e-4,
    schedule: str = "cosine",
    warmup_epochs: float = 2.0,
    schedule_grown: str = "cosine",
    warmup_grown: float = 1.0,
    schedule_args_grown: dict[str, Any] | None = None,
    views: str | Callable[..., Any] | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Train two members, grow, train what has grown, and train twins of both widths from scratch.

    Coefficients are not decayed, templates are; in the phase of member 1 only what it is made of. Learning rates begin anew in each phase.

    Args:
        model: a `MixtureGrowthNet`, which is trained in place; or any network that `convert` takes.
        data: labelled images.
        member_epochs: of member 0 and member 1.
        grown_epochs: of the wide network.
        lr_member: learning rate of the members.
        lr_grown: learning rate of the wide network.
        init: of the new coefficients, see `grow`.
        scale: of the new coefficients.
        noise: of `init` "copy".
        orthogonal_mode: of `init` "orthogonal".
        other_weight: of member 0's loss while member 1 is trained.
        decay_norms: decay norms too, as the released code does (and biases of the twins).
        keep_optimizer: after growth, go on with the momentum that the members' optimisers had; it is read from their runs in `run_dir`.
        refresh: compute the running statistics of batch norms anew right after growth (the cost of this pass is not counted).
        twin: train a member and the wide network from scratch too, as ordinary networks, at the members' learning rate: a member for
            `member_epochs` of member 0; the wide network at "cost" for as many multiply-adds as all phases together, at "steps" for
            `grown_epochs`. None does not.
        batch_size: images of an update.
        optimizer: of all phases, by timm's name.
        weight_decay: of templates, and of the twins' weights.
        schedule: of the members and the twins.
        warmup_epochs: of the members and the twins; at most a tenth of what they have.
        schedule_grown: of the wide network.
        warmup_grown: of the wide network; at most a tenth of its epochs.
        schedule_args_grown: what else its schedule takes, such as {"cycle_limit": 4}.
        views: how training images are shown, as in `retinue.fit`.
        seed: of everything random.
        run_dir: the folder; runs stand in its `member-0`, `member-1`, `grown`, `narrow-twin` and `twin`, ordinary networks in
            `ordinary/member-0`, `ordinary/member-1` and `ordinary/grown`, the table of `sizes` in `sizes.csv`, and a finished stage is not
            computed again.
        progress: show a live bar.

    Returns:
        The numbers of `retinue.evaluate` on the test images (on validation images where there are none) under "member 0", "member 1",
        "ensemble" (the sum of the members' logits), "at growth", "grown", "narrow twin" and "twin"; multiply-adds of training under "cost"
        ("member 0", "member 1", "growth", "total", "narrow twin", "twin"), and of one image, forward, under "macs" ("member", "wide");
        "parameters" of "member", "wide" and all "templates"; under "sizes" the table of `sizes`.

    Raises:
        ArgumentError: if a setting cannot be, or the network cannot be converted.
    """
    plan = GrowthPlan(tuple(member_epochs), grown_epochs, lr_member, lr_grown, other_weight > 0)  # type: ignore[arg-type]
    if twin is not None and twin not in TWINS:
        raise unknown("train_mixture_growth", "`twin`", twin, TWINS)
    if keep_optimizer and run_dir is None:
        raise ArgumentError(
            "train_mixture_growth: keep_optimizer=True needs a `run_dir`, from whose checkpoints the members' momentum is read. Name one."
        )
    held_out = data.test if len(data.test) else data.val
    if not len(held_out):
        raise ArgumentError(
            "train_mixture_growth: there are no test and no validation images to measure on. Open the data with test_fraction=0.2."
        )
    with own_randomness():
        seed_all(seed)
        network: Any = model
        if not isinstance(model, MixtureGrowthNet):
            network = convert(model, input_size=data.preprocessing.input_size)
        narrow, wide = materialise(network, 0), fresh(network)
        for weight in copy.deepcopy(network.weights).values():  # what cannot grow is refused before anything is trained
            weight.grow(init, scale, noise, orthogonal_mode)
    macs, counts = multiply_adds(network, data.preprocessing.input_size), parameters(network)
    costs: dict[str, float] = dict(plan.costs(macs, len(data.train)))
    finished = stages(run_dir)
    device = next(network.parameters()).device
    norm_decay = weight_decay if decay_norms else 0.0

    def loader() -> Loader:
        return held_out.loader(256, device=device)

    def phase(
        name: str, trained: nn.Module, objective: Any, epochs: float, lr: float, kind: str, warmup: float, more: Any, options: Any
    ) -> dict[str, Any]:
        run = fit(
            trained, objective, data, epochs=epochs, batch_size=batch_size, optimizer=optimizer, lr=lr, weight_decay=weight_decay,
            schedule=kind, warmup_epochs=min(warmup, epochs / 10), schedule_args=more, views=views, seed=seed,
            run_dir=finished.folder(name), progress=progress, **options,
        )  # fmt: skip
        return {"weights": dict(run.model.state_dict()), "numbers": objective.evaluate(run.model, loader())}

    numbers: dict[str, dict[str, float]] = {}
    momentum: State = {}
    for member in (0, 1):
        objective = MixtureGrowth(member, other_weight if member else 0.0, norm_decay)
        rested = {"players": {"other": {"weight_decay": 0.0}}} if member and other_weight else {}
        done = finished(
            f"member-{member}", phase, f"member-{member}", network, objective, plan.member_epochs[member], lr_member, schedule,
            warmup_epochs, None, rested,
        )  # fmt: skip
        network.load_state_dict(done["weights"])
        numbers[f"member {member}"] = done["numbers"]
        if keep_optimizer and run_dir is not None:
            momentum |= optimizer_state(Path(run_dir) / f"member-{member}", objective, network, optimizer)

    def growth() -> dict[str, Any]:
        together = ensemble(network, loader())
        for member in (0, 1):
            if run_dir is not None:
                save_ordinary(network, member, data, Path(run_dir) / "ordinary" / f"member-{member}")
        with own_randomness():
            seed_all(seed, 1)
            grow(network, init, scale, noise, orthogonal_mode)
        if refresh:
            refresh_norms(network, data.train.loader(256, device=device))
        return {"weights": dict(network.state_dict()), "ensemble": together, "numbers": MixtureGrowth(None).evaluate(network, loader())}

    done = finished("growth", growth)
    network.load_state_dict(done["weights"])
    numbers |= {"ensemble": done["ensemble"], "at growth": done["numbers"]}
    if plan.grown_epochs:
        with remembered(momentum) if keep_optimizer else nullcontext():
            done = finished(
                "grown", phase, "grown", network, MixtureGrowth(None, norm_decay=norm_decay), plan.grown_epochs, lr_grown, schedule_grown,
                warmup_grown, schedule_args_grown, {},
            )  # fmt: skip
        network.load_state_dict(done["weights"])
        numbers["grown"] = done["numbers"]
    network.eval()
    if run_dir is not None and not (Path(run_dir) / "ordinary" / "grown").exists():
        save_ordinary(network, None, data, Path(run_dir) / "ordinary" / "grown")
    scratch = {"narrow twin": (narrow, plan.member_epochs[0], "member"), "twin": (wide, plan.twin_epochs(macs, twin), "wide")}
    for name, (beginner, epochs, kind) in scratch.items() if twin is not None else ():
        if epochs:
            folder = name.replace(" ", "-")
            own = {"optimizer_args": {"filter_bias_and_bn": False}} if decay_norms else {}
            done = finished(folder, phase, folder, beginner, Supervised(), epochs, lr_member, schedule, warmup_epochs, None, own)
            numbers[name] = done["numbers"]
            costs[name] = round(PASSES * macs[kind] * len(data.train) * epochs)
    told: dict[str, dict[str, float]] = {
        **numbers,
        "cost": costs,
        "macs": {name: float(value) for name, value in macs.items()},
        "parameters": {name: float(value) for name, value in counts.items()},
    }
    rows = sizes(told)
    if run_dir is not None:
        _write_table(rows, Path(run_dir) / "sizes.csv")
    return {**told, "sizes": {row["size"]: {key: value for key, value in row.items() if key != "size"} for row in rows}}


def _write_table(rows: list[dict[str, Any]], path: Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[-1]))
    writer.writeheader()
    writer.writerows(rows)
    checkpoint.write_whole(path, text.getvalue().encode())


def fresh(model: MixtureGrowthNet) -> nn.Module:
    """Build the wide network's twin with weights of its own: by its name, or else with each layer's own way to begin.

    Args:
        model: a `MixtureGrowthNet`.
    """
    made = getattr(model.full, "retinue_config", None)
    if made is not None:
        return create_model(made["name"], **made["arguments"])
    network: Any = model.plain(None)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return network
