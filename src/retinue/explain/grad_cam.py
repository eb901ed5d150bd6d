"""Grad-CAM: a heat map of where a network looked (Selvaraju et al. 2017, arXiv 1610.02391; as in Bahrami & Albadvi 2023, arXiv 2302.14354).

For a class score y and the map A of a layer, channel k weighs alpha_k = mean_ij dy/dA^k_ij, and the heat map is relu(sum_k alpha_k A^k).
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from retinue.engine.modes import evaluating
from retinue.errors import ArgumentError, NonFiniteError, ShapeError, unknown
from retinue.explain.layers import frozen, last_map, recording
from retinue.models.feature_maps import as_map, layout

Variant = Literal["gradcam", "gradcam++", "layercam", "gradient", "guided"]
Target = int | Sequence[int] | Tensor | Callable[[Any], Tensor] | None
Weighted = Callable[[Tensor, Tensor], Tensor]


def gradcam(A: Float[Tensor, "n k u v"], slope: Float[Tensor, "n k u v"]) -> Float[Tensor, "n u v"]:
    """Weigh each channel with its mean gradient (Selvaraju et al., equations 1 and 2, before the ReLU)."""
    return _mixed(slope.mean((2, 3)), A)


def gradcam_plus_plus(A: Float[Tensor, "n k u v"], slope: Float[Tensor, "n k u v"]) -> Float[Tensor, "n u v"]:
    """Weigh each channel with its positive gradients, each the less the stronger the channel (Chattopadhay et al. 2018, equation 19).

    alpha = g^2 / (2 g^2 + g^3 sum A) is 1 / (2 + g sum A) where g > 0, and nothing else counts. The formula is made for maps behind
    a ReLU; of others only the positive part enters the sum, without which it would have a pole.
    """
    gain = slope.clamp(min=0)
    alpha = 1 / (2 + gain * A.clamp(min=0).sum((2, 3), keepdim=True))
    return _mixed((alpha * gain).sum((2, 3)), A)


def layercam(A: Float[Tensor, "n k u v"], slope: Float[Tensor, "n k u v"]) -> Float[Tensor, "n u v"]:
    """Weigh each place of each channel with its own positive gradient (Jiang et al. 2021, equations 4 and 5)."""
    return (slope.clamp(min=0) * A).sum(1)


def _mixed(weights: Float[Tensor, "n k"], A: Float[Tensor, "n k u v"]) -> Float[Tensor, "n u v"]:
    return (weights[:, None] @ A.flatten(2)).view(len(A), *A.shape[2:])


MIXTURES: dict[str, Weighted] = {"gradcam": gradcam, "gradcam++": gradcam_plus_plus, "layercam": layercam, "guided": gradcam}
VARIANTS = (*MIXTURES, "gradient")


class GradCAM:
    """Heat maps of where a network looked for a class.

    One call is one forward and one backward pass for the whole batch. Inside `with GradCAM(model) as explain:` several calls share their
    set-up; on leaving (after each call, where there is no `with`) the network is as it was: no hook, the same modes, flags and gradients.

    Args:
        model: any network that takes images; ours, timm's, or your own.
        layer: a layer's name in `model.named_modules()` or the layer itself; None finds the last one with a map, at the first call.
            Of a layer that runs several times in a pass, the last time counts.
        variant: "gradcam"; "gradcam++" (finer where a class appears several times), "layercam" (finer in early layers), "gradient" (largest
            absolute gradient of a pixel's channels, Simonyan et al. 2014, section 3.1; needs no layer), or "guided" (Grad-CAM times the
            gradient of which each rectifier passes on the positive part alone, Selvaraju et al., section 3.2).

    Raises:
        ArgumentError: if there is no such layer or variant; near misses are named.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    >>> maps = GradCAM(model)(torch.rand(2, 1, 8, 8), target=3)
    >>> maps.shape
    torch.Size([2, 8, 8])
    """

    def __init__(self, model: nn.Module, layer: str | nn.Module | None = None, variant: Variant = "gradcam") -> None:
        if variant not in VARIANTS:
            raise unknown("GradCAM", "variant", variant, VARIANTS)
        self.model, self.variant = model, variant
        self.layer = None if layer is None else _name(model, layer)
        self._layout = layout(model)
        self._opened: list[ExitStack] = []
        self._hooked = False
        self._seen: list[Tensor] | None = None  # the layer's output, while a call is under way

    def __enter__(self) -> "GradCAM":
        stack = ExitStack()
        stack.enter_context(evaluating(self.model))
        stack.enter_context(frozen(self.model))
        self._opened.append(stack)
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.pop().close()

    def __call__(self, images: Float[Tensor, "batch channels height width"], target: Target = None) -> Float[Tensor, "batch height width"]:
        """Compute the heat map of each image.

        Args:
            images: a batch, as the network takes it.
            target: the class to explain: a number for all images or one for each; None takes the predicted class. A network with one logit
                has the classes 1 (the logit) and 0 (minus the logit). Or a function from the network's output to one score for each
                image: of a detection, of a class in a region, of a distance.

        Returns:
            Maps in [0, 1]; on the layer's grid the largest value is 1, or all are 0 where nothing speaks for the class.

        Raises:
            ArgumentError: if the target is no class, or the score does not depend on the layer.
            ShapeError: if `images` is no batch, the layer gives no map, or the output is not one row of logits for each image.
            NonFiniteError: if the gradient is NaN or infinite.
        """
        if images.ndim != 4:
            raise ShapeError(
                f"GradCAM: `images` must be a batch (N, C, H, W), got {tuple(images.shape)}. For a single one write images[None]."
            )
        if not self._opened:
            with self:
                return self(images, target)
        with recording():
            images = images.detach().clone()
            if self.variant == "gradient":
                return _unit(self._pixels(images, target))
            A, slope = self._at_layer(images, target)
            maps = _unit(MIXTURES[self.variant](A, slope).relu())
            maps = F.interpolate(maps[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
            if self.variant == "guided":
                with GuidedRectifiers():
                    maps = _unit(maps * self._pixels(images, target))
            return maps

    def _pixels(self, images: Tensor, target: Target) -> Tensor:
        """Return the largest absolute gradient of each pixel's channels."""
        images = images.requires_grad_()
        y = score(self.model(images.clone()), target)
        return _slope(y, images, "the images").float().abs().amax(1)

    def _at_layer(self, images: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Return the layer's map and the gradient of the score there."""
        if self.layer is None:
            self.layer = last_map(self.model, images)
        if not self._hooked:
            hook = self.model.get_submodule(self.layer).register_forward_hook(self._cut)
            self._hooked = True
            self._opened[-1].callback(self._unhook, hook)
        self._seen = []
        try:
            y = score(self.model(images), target)
            if not self._seen:
                raise ArgumentError(f'GradCAM: layer "{self.layer}" did not run in the forward pass. Name one that does.')
            A = self._seen[-1]
            pair = A.detach(), _slope(y, A, f'layer "{self.layer}"')
        finally:
            self._seen = None
        shown = [as_map(x, (images.shape[-2], images.shape[-1]), **self._layout) for x in pair]
        if shown[0] is None or shown[1] is None or len(shown[0]) != len(images):
            raise ShapeError(
                f'GradCAM: layer "{self.layer}" gives {tuple(A.shape)} for images of {images.shape[-2]}x{images.shape[-1]} px, which is no '
                "map of them. Name a layer before the pooling, or leave out `layer`: the last map is then found."
            )
        return shown[0].float(), shown[1].float()

    def _cut(self, layer: nn.Module, args: Any, output: Any) -> Any:
        """Let the graph begin at this layer's output: all before it needs no gradient, whether it is frozen or not."""
        tensor = next((y for y in output if isinstance(y, Tensor)), None) if isinstance(output, tuple | list) else output
        if self._seen is None or not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            return None
        A = tensor.detach().requires_grad_()
        self._seen.append(A)
        handed_on = A.clone()  # an in-place ReLU behind the layer changes this one
        return handed_on if output is tensor else type(output)(handed_on if y is tensor else y for y in output)

    def _unhook(self, hook: Any) -> None:
        hook.remove()
        self._hooked = False


def heat_maps(
    model: nn.Module,
    images: Float[Tensor, "batch channels height width"],
    target: Target = None,
    *,
    layer: str | nn.Module | None = None,
    variant: Variant = "gradcam",
) -> Float[Tensor, "batch height width"]:
    """Compute heat maps in one call; arguments, result and errors are those of `GradCAM`."""
    return GradCAM(model, layer, variant)(images, target)


class GuidedRectifiers(TorchFunctionMode):
    """Lets every rectifier in a pass hand back only the positive part of its gradient (guided backpropagation, Springenberg et al. 2015).

    It watches the functions, not the layers, so `x.relu()` inside a `forward` counts as well as `nn.ReLU`. ReLU's smooth relatives are
    treated alike.
    """

    RECTIFIERS = (
        "relu", "relu_", "relu6", "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_", "elu", "elu_",
        "selu", "gelu", "silu", "mish", "hardswish",
    )  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function; behind a rectifier, catch the gradient."""
        output = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in self.RECTIFIERS and isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(lambda slope: slope.clamp(min=0))
        return output


def predicted(outputs: Float[Tensor, " batch *classes"]) -> Int[Tensor, " batch"]:
    """Return the predicted class of each row of logits; of one logit, 1 where it is positive."""
    one = _one_logit(outputs)
    return outputs.argmax(1) if one is None else (one > 0).long()


def score(outputs: Any, target: Target) -> Float[Tensor, " batch"]:
    """Compute the score y that is explained: the logit of a class before softmax or sigmoid.

    Args:
        outputs: what the network gave: logits (N, classes), one logit (N, 1) or (N,), or anything that `target` understands.
        target: as in `GradCAM`.

    Raises:
        ArgumentError: if a class is out of range or their number is not that of the images.
        ShapeError: if the outputs are no logits, or a function gave something else than one number for each image.
    """
    if callable(target):
        y = target(outputs)
        if not isinstance(y, Tensor) or y.ndim != 1:
            got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ShapeError(f"GradCAM: the function `target` must give one score for each image, shape (N,), got {got}.")
        return y
    classes = labels(outputs, target)
    _warn_of_probabilities(outputs)
    one = _one_logit(outputs)
    return outputs.gather(1, classes[:, None])[:, 0] if one is None else torch.where(classes == 1, one, -one)


def labels(outputs: Any, target: int | Sequence[int] | Tensor | None, where: str = "GradCAM") -> Int[Tensor, " batch"]:
    """Return the class of each image that `target` means, checked against the outputs."""
    if not isinstance(outputs, Tensor) or outputs.ndim not in (1, 2):
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ShapeError(
            f"{where}: the network must give logits of shape (N, classes), got {got}. "
            "Give a function as `target` that takes this output and returns one score for each image."
        )
    if target is None:
        return predicted(outputs.detach())
    classes = torch.as_tensor(target, device=outputs.device, dtype=torch.int64)
    if classes.ndim > 1 or (classes.ndim == 1 and len(classes) != len(outputs)):
        raise ArgumentError(
            f"{where}: `target` must be one class, or one for each of {len(outputs)} images, got shape {tuple(classes.shape)}."
        )
    count = 2 if _one_logit(outputs) is not None else outputs.shape[1]
    if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < count:
        raise ArgumentError(f"{where}: `target` must lie in 0 to {count - 1}, as the network has {count} classes, got {classes.tolist()}.")
    return classes.expand(len(outputs))


def _one_logit(outputs: Tensor) -> Tensor | None:
    """Return the logits (N,) of a network with a single one, and None for any other."""
    return outputs.reshape(len(outputs)) if outputs.ndim == 1 or outputs.shape[1] == 1 else None


def _slope(y: Tensor, x: Tensor, where: str) -> Tensor:
    """Compute the gradient of each image's score; images do not touch each other in evaluation mode, so it is that of the sum."""
    slope = torch.autograd.grad(y.sum(), x, allow_unused=True)[0] if y.requires_grad else None
    if slope is None:
        raise ArgumentError(
            f"GradCAM: the score does not depend on {where}, or is computed where gradients are off. Name a layer on the way to the score."
        )
    if not bool(torch.isfinite(slope).all()):
        raise NonFiniteError(f"GradCAM: the gradient at {where} is not finite. Look at what the network gives for these images.")
    return slope


def _unit(maps: Float[Tensor, "batch height width"]) -> Float[Tensor, "batch height width"]:
    """Divide each map by its maximum; one without a positive value stays zero."""
    peak = maps.amax((1, 2), keepdim=True)
    return torch.where(peak > 0, maps / peak, torch.zeros_like(maps))


def _name(model: nn.Module, layer: str | nn.Module) -> str:
    names = {name: part for name, part in model.named_modules() if name}
    if isinstance(layer, str):
        if layer not in names:
            raise unknown("GradCAM", "layer", layer, names, "All names: model.named_modules().")
        return layer
    for name, part in names.items():
        if part is layer:
            return name
    raise ArgumentError(f"GradCAM: the {type(layer).__name__} given as `layer` is not in the network. Take one of model.named_modules().")


def _warn_of_probabilities(outputs: Tensor) -> None:
    """Warn where the output is a probability: its gradient vanishes where the network is sure."""
    node = outputs.grad_fn
    while node is not None and node.name().startswith(("Squeeze", "Unsqueeze", "View", "UnsafeView", "Select", "Reshape", "Alias")):
        node = node.next_functions[0][0]
    last = "" if node is None else node.name().lower()
    if last.startswith(("sigmoid", "softmax")) and bool((outputs.detach() >= 0).all() & (outputs.detach() <= 1).all()):
        warnings.warn(
            f"GradCAM: the network ends in a {'sigmoid' if last.startswith('sigmoid') else 'softmax'}, so what it gives are probabilities, "
            "whose gradient vanishes where it is sure. Give it the network that ends in logits.",
            stacklevel=2,
        )
