"""timm's protocol for any module, and the vector that a network makes of an image."""

import copy
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError
from retinue.models.modes import evaluating
from retinue.models.small_images import is_channels_last

PROTOCOL = ("forward_features", "forward_head", "reset_classifier", "get_classifier", "num_features")
PROBE_SIDES = (32, 28, 64, 224, 16, 8, 96, 299)  # tried in this order where nobody says which images a module takes


class Adapted(nn.Module):
    """A module of anyone's with timm's protocol; `forward` is the module's own, and its tensors keep their names under `module.`.

    `forward_features` is what enters the classifier (the module's last linear layer), or what the module returns where it has none.

    Args:
        module: the network.
        head_name: the name of its last linear layer; None where it returns features.
        num_features: length of what enters the classifier, or channels of the map that the module returns.
        in_chans: channels of the images.
        feature_info: the last layer at each size of map, with `num_chs`, `reduction` and `module`.
    """

    def __init__(
        self,
        module: nn.Module,
        head_name: str | None,
        num_features: int,
        num_classes: int,
        in_chans: int,
        feature_info: list[dict[str, Any]],
    ) -> None:
        super().__init__()
        self.module = module
        self.head_name = head_name
        self.head: nn.Module | None = None  # only where the module has no linear layer at its end
        self.num_features = self.head_hidden_size = num_features
        self.num_classes, self.in_chans = num_classes, in_chans
        self.feature_info = feature_info
        self.adaptation: list[str] = []

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer, or the identity where the module returns features."""
        if self.head_name is not None:
            return self.module.get_submodule(self.head_name)
        return nn.Identity() if self.head is None else self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new linear layer in place of the last one; 0 leaves it out."""
        like = next(self.module.parameters(), torch.empty(0))
        fresh = nn.Linear(self.num_features, num_classes).to(like.device, like.dtype) if num_classes else nn.Identity()
        if self.head_name is not None:
            self.module.set_submodule(self.head_name, fresh)
        else:
            self.head = fresh if num_classes else None
        self.num_classes = num_classes

    def forward_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch ..."]:
        """Run the module up to its classifier."""
        if self.head_name is None:
            return self.module(x)
        seen: list[Tensor] = []
        hook = self.module.get_submodule(self.head_name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            self.module(x)
        finally:
            hook.remove()
        return seen[-1]

    def forward_head(self, x: Float[Tensor, "batch ..."], pre_logits: bool = False) -> Float[Tensor, "batch ..."]:
        """Classify features, or only pool them where `pre_logits`."""
        if self.head_name is None:
            x = pool(x, self.num_features)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch ..."]:
        """Compute what the module computes; where it had no classifier and was given one, the logits."""
        x = self.module(x)
        return x if self.head is None else self.forward_head(x)


def adapt(module: nn.Module, *, num_classes: int | None = None, input_size: int | tuple[int, int] | None = None) -> nn.Module:
    """Give timm's protocol to any image network: its last linear layer is the head.

    A network that already has the protocol (timm's, ours) is returned as it is, with another classifier where `num_classes` asks for one.

    Args:
        module: takes a batch of images and returns logits, pooled features, or a map of features.
        num_classes: outputs of the classifier; a new one is made where the module has none or another number. None changes nothing:
            a module without a linear layer at its end then counts as a network without classifier (`num_classes` 0).
        input_size: size of the images for the trial run; None tries the usual ones.

    Raises:
        ArgumentError: if no trial image passes through the module, or what it returns is no tensor.

    >>> bare = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    >>> model = adapt(bare)
    >>> model.num_features, model.num_classes, model.in_chans
    (4, 10, 1)
    """
    if all(hasattr(module, name) for name in PROTOCOL):
        if num_classes is not None and num_classes != module.num_classes:
            module.reset_classifier(num_classes)  # type: ignore[operator]
        return module
    adapted = _probe(module, input_size)
    if num_classes is not None and num_classes != adapted.num_classes:
        adapted.reset_classifier(num_classes)
    return adapted


def pooled_features(model: nn.Module, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
    """Compute the vector per image that enters the classifier, of a convolutional network or a transformer alike.

    Args:
        model: a network with timm's protocol; `adapt` gives it to any other.
        images: normalised images.

    Raises:
        ArgumentError: if the network lacks the protocol.
    """
    if not hasattr(model, "forward_features") or not hasattr(model, "forward_head"):
        raise ArgumentError(
            f"pooled_features: {type(model).__name__} lacks timm's protocol. Wrap it once: model = retinue.models.adapt(model)."
        )
    x = model.forward_head(model.forward_features(images), pre_logits=True)  # type: ignore[operator]
    return pool(x, getattr(model, "num_features", None), getattr(model, "num_prefix_tokens", 0))


def feature_size(model: nn.Module) -> int:
    """Return the length of `pooled_features`: `head_hidden_size`, which is not always `num_features`."""
    return getattr(model, "head_hidden_size", None) or model.num_features  # type: ignore[return-value]


def taps(model: nn.Module, prefix: str = "") -> list[dict[str, Any]]:
    """Return where a network can be tapped, as timm's `feature_info` has it: `module`, `num_chs` and `reduction` of each; [] if nowhere.

    Args:
        model: any network.
        prefix: put before the modules' names, for a network that holds this one.
    """
    found: Any = getattr(model, "feature_info", None) or []
    return [{**tap, "module": prefix + tap["module"]} for tap in (found if isinstance(found, list) else found.info)]


def config(model: nn.Module) -> dict[str, Any] | None:
    """Return what rebuilds a network by `create_model(name, **arguments)`, with its present number of classes.

    Args:
        model: a network from `create_model`; None is returned for any other.
    """
    made = getattr(model, "retinue_config", None)
    if made is None:
        return None
    arguments = copy.deepcopy(made["arguments"])
    return {"name": made["name"], "arguments": {**arguments, "num_classes": getattr(model, "num_classes", arguments["num_classes"])}}


def pool(x: Float[Tensor, "batch ..."], num_features: Any, prefix_tokens: int = 0) -> Float[Tensor, "batch features"]:
    """Average maps (channels first or last) and tokens over their places; vectors stay as they are.

    Args:
        x: features.
        num_features: the number of channels, which tells the two layouts of maps apart.
        prefix_tokens: tokens at the front that stand for no place (class token, registers) and are left out.
    """
    if x.ndim == 4:
        return x.mean((1, 2)) if is_channels_last(x, num_features) else x.mean((2, 3))
    return x[:, prefix_tokens:].mean(1) if x.ndim == 3 else x


def _probe(module: nn.Module, input_size: int | tuple[int, int] | None) -> Adapted:
    """Run a trial image through a module and read off its classifier, channels and maps."""
    from retinue.models.factory import image_size

    first = next((m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))), None)
    if first is None:
        raise ArgumentError(f"adapt: {type(module).__name__} has no convolution and no linear layer, so it is not an image network.")
    size = image_size(input_size)
    trials = [size] if size else [(side, side) for side in PROBE_SIDES]
    # the first convolution that is registered need not be the first that runs
    channels = [3, 1]
    if isinstance(first, nn.Conv2d):
        taken = {m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d)}
        channels = [first.in_channels, *(c for c in (3, 1) if c in taken and c != first.in_channels)]
    if isinstance(first, nn.Linear) and size is None:  # flattened images: the length tells channels and side
        shapes = [
            (c, math.isqrt(first.in_features // c)) for c in (1, 3) if math.isqrt(first.in_features // c) ** 2 * c == first.in_features
        ]
        pairs = [(c, (side, side)) for c, side in shapes] + [(c, trial) for c in channels for trial in trials]
    else:
        pairs = [(c, trial) for trial in trials for c in channels]
    trouble: Exception | None = None
    for in_chans, trial in pairs:
        try:
            return _watch(module, in_chans, trial)
        except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
            if isinstance(error, ArgumentError):
                raise
            trouble = trouble or error
    tried = ", ".join(f"{c}x{h}x{w}" for c, (h, w) in pairs)
    said = " ".join(str(trouble).split())[:200]
    raise ArgumentError(
        f"adapt: no trial image passed through {type(module).__name__} (tried {tried}; the first said: {said}). "
        "Say which images it takes: adapt(module, input_size=(height, width))."
    )


def _watch(module: nn.Module, in_chans: int, size: tuple[int, int]) -> Adapted:
    names = {layer: name for name, layer in module.named_modules()}
    linears: list[tuple[str, Tensor, Tensor]] = []
    maps: dict[int, dict[str, Any]] = {}

    def look(layer: nn.Module, args: Any, y: Any) -> None:
        if isinstance(layer, nn.Linear):
            linears.append((names[layer], args[0], y))
        if isinstance(y, Tensor) and y.ndim == 4 and layer is not module and y.shape[-1] > 1:
            maps[y.shape[-1]] = {"num_chs": y.shape[1], "reduction": round(size[1] / y.shape[-1]), "module": f"module.{names[layer]}"}

    like = next(module.parameters())
    hooks = [layer.register_forward_hook(look) for layer in names]
    try:
        with torch.no_grad(), evaluating(module):
            y = module(torch.zeros(2, in_chans, *size, device=like.device, dtype=like.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(y, Tensor) or y.ndim not in (2, 3, 4):
        raise ArgumentError(f"adapt: {type(module).__name__} must return logits, features or a map as one tensor, got {type(y).__name__}.")
    info = sorted(maps.values(), key=lambda tap: tap["reduction"])
    if linears and y.ndim == 2 and linears[-1][2].shape == y.shape:
        name, x, _ = linears[-1]
        return Adapted(module, name, x.shape[-1], y.shape[-1], in_chans, info)
    return Adapted(module, None, y.shape[-1] if y.ndim == 3 else y.shape[1], 0, in_chans, info)
