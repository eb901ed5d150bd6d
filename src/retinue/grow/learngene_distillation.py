"""What learns from the ancestry: an instance, block by block, and the whole pool (Shi et al. 2024, arXiv 2312.05743).

What an instance learns beside are linear maps from the teacher's width down to its own; turned round, they begin the stitches of a pool.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from retinue.data import Batch, Data, Loader
from retinue.engine import Supervised, evaluating, fit, judge, load
from retinue.engine.seeds import mix, own_randomness, seed_all
from retinue.errors import ArgumentError, unknown
from retinue.grow.teachers import outputs_of
from retinue.losses.distillation import distillation_kl, soft_cross_entropy
from retinue.models.learngene_pool import LearngenePool
from retinue.models.stitches import Configuration, Tokens, tokens_of

Point = Literal["front", "middle", "end"]
POINTS: tuple[Point, ...] = ("front", "middle", "end")  # the last block of each third
KINDS = ("attention", "block")
SUBLAYERS = {"attn": False, "mlp_tokens": True, "linear_tokens": True}  # what mixes tokens in a block; whether it gives the tokens last


def depth_points(depth: int, points: Sequence[str] = POINTS) -> list[int]:
    """Return the blocks at which a network is supervised: the last of each third, counted from 0.

    Args:
        depth: blocks of the network.
        points: which: "front", "middle", "end".

    Raises:
        ArgumentError: if there is no such point, or the blocks cannot be cut into thirds where that is asked for.

    >>> depth_points(12), depth_points(6, ["middle", "end"]), depth_points(4, ["end"])
    ([3, 7, 11], [3, 5], [3])
    """
    for point in points:
        if point not in POINTS:
            raise unknown("depth_points", "point", point, POINTS)
    if not points or len(set(points)) < len(points):
        raise ArgumentError(f'depth_points: `points` must be one or more of "front", "middle" and "end", each once, got {list(points)}.')
    if depth < len(points):
        raise ArgumentError(f"depth_points: a network of {depth} blocks cannot be supervised at {len(points)} points. Name fewer `points`.")
    if depth % 3 and set(points) != {"end"}:
        raise ArgumentError(
            f'depth_points: {depth} blocks cannot be cut into thirds. Take 3, 6, 9 or 12 blocks, or supervise only the end: points=["end"].'
        )
    return [depth * (1 + POINTS.index(point)) // 3 - 1 for point in POINTS if point in points]


class LearngeneDistillation(Supervised):
    """Minimise alpha CE + (1 - alpha) (L_logit + L_rep + L_att): a learngene instance out of an ancestry network.

    L_att and L_rep are, summed over the points, the mean squared error between what the student's attention (its block) gives and the
    teacher's, led by a learned linear map to the student's width. L_logit is the cross-entropy against the teacher's softened answers, as a
    mean over images and classes. The teacher stays in evaluation mode and is never changed.

    Args:
        model: the student: a vision transformer or MLP-Mixer.
        teacher: the ancestry, of as many tokens; or the folder of the run in which it was trained.
        points: depths at which both are compared.
        alpha: weight of the labels, in [0, 1].
        tau: temperature of both softmaxes, above 0.

    Raises:
        ArgumentError: if an argument cannot be, or the networks do not fit each other.

    Attributes:
        maps: the learned maps, of each kind ("attention", "block"), one for each point.

    >>> from retinue.models import tiny
    >>> objective = LearngeneDistillation(tiny("timm_vit"), tiny("timm_vit"), points=["end"])
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module | str,
        points: Sequence[str] = POINTS,
        alpha: float = 0.1,
        tau: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ArgumentError(f"LearngeneDistillation: `alpha` must lie in [0, 1], got {alpha}. The paper has 0.1.")
        if not tau > 0:
            raise ArgumentError(f"LearngeneDistillation: `tau` must be above 0, got {tau}. The paper has 1.")
        if model is teacher:
            raise ArgumentError("LearngeneDistillation: the teacher is the network that learns. Give a copy of it, or another network.")
        ancestry: Any = load(teacher) if isinstance(teacher, str) else teacher
        ours, theirs = check_kinship(model, ancestry, points)
        self.points, self.alpha, self.tau = [point for point in POINTS if point in points], alpha, tau
        self.student_blocks, self.teacher_blocks = depth_points(ours.depth, points), depth_points(theirs.depth, points)
        self.teacher: Any = ancestry.requires_grad_(False).eval()
        self.maps = nn.ModuleDict({kind: nn.ModuleList(nn.Linear(theirs.width, ours.width) for _ in self.points) for kind in KINDS})

    def train(self, mode: bool = True) -> "LearngeneDistillation":
        """Switch between training and evaluation; the teacher stays in evaluation."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss, its four parts, and how many images of the batch are right."""
        with self._look(model, self.student_blocks) as ours:
            logits = model(batch.images)
        with torch.no_grad(), self._look(self.teacher, self.teacher_blocks) as theirs:
            answers = self.teacher(batch.images)
        shares = (answers / self.tau).softmax(-1)
        parts = {"logit": soft_cross_entropy(logits / self.tau, shares) / logits.shape[-1]}
        for kind, part in zip(KINDS, ("att", "rep")):
            maps: Any = self.maps[kind]
            parts[part] = torch.stack([F.mse_loss(z, way(t)) for z, way, t in zip(ours[kind], maps, theirs[kind])]).sum()
        labelled = self._loss(logits, batch)
        loss = self.alpha * labelled + (1 - self.alpha) * torch.stack(list(parts.values())).sum()
        told = {name: value.detach() for name, value in {"cls": labelled, **parts}.items()}
        return {"loss": loss, **told, "top1": (logits.argmax(-1) == batch.labels).float().mean()}

    def learned_maps(self, kind: Literal["attention", "block"] = "block") -> list[Float[Tensor, "narrow teacher"]]:
        """Return copies of the maps' weights, for `LearngenePool.init_stitches`."""
        maps: Any = self.maps[kind]
        return [way.weight.detach().clone() for way in maps]

    @contextmanager
    def _look(self, network: nn.Module, blocks: list[int]) -> Any:
        seen: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
        hooks = []
        for block in blocks:
            sublayer, turned = _sublayer(network, block)
            layers: Any = network.blocks
            hooks.append(sublayer.register_forward_hook(_keep(seen["attention"], turned)))
            hooks.append(layers[block].register_forward_hook(_keep(seen["block"], False)))
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()


