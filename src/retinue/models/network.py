"""timm's protocol, written once for every network of ours that is a stem, stages and a tail run one after the other."""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from jaxtyping import Float
from timm.layers import ClassifierHead
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from retinue.errors import ArgumentError, ShapeError
from retinue.models.fusion import scriptable


class Network(nn.Module):
    """An image classifier made of `stem`, `stages`, `tail` and a head, with the methods that timm's models have.

    Its classifier is `head.fc`. A network whose blocks take more than one input overrides `forward_intermediates` and `forward_features`.

    Args:
        stem: the first layers.
        stages: the stages; one that is itself an `nn.Sequential` is recomputed block by block under gradient checkpointing.
        tail: what stands between the last stage and the pooling.
        taps: for each level of the pyramid: `num_chs`, `reduction` (input pixels per pixel of the map) and `module`, which is
            `stem.I`, `stages.I` or `tail`; in the order of computation.
        num_features: channels of the last map.
        num_classes: outputs of the classifier; 0 leaves it out.
        in_chans: channels of the images.
        drop_rate: probability with which a pooled feature is dropped before the classifier in training.
        global_pool: timm's name of the pooling: "avg", "max", "avgmax", "catavgmax", or "" for none.
        min_side: smallest height and width of an image that the layers can take.
    """

    def __init__(
        self,
        stem: nn.Sequential,
        stages: nn.Sequential,
        tail: nn.Module | None = None,
        *,
        taps: Sequence[dict[str, Any]],
        num_features: int,
        num_classes: int,
        in_chans: int,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
        min_side: int = 1,
    ) -> None:
        super().__init__()
        if not 0 <= drop_rate < 1:
            raise ArgumentError(
                f"`drop_rate` must lie in [0, 1), got {drop_rate}. It is the share of features dropped, not the share kept."
            )
        self.num_classes, self.in_chans, self.num_features = num_classes, in_chans, num_features
        self.drop_rate, self.min_side = drop_rate, min_side
        self.grad_checkpointing = False
        self.feature_info = list(taps)
        self.adaptation: list[str] = []  # what was changed for the size of the images, in words
        self.stem = stem
        self.stages = stages
        self.tail = nn.Identity() if tail is None else tail
        self.head = ClassifierHead(num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.head_hidden_size = self.head.num_features

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in place of the old one.

        Args:
            num_classes: its outputs; 0 leaves it out.
            global_pool: another pooling; None keeps the present one.
        """
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        self.head_hidden_size = self.head.num_features

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the blocks' inputs in training and compute the rest again in the backward pass: less memory, more time, same result."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns that sort parameters by depth (used by layer-wise learning rates)."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else [(r"^stages\.(\d+)\.(\d+)", None), (r"^tail", (99999,))]}

    def check_size(self, images: Float[Tensor, "batch channels height width"]) -> None:
        """Refuse images that the layers cannot take.

        Raises:
            ShapeError: if a side is below `min_side` or the channels are not `in_chans`.
        """
        channels, height, width = images.shape[1:]
        if height < self.min_side or width < self.min_side:
            raise ShapeError(
                f"this network needs images of at least {self.min_side}x{self.min_side} px, got {height}x{width}. "
                f"Build it for small images: create_model(..., input_size={min(height, width)})."
            )
        if channels != self.in_chans:
            raise ShapeError(f"this network takes {self.in_chans} channels, got {channels}. Build it with in_chans={channels}.")

    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features mapheight mapwidth"]:
        """Compute the last map of features."""
        self.check_size(x)
        x = self.stem(x)
        for stage in self.stages:
            x = self._run(stage, x)
        return self.tail(x)

    def forward_head(self, x: Float[Tensor, "batch features mapheight mapwidth"], pre_logits: bool = False) -> Float[Tensor, "batch ..."]:
        """Pool a map of features and classify it.

        Args:
            x: the last map.
            pre_logits: stop before the classifier.
        """
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch ..."]:
        """Compute the logits."""
        return self.forward_head(self.forward_features(x))

    def __prepare_scriptable__(self) -> nn.Module:
        """Give `torch.jit.script` what it reads in place of this class: the layers of evaluation, one after the other.

        Raises:
            ArgumentError: in training, whose dropped paths and side classifiers a script would not have.
        """
        if self.training:
            raise ArgumentError("torch.jit.script: a network of ours is scripted for evaluation. Call .eval() first; train the original.")
        return scriptable(self)

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        """Run one stage, block by block under `checkpoint` where that is switched on."""
        if not self.grad_checkpointing:
            return stage(x)
        for block in stage.children() if isinstance(stage, nn.Sequential) else [stage]:
            x = checkpoint(block, x, use_reentrant=False, context_fn=partial(_first_and_second_pass, block))
        return x

    def _walk(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield each place where a tap may sit with its module, in the order of computation."""
        for part in ("stem", "stages"):
            for i, module in enumerate(getattr(self, part)):
                yield f"{part}.{i}", module
        yield "tail", self.tail

    def forward_intermediates(
        self,
        x: Float[Tensor, "batch channels height width"],
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Compute the maps of the pyramid, as timm's models do.

        Args:
            x: images.
            indices: which taps of `feature_info`; a number takes that many from the end; None takes all.
            norm: there for timm's interface; our taps have no norm of their own.
            stop_early: stop after the last map asked for.
            output_fmt: "NCHW", the only layout there is.
            intermediates_only: return the maps without the last map of features.

        Returns:
            The list of maps, or the last map of features and the list.
        """
        if output_fmt != "NCHW":
            raise ArgumentError(f'forward_intermediates: `output_fmt` must be "NCHW", got "{output_fmt}".')
        self.check_size(x)
        take, last = feature_take_indices(len(self.feature_info), indices if indices is None or isinstance(indices, int) else list(indices))
        names = [self.feature_info[i]["module"] for i in take]
        end = self.feature_info[last]["module"]
        maps = []
        for name, module in self._walk():
            x = self._run(module, x)
            if name in names:
                maps.append(x)
            if stop_early and name == end:
                break
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True) -> list[int]:
        """Throw away the layers behind the last tap asked for, and the head; `features_only` calls this.

        Args:
            indices: the taps to keep, as in `forward_intermediates`.
            prune_norm: there for timm's interface; our taps have no norm of their own.
            prune_head: throw away the classifier also where nothing lies behind the last tap.

        Returns:
            The taps' indices, counted from the front.
        """
        take, last = feature_take_indices(len(self.feature_info), indices if isinstance(indices, int) else list(indices))
        end = self.feature_info[last]["module"]
        names = [name for name, _ in self._walk()]
        keep = names[: names.index(end) + 1]
        self.stem = self.stem[: sum(name.startswith("stem.") for name in keep)]
        self.stages = self.stages[: sum(name.startswith("stages.") for name in keep)]
        if "tail" not in keep:
            self.tail = nn.Identity()
        if last < len(self.feature_info) - 1:
            self.num_features = self.head.in_features = self.feature_info[last]["num_chs"]
        if prune_head or last < len(self.feature_info) - 1:
            self.reset_classifier(0, "")
        return take


def _first_and_second_pass(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return contextlib.nullcontext(), frozen_statistics(block)


@contextlib.contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Leave the running statistics of batch norms alone.

    A checkpointed block runs twice per step; without this, its running statistics would move twice.
    """
    norms: list[Any] = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None  # the same tensors are saved as in the first pass, and nothing moves
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum, norm.num_batches_tracked = momentum, count
