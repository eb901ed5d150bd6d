"""NoProp networks: blocks that clean a noisy label, given the image (Li, Teh and Pascanu 2025, arXiv 2503.24322).

`NoPropDT` has a block for each step, and each learns alone; `NoPropCT` and `NoPropFM` have one block for all times. `retinue.train.NoProp`
trains them, and builds one around any backbone. Trained by `retinue.train.Supervised` instead, they are back-propagated through all steps.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError, unknown
from retinue.models.factory import create_model, image_size, register
from retinue.models.noprop_blocks import Block, Embed, Images, Labels
from retinue.models.noprop_net import Draw, NoPropNet, check_eta, check_solver, integrate
from retinue.models.noprop_schedule import Coefficients, CosineSchedule, LearnedSchedule, check_steps
from retinue.models.protocol import adapt, config

__all__ = ["NoPropCT", "NoPropDT", "NoPropFM", "NoPropNet", "around", "noprop_ct", "noprop_dt", "noprop_fm"]

Backbone = str | Callable[[], nn.Module] | None
CFG = {"input_size": (3, 32, 32), "crop_pct": 1.0, "first_conv": None, "classifier": "readout.linear"}


class NoPropDT(NoPropNet):
    """NoProp in discrete time: T blocks, each of which learns alone from labels noisy as at its own step.

    Args:
        num_classes: classes.
        in_chans: channels of the images.
        img_size: side of the images, or height and width.
        num_blocks: T.
        embed: of the labels.
        embed_dim: length of a learned embedding.
        eta: weight of the denoising loss.
        schedule: gives abar at t = 0, ..., T.
        options: of `NoPropNet`.

    Raises:
        ArgumentError: if an argument or the schedule cannot be.

    >>> model = NoPropDT(10, 1, 8, num_blocks=4, widths=(), hidden=16)
    >>> [round(value, 6) for value in model.times.a]
    [0.360154, 0.585786, 0.765367, 0.93641]
    """

    times: Coefficients

    def __init__(
        self,
        num_classes: int,
        in_chans: int,
        img_size: int | tuple[int, int],
        num_blocks: int = 10,
        embed: Embed = "onehot",
        embed_dim: int | None = None,
        eta: float = 0.1,
        schedule: Callable[[int], Sequence[float]] = CosineSchedule(),
        **options: Any,
    ) -> None:
        times = check_steps(num_blocks, schedule)
        check_eta(eta)
        super().__init__(num_classes, in_chans, img_size, embed, embed_dim, count=num_blocks, **options)
        self.times, self.eta, self.draws = times, eta, num_blocks + 1
        largest = max(map(self.weight, range(1, num_blocks + 1)))
        if not largest < torch.finfo(torch.get_default_dtype()).max:
            raise ArgumentError(
                f"noprop: the weight of a block overflows, as `eta` is {eta} and SNR(T) {times.snr[-1]:g}. Lower `eta`, or end the "
                "schedule at 0.99."
            )
        self._remember_noise()

    @property
    def num_blocks(self) -> int:
        """T."""
        return len(self.blocks)

    def weight(self, t: int) -> float:
        """Return the weight of block t's squared error: (T / 2) eta (SNR(t) - SNR(t - 1))."""
        return self.num_blocks / 2 * self.eta * (self.times.snr[t] - self.times.snr[t - 1])

    def noisy(self, u: Float[Tensor, "batch dim"], t: int, generator: torch.Generator | None = None) -> Float[Tensor, "batch dim"]:
        """Draw z_t from q(z_t | y) = N(sqrt(abar_t) u, (1 - abar_t) I)."""
        abar = self.times.abar[t]
        return abar**0.5 * u + (1 - abar) ** 0.5 * torch.randn(u.shape, device=u.device, dtype=u.dtype, generator=generator)

    def block_loss(self, t: int, x: Images, y: Labels, generator: torch.Generator | None = None) -> Float[Tensor, ""]:
        """Compute the loss of block t alone: its weight times |u^_t(z_{t-1}, x) - u_y|^2, averaged over the batch. No other block runs.

        Args:
            t: 1 to T.
            x: normalised images.
            y: class numbers, or shares of the classes.
            generator: of the noise.

        Raises:
            ArgumentError: if there is no such block.
        """
        if not 1 <= t <= self.num_blocks:
            raise ArgumentError(f"noprop: there are blocks 1 to {self.num_blocks}, got t={t}.")
        self.check_images(x)
        u, block = self.embedding(y), self._block(t)
        answer = self.cleaned(block(self.noisy(u, t - 1, generator), block.image(x)))
        return self.weight(t) * (answer - u).square().sum(-1).mean()

    def label_losses(self, y: Labels, generator: torch.Generator | None = None) -> dict[str, Float[Tensor, ""]]:
        """Compute "ce", the output layer's cross-entropy at z_T drawn from q (not from the blocks), and "kl" of the start."""
        u = self.embedding(y)
        logits = self.readout(self.noisy(u, self.num_blocks, generator), self.embedding.weight)
        return {"ce": F.cross_entropy(logits, y), "kl": self.start_kl(u, u.new_tensor(self.times.abar[0]))}

    def training_losses(self, x: Images, y: Labels, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Compute "ce", "kl" and "denoise" (of each block); the whole loss is ce + kl + mean(denoise)."""
        each = [self.block_loss(t, x, y, generator) for t in range(1, self.num_blocks + 1)]
        return {**self.label_losses(y, generator), "denoise": torch.stack(each)}

    def run(self, x: Images, z: Float[Tensor, "states dim"], draw: Draw, noise: bool, steps: int | None) -> Float[Tensor, "states dim"]:
        """Compute z_t = a_t u^_t(z_{t-1}, x) + b_t z_{t-1} + sqrt(c_t) eps for t = 1, ..., T."""
        if steps not in (None, self.num_blocks):
            raise ArgumentError(f"noprop: a network of {self.num_blocks} blocks has as many steps, got steps={steps}. Leave it out.")
        for t in range(1, self.num_blocks + 1):
            block, (a, b, c) = self._block(t), (values[t - 1] for values in (self.times.a, self.times.b, self.times.c))
            features = block.image(x).repeat_interleave(len(z) // max(1, len(x)), 0)
            z = a * self.cleaned(block(z, features)) + b * z
            if noise:
                z = z + c**0.5 * draw(t)
        return z

    def _block(self, t: int) -> Block:
        return cast(Block, self.blocks[t - 1])


class NoPropCT(NoPropNet):
    """NoProp in continuous time: one block for all times, and a noise schedule that is learned.

    Args:
        num_classes: classes.
        in_chans: channels of the images.
        img_size: side of the images, or height and width.
        embed: of the labels.
        embed_dim: length of a learned embedding.
        eta: weight of the denoising loss.
        steps: of integration in prediction.
        sampler: "ode" follows the probability flow, "sde" adds noise on the way.
        solver: "euler" or "heun" (two evaluations a step, of the ode alone).
        schedule: gives gamma and its derivative; None is `LearnedSchedule()`.
        options: of `NoPropNet`.

    Raises:
        ArgumentError: if an argument cannot be.
    """

    def __init__(
        self,
        num_classes: int,
        in_chans: int,
        img_size: int | tuple[int, int],
        embed: Embed = "onehot",
        embed_dim: int | None = None,
        eta: float = 1.0,
        steps: int = 1000,
        sampler: Literal["ode", "sde"] = "ode",
        solver: Literal["euler", "heun"] = "euler",
        schedule: LearnedSchedule | None = None,
        **options: Any,
    ) -> None:
        check_eta(eta)
        check_solver(steps, solver)
        if sampler not in ("ode", "sde"):
            raise unknown("noprop", "`sampler`", sampler, ("ode", "sde"))
        if (sampler, solver) == ("sde", "heun"):
            raise ArgumentError('noprop: the solver "heun" is of the sampler "ode" alone. With sampler="sde" take solver="euler".')
        super().__init__(num_classes, in_chans, img_size, embed, embed_dim, norm=False, timed=True, **options)
        self.eta, self.steps, self.sampler, self.solver = eta, steps, sampler, solver
        self.schedule = LearnedSchedule() if schedule is None else schedule
        self.draws = steps + 1 if sampler == "sde" else 1
        self._remember_noise()

    def training_losses(self, x: Images, y: Labels, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Compute "ce" at z_1, "kl" of z_0, and "denoise", (eta / 2) SNR'(t) |u^(z_t, x, t) - u_y|^2 at one uniform t for each image."""
        self.check_images(x)
        u, block = self.embedding(y), cast(Block, self.blocks[0])
        t = torch.rand(len(x), device=x.device, dtype=x.dtype, generator=generator)
        gamma, slope = self.schedule(t)
        answer = self.cleaned(block(self._noisy(u, torch.sigmoid(-gamma), generator), block.image(x), t))
        denoise = self.eta / 2 * (-slope * torch.exp(-gamma) * (answer - u).square().sum(-1)).mean()
        ends = self.schedule.abar(t.new_tensor([0.0, 1.0]))
        logits = self.readout(self._noisy(u, ends[1].expand(len(u)), generator), self.embedding.weight)
        return {"ce": F.cross_entropy(logits, y), "kl": self.start_kl(u, ends[0]), "denoise": denoise}

    def _noisy(self, u: Tensor, abar: Tensor, generator: torch.Generator | None) -> Tensor:
        noise = torch.randn(u.shape, device=u.device, dtype=u.dtype, generator=generator)
        return abar.sqrt()[:, None] * u + (1 - abar).sqrt()[:, None] * noise

    def run(self, x: Images, z: Float[Tensor, "states dim"], draw: Draw, noise: bool, steps: int | None) -> Float[Tensor, "states dim"]:
        """Integrate the probability flow, or the stochastic equation whose steps are those of the discrete chain in the limit."""
        steps, block = self.steps if steps is None else steps, cast(Block, self.blocks[0])
        check_solver(steps, self.solver)
        features = block.image(x).repeat_interleave(len(z) // max(1, len(x)), 0)

        def answer(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            gamma, slope = self.schedule(t.expand(1))
            return self.cleaned(block(z, features, t.expand(len(z)))), torch.sigmoid(-gamma), -slope

        def flow(z: Tensor, t: Tensor) -> Tensor:
            # abar' = abar (1 - abar) rate, so that abar' / (2 (1 - abar)) (u / sqrt(abar) - z) is
            u, abar, rate = answer(z, t)
            return rate / 2 * (abar.sqrt() * u - abar * z)

        if self.sampler == "ode":
            return integrate(flow, z, steps, self.solver)
        for i, t in enumerate(torch.arange(steps, device=z.device, dtype=z.dtype) / steps):
            u, abar, rate = answer(z, t)
            z = z + rate * (abar.sqrt() * u - (1 + abar) / 2 * z) / steps
            if noise:
                z = z + ((1 - abar) * rate / steps).sqrt() * draw(i + 1)
        return z


class NoPropFM(NoPropNet):
    """NoProp by flow matching: one block gives the velocity from noise z_0 to the label's embedding z_1 at z_t = t z_1 + (1 - t) z_0.

    Args:
        num_classes: classes.
        in_chans: channels of the images.
        img_size: side of the images, or height and width.
        embed: of the labels.
        embed_dim: length of a learned embedding.
        steps: of integration in prediction.
        sigma: standard deviation of noise added to z_t in training.
        solver: "euler" or "heun" (two evaluations a step).
        options: of `NoPropNet`.

    Raises:
        ArgumentError: if an argument cannot be.
    """

    def __init__(
        self,
        num_classes: int,
        in_chans: int,
        img_size: int | tuple[int, int],
        embed: Embed = "onehot",
        embed_dim: int | None = None,
        steps: int = 1000,
        sigma: float = 0.0,
        solver: Literal["euler", "heun"] = "euler",
        **options: Any,
    ) -> None:
        check_solver(steps, solver)
        if not sigma >= 0:
            raise ArgumentError(f"noprop: `sigma` must be 0 or more, got {sigma}.")
        super().__init__(
            num_classes, in_chans, img_size, embed, embed_dim, norm=False, timed=True, **{**options, "answer": "embedding"}
        )  # a velocity is no mean of embeddings
        self.steps, self.sigma, self.solver = steps, sigma, solver
        self._remember_noise()

    def training_losses(self, x: Images, y: Labels, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Compute "denoise", |v(z_t, x, t) - (z_1 - z_0)|^2, and the anchor "ce" of the label that v points at, z_t + (1 - t) v.

        The anchor keeps learned embeddings from collapsing; where they are fixed, it trains the output layer alone.
        """
        self.check_images(x)
        u, block = self.embedding(y), cast(Block, self.blocks[0])
        z0 = torch.randn(u.shape, device=u.device, dtype=u.dtype, generator=generator)
        t = torch.rand(len(x), device=x.device, dtype=x.dtype, generator=generator)
        z = t[:, None] * u + (1 - t)[:, None] * z0
        if self.sigma:
            z = z + self.sigma * torch.randn(u.shape, device=u.device, dtype=u.dtype, generator=generator)
        v = block(z, block.image(x), t)
        reached = z + (1 - t)[:, None] * v
        logits = self.readout(reached if self.embedding.learns else reached.detach(), self.embedding.weight)
        return {"ce": F.cross_entropy(logits, y), "denoise": (v - (u - z0)).square().sum(-1).mean()}

    def run(self, x: Images, z: Float[Tensor, "states dim"], draw: Draw, noise: bool, steps: int | None) -> Float[Tensor, "states dim"]:
        """Integrate dz = v dt from 0 to 1."""
        steps, block = self.steps if steps is None else steps, cast(Block, self.blocks[0])
        check_solver(steps, self.solver)
        features = block.image(x).repeat_interleave(len(z) // max(1, len(x)), 0)
        return integrate(lambda z, t: block(z, features, t.expand(len(z))), z, steps, self.solver)


@register(cfg=CFG)
def noprop_dt(
    num_blocks: int = 10,
    embed: Embed = "onehot",
    embed_dim: int | None = None,
    eta: float = 0.1,
    low: float = 0.01,
    high: float = 0.99,
    backbone: Backbone = None,
    backbone_args: Mapping[str, Any] | None = None,
    *,
    num_classes: int = 10,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
    **options: Any,
) -> NoPropDT:
    """Build a `NoPropDT`.

    Args:
        num_blocks: T, each with a branch for the image of its own.
        embed: "onehot", "learned" or "prototype".
        embed_dim: length of a learned embedding.
        eta: weight of the denoising loss.
        low: smallest abar of the cosine schedule.
        high: largest.
        backbone: a name for `create_model`, which makes each block's branch for the image; None is a stack of convolutions.
        backbone_args: the backbone's own options.
        num_classes: classes.
        in_chans: channels of the images.
        input_size: side of the images, or height and width; None is 32.
        options: `hidden`, `widths`, `label_layers`, `drop_rate`, `answer`, `readout` and `samples` of `NoPropNet`.
    """
    size = image_size(input_size) or (32, 32)
    made = {"backbone": _branches(backbone, backbone_args, in_chans, size), **_known("noprop_dt", options)}
    return NoPropDT(num_classes, in_chans, size, num_blocks, embed, embed_dim, eta, CosineSchedule(low, high), **made)


@register(cfg=CFG)
def noprop_ct(
    embed: Embed = "onehot",
    embed_dim: int | None = None,
    eta: float = 1.0,
    steps: int = 1000,
    sampler: Literal["ode", "sde"] = "ode",
    solver: Literal["euler", "heun"] = "euler",
    low: float = 0.01,
    high: float = 0.99,
    backbone: Backbone = None,
    backbone_args: Mapping[str, Any] | None = None,
    *,
    num_classes: int = 10,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
    **options: Any,
) -> NoPropCT:
    """Build a `NoPropCT`.

    Args:
        embed: "onehot", "learned" or "prototype".
        embed_dim: length of a learned embedding.
        eta: weight of the denoising loss.
        steps: of integration in prediction.
        sampler: "ode" or "sde".
        solver: "euler" or "heun".
        low: abar(0) before the schedule has learned.
        high: abar(1).
        backbone: as in `noprop_dt`.
        backbone_args: the backbone's own options.
        num_classes: classes.
        in_chans: channels of the images.
        input_size: side of the images, or height and width; None is 32.
        options: as in `noprop_dt`.
    """
    size = image_size(input_size) or (32, 32)
    made = {"backbone": _branches(backbone, backbone_args, in_chans, size), **_known("noprop_ct", options)}
    schedule = LearnedSchedule(low, high)
    return NoPropCT(num_classes, in_chans, size, embed, embed_dim, eta, steps, sampler, solver, schedule, **made)


@register(cfg=CFG)
def noprop_fm(
    embed: Embed = "onehot",
    embed_dim: int | None = None,
    steps: int = 1000,
    sigma: float = 0.0,
    solver: Literal["euler", "heun"] = "euler",
    backbone: Backbone = None,
    backbone_args: Mapping[str, Any] | None = None,
    *,
    num_classes: int = 10,
    in_chans: int = 3,
    input_size: int | tuple[int, int] | None = None,
    **options: Any,
) -> NoPropFM:
    """Build a `NoPropFM`.

    Args:
        embed: "onehot", "learned" or "prototype".
        embed_dim: length of a learned embedding.
        steps: of integration in prediction.
        sigma: standard deviation of noise added in training.
        solver: "euler" or "heun".
        backbone: as in `noprop_dt`.
        backbone_args: the backbone's own options.
        num_classes: classes.
        in_chans: channels of the images.
        input_size: side of the images, or height and width; None is 32.
        options: as in `noprop_dt`.
    """
    size = image_size(input_size) or (32, 32)
    made = {"backbone": _branches(backbone, backbone_args, in_chans, size), **_known("noprop_fm", options)}
    return NoPropFM(num_classes, in_chans, size, embed, embed_dim, steps, sigma, solver, **made)


FORMS: dict[str, Callable[..., NoPropNet]] = {"dt": noprop_dt, "ct": noprop_ct, "fm": noprop_fm}
OPTIONS = ("hidden", "widths", "label_layers", "drop_rate", "answer", "readout", "samples")


def around(
    backbone: nn.Module, form: str = "dt", *, num_classes: int, in_chans: int, input_size: tuple[int, int], **options: Any
) -> NoPropNet:
    """Build a NoProp network whose first block sees images through a backbone, and each further block through a copy of it.

    Args:
        backbone: any network; its own classifier is taken off.
        form: "dt", "ct" or "fm".
        num_classes: classes.
        in_chans: channels of the images.
        input_size: height and width of the images.
        options: of `noprop_dt`, `noprop_ct` or `noprop_fm`.

    Raises:
        ArgumentError: if there is no such form, or an option cannot be.
    """
    if form not in FORMS:
        raise unknown("NoProp", "`form`", form, FORMS)
    made = config(backbone)
    backbone = adapt(backbone, input_size=input_size)
    waiting, spare = [backbone], copy.deepcopy(backbone)
    common: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans, "input_size": input_size}
    network: Any = FORMS[form](backbone=lambda: waiting.pop() if waiting else copy.deepcopy(spare), **options, **common)
    if made is not None:  # so that a checkpoint can rebuild it
        own = {name: value for name, value in made["arguments"].items() if name != "num_classes"}
        network.retinue_config = {
            "name": f"noprop_{form}",
            "arguments": {**common, "input_size": list(input_size), **options, "backbone": made["name"], "backbone_args": own},
        }
    return network


def _branches(
    backbone: Backbone, arguments: Mapping[str, Any] | None, in_chans: int, size: tuple[int, int]
) -> Callable[[], nn.Module] | None:
    if isinstance(backbone, str):
        given = {"in_chans": in_chans, "input_size": size, **(arguments or {}), "num_classes": 0}
        return lambda: create_model(backbone, **given)
    if arguments:
        raise ArgumentError("noprop: `backbone_args` are options of a backbone given by name. Leave them out, or name the backbone.")
    return backbone


def _known(where: str, options: Mapping[str, Any]) -> dict[str, Any]:
    for name in options:
        if name not in OPTIONS:
            raise unknown(where, "option", name, OPTIONS)
    return dict(options)