class PoolTraining(Supervised):
    """Train a whole pool: in each step one configuration, drawn uniformly, learns from the labels and from the ancestry.

    The loss is (1 - distil) CE + distil tau^2 KL. What is drawn depends on the seed and the number of the step alone, so it is the same for
    all images of a batch, in every process, and after a resumption.

    Args:
        teacher: the ancestry, or the folder of its run; None learns from labels alone, with distil=0.
        distil: d, weight of the ancestry's answers, in [0, 1].
        tau: temperature, above 0.
        seed: of what is drawn.

    Raises:
        ArgumentError: if an argument cannot be.

    >>> objective = PoolTraining(distil=0)
    """

    def __init__(self, teacher: nn.Module | str | None = None, distil: float = 0.5, tau: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        if not 0 <= distil <= 1:
            raise ArgumentError(f"PoolTraining: `distil` must lie in [0, 1], got {distil}. The paper has 0.5.")
        if not tau > 0:
            raise ArgumentError(f"PoolTraining: `tau` must be above 0, got {tau}. The paper has 1.")
        if teacher is None and distil:
            raise ArgumentError("PoolTraining: without a `teacher` there is nothing to distil. Give the ancestry, or distil=0.")
        ancestry: Any = load(teacher) if isinstance(teacher, str) else teacher
        self.distil, self.tau, self.seed = distil, tau, seed
        self.teacher: Any = None if ancestry is None or not distil else ancestry.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "PoolTraining":
        """Switch between training and evaluation; the teacher stays in evaluation."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def prepare(self, model: nn.Module, data: Data) -> nn.Module:
        """Return the pool.

        Raises:
            ArgumentError: if the model is none.
        """
        return check_pool(model, "PoolTraining")

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse a pool or a teacher with another number of classes than the data has, or a teacher that cannot take the images."""
        super().check(model, data)
        if self.teacher is None:
            return
        classes = outputs_of(self.teacher, data, "PoolTraining")
        if classes != len(data.classes):
            raise ArgumentError(
                f"PoolTraining: the teacher has {classes} classes and {data.name} has {len(data.classes)}. Take one that knows the same."
            )

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the loss of the configuration of this step."""
        pool: Any = model
        yield "model", self._numbers(pool, batch, pool.configs[mix(self.seed, step) % len(pool.configs)])

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss of one configuration, drawn from torch's random numbers."""
        pool: Any = model
        return self._numbers(pool, batch, pool.draw())

    def _numbers(self, pool: LearngenePool, batch: Batch, config: Configuration) -> dict[str, Tensor]:
        logits = pool(batch.images, config)
        loss = self._loss(logits, batch)
        if self.teacher is not None:
            with torch.no_grad():
                answers = self.teacher(batch.images)
            loss = (1 - self.distil) * loss + self.distil * distillation_kl(logits, answers, self.tau)
        return {"loss": loss, "top1": (logits.argmax(-1) == batch.labels).float().mean()}

    @torch.no_grad()
    def evaluate(self, model: nn.Module, loader: Loader) -> dict[str, float]:
        """Compute the numbers of `retinue.evaluate` over a held-out split: their means over all configurations, and each one's top1."""
        pool: Any = model
        with evaluating(model):
            found = {config: [(pool(b.images, config).float(), b.labels) for b in loader.batches()] for config in pool.configs}
        each = {str(config): judge(*map(torch.cat, zip(*pairs))) for config, pairs in found.items()}
        means = {name: sum(one[name] for one in each.values()) / len(each) for name in ("top1", "top5", "ece", "loss")}
        return {**means, **{f"top1/{config}": one["top1"] for config, one in each.items()}}


def distil_instance(
    teacher: nn.Module | str,
    student: nn.Module,
    data: Data,
    *,
    points: Sequence[str] = POINTS,
    alpha: float = 0.1,
    tau: float = 1.0,
    seed: int = 0,
    run_dir: str | Path | None = None,
    **settings: Any,
) -> tuple[nn.Module, dict[str, list[Tensor]]]:
    """Train a student as `LearngeneDistillation` says.

    Args:
        teacher: the ancestry, or the folder of its run.
        student: is trained in place.
        data: labelled images.
        points: as in `LearngeneDistillation`.
        alpha: as there.
        tau: as there.
        seed: of everything random.
        run_dir: the run's folder.
        settings: of `retinue.fit`, such as epochs=50.

    Returns:
        The best student, and the weights of the maps at the end, of each kind ("attention", "block"), one for each point.

    Raises:
        ArgumentError: if an argument cannot be.
    """
    with own_randomness():
        seed_all(seed)
        objective = LearngeneDistillation(student, teacher, points, alpha, tau)
    run = fit(student, objective, data, seed=seed, run_dir=run_dir, **settings)
    return run.model, {kind: objective.learned_maps(kind) for kind in KINDS}  # type: ignore[arg-type]


def check_kinship(student: nn.Module, teacher: nn.Module, points: Sequence[str] = POINTS) -> tuple[Tokens, Tokens]:
    """Look at what the blocks of student and teacher see, and make sure that they can be compared.

    Raises:
        ArgumentError: if one of them is no network of equal blocks, they see other tokens or classes, or there are no such points.
    """
    ours, theirs = tokens_of(student, "the student"), tokens_of(teacher, "the teacher")
    if (ours.number, ours.prefix, ours.shape) != (theirs.number, theirs.prefix, theirs.shape):
        told = [f"{one.number} ({one.prefix} before the patches) for images of {one.shape}" for one in (ours, theirs)]
        raise ArgumentError(
            f"LearngeneDistillation: student and teacher must see the same tokens, got {told[0]}, and {told[1]}. Build both with the same "
            "`input_size`, `patch_size` and class token."
        )
    classes: list[Any] = [getattr(network, "num_classes", None) for network in (student, teacher)]
    if classes[0] != classes[1]:
        raise ArgumentError(
            f"LearngeneDistillation: the student has {classes[0]} classes and the teacher {classes[1]}. Build both with the same "
            "`num_classes`."
        )
    for who, network, depth in (("student", student, ours.depth), ("teacher", teacher, theirs.depth)):
        for block in depth_points(depth, points):
            _sublayer(network, block, who)
    return ours, theirs


def check_pool(model: nn.Module, where: str) -> LearngenePool:
    """Return a pool, and refuse anything else.

    Raises:
        ArgumentError: if it is none.
    """
    if not isinstance(model, LearngenePool):
        raise ArgumentError(f"{where}: the model must be a LearngenePool, got {type(model).__name__}. Build one: LearngenePool(instances).")
    return model


def _sublayer(network: Any, block: int, who: str = "network") -> tuple[nn.Module, bool]:
    """Return what mixes the tokens in a block, and whether its output lies with the tokens last."""
    for name, turned in SUBLAYERS.items():
        if hasattr(network.blocks[block], name):
            return getattr(network.blocks[block], name), turned
    kind = type(network.blocks[block]).__name__
    raise ArgumentError(
        f"LearngeneDistillation: block {block} of the {who} ({kind}) has no `attn` or `mlp_tokens` to be compared. Take a vision "
        "transformer or an MLP-Mixer."
    )


def _keep(seen: list[Tensor], turned: bool) -> Any:
    return lambda _, __, out: seen.append(out.transpose(1, 2) if turned else out)
