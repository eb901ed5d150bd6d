"""How well a network bears images of another look: shifts of appearance, accuracy under each, and the divergence of its features.

The shifts are those in which domains differ while content stays (IBN-Net, arXiv 1807.09441, section 1), without data of another domain.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from retinue.data import Split
from retinue.data.views import keys as image_keys
from retinue.data.views import uniform
from retinue.errors import ArgumentError, ShapeError, unknown
from retinue.metrics import top_k_accuracy
from retinue.models.modes import evaluating
from retinue.models.protocol import adapt, pool

Images = Float[Tensor, "batch channels height width"]
Shift = Callable[[Tensor, Tensor], Tensor]  # images in [0, 1] and one key for each -> images, not clipped


def appearance_shifts(
    *, contrast: float = 0.3, brightness: float = 0.5, gamma: float = 3.0, gain: tuple[float, float] = (0.5, 1.5)
) -> dict[str, Shift]:
    """Return shifts of appearance by name: identity, contrast, brightness, gamma, color_swap, channel_gain and invert.

    Each is called with images in [0, 1] and a key for each (`views.keys`), as a view is; none clips, so that all but gamma can be undone.

    Args:
        contrast: factor on the distance from middle grey, 0.5.
        brightness: added to every value.
        gamma: power to which every value is raised.
        gain: range from which each image draws a factor for each channel.

    Raises:
        ArgumentError: if a factor or a power is not positive.

    >>> shifts = appearance_shifts(contrast=0.5)
    >>> shifts["contrast"](torch.ones(1, 1, 1, 1), torch.zeros(1, dtype=torch.int64)).item()
    0.75
    """
    for name, value in (("contrast", contrast), ("gamma", gamma), ("gain", gain[0])):
        if not value > 0:
            raise ArgumentError(f"appearance_shifts: `{name}` must be positive, got {value}. Below 1 it weakens, above it strengthens.")
    if gain[0] > gain[1]:
        raise ArgumentError(f"appearance_shifts: `gain` must be a range (low, high), got {gain}.")
    return {
        "identity": lambda images, keys: images,
        "contrast": lambda images, keys: (images - 0.5) * contrast + 0.5,
        "brightness": lambda images, keys: images + brightness,
        "gamma": lambda images, keys: images.clamp(min=0) ** gamma,
        "color_swap": lambda images, keys: images.flip(1),
        "channel_gain": partial(channel_gain, low=gain[0], high=gain[1]),
        "invert": lambda images, keys: 1 - images,
    }


def channel_gain(images: Images, keys: Int64[Tensor, " batch"], low: float = 0.5, high: float = 1.5) -> Images:
    """Multiply each channel of each image with a factor of its own, drawn from the image's key.

    Args:
        images: values in [0, 1].
        keys: one for each image; the same key draws the same factors.
        low: smallest factor.
        high: largest factor.
    """
    return images * (low + (high - low) * uniform(keys, images.shape[1])).to(images)[:, :, None, None]


@torch.inference_mode()
def evaluate_shifts(
    model: nn.Module, split: Split, shifts: Mapping[str, Shift] | None = None, *, seed: int = 0, batch_size: int = 256
) -> dict[str, float]:
    """Measure a classifier's accuracy on held-out images under shifts of their appearance.

    Args:
        model: gives logits; one with its own `preprocessing` sees the images normalised as in its training.
        split: such as `data.test`.
        shifts: by name; None takes `appearance_shifts()`.
        seed: of what the shifts draw.
        batch_size: images at a time; the result does not depend on it.

    Returns:
        For each shift the share of images whose likeliest class is right.

    Raises:
        ArgumentError: if the split is empty.
    """
    if not len(split):
        raise ArgumentError("evaluate_shifts: the split is empty. Open the data with a larger test_fraction.")
    shifts = appearance_shifts() if shifts is None else shifts
    preprocessing = getattr(model, "preprocessing", None) or split.preprocessing
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    found: dict[str, list[Tensor]] = {name: [] for name in shifts}
    with evaluating(model):
        for indices in torch.arange(len(split)).split(batch_size):
            images = preprocessing.centre(split.images(indices)).to(device).float() / 255
            keys = image_keys(seed, 0, indices).to(device)
            for name, shift in shifts.items():
                found[name].append(model(preprocessing.normalize(shift(images, keys))).float().cpu())
    labels = split.labels
    return {name: float(top_k_accuracy(torch.cat(logits), labels, k=1)) for name, logits in found.items()}


def gaussian_divergence(
    mean_a: Float[Tensor, "*shape"], std_a: Float[Tensor, "*shape"], mean_b: Float[Tensor, "*shape"], std_b: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Compute KL(A || B) + KL(B || A) of two normal distributions (section 4.3).

    KL(A || B) = ln(s_B / s_A) + (s_A^2 + (m_A - m_B)^2) / (2 s_B^2) - 1/2.

    Args:
        mean_a: m_A.
        std_a: s_A, positive.
        mean_b: m_B.
        std_b: s_B, positive.

    >>> zero, one = torch.tensor(0.0), torch.tensor(1.0)
    >>> gaussian_divergence(zero, one, one, one).item()
    1.0
    """
    square = (mean_a - mean_b) ** 2
    return (std_a**2 + square) / (2 * std_b**2) + (std_b**2 + square) / (2 * std_a**2) - 1  # the logarithms cancel


def feature_divergence(
    model: nn.Module,
    images_a: Float[Tensor, "images channels height width"],
    images_b: Float[Tensor, "others channels height width"],
    layers: Sequence[str] | None = None,
    *,
    batch_size: int = 128,
) -> dict[str, float]:
    """Measure how differently a network's layers see two sets of images (section 4.3): 0 where they see the same.

    For each channel, a Gaussian is fitted to the activation's mean over space in each set; the layer's value is the mean of
    `gaussian_divergence` over its channels. A channel that is constant over one of the sets, as behind a dead ReLU, has no Gaussian and is
    left out; a layer without any other has the value nan.

    Args:
        model: any network; it is used in evaluation mode and left in the mode that it was in.
        images_a: normalised images of one domain, at least two.
        images_b: those of another; the numbers need not be equal.
        layers: names of modules; None takes the maps of the network's pyramid.
        batch_size: images at a time.

    Raises:
        ArgumentError: if the network has no such layer.
        ShapeError: if a set has fewer than two images.
    """
    for name, images in (("images_a", images_a), ("images_b", images_b)):
        if len(images) < 2:
            raise ShapeError(f"feature_divergence: `{name}` must hold at least two images to fit a Gaussian to, got {len(images)}.")
    if layers is None:
        model = adapt(model, input_size=(images_a.shape[-2], images_a.shape[-1]))
        info: Any = model.feature_info
        layers = [tap["module"] for tap in (info if isinstance(info, list) else info.info)]
    modules = dict(model.named_modules())
    for name in layers:
        if name not in modules:
            raise unknown("feature_divergence", "layer", name, modules, "All names: dict(model.named_modules()).")
    before, after = (_pooled(model, {name: modules[name] for name in layers}, images, batch_size) for images in (images_a, images_b))
    result = {}
    for name in layers:
        a, b = before[name], after[name]
        std_a, std_b = a.std(0, correction=0), b.std(0, correction=0)
        alive = (std_a > 0) & (std_b > 0)
        result[name] = float(gaussian_divergence(a.mean(0)[alive], std_a[alive], b.mean(0)[alive], std_b[alive]).mean())
    return result


@torch.inference_mode()
def _pooled(model: nn.Module, modules: Mapping[str, nn.Module], images: Tensor, batch_size: int) -> dict[str, Tensor]:
    """Compute the mean over space of what modules return, as float64 rows."""
    rows: dict[str, list[Tensor]] = {name: [] for name in modules}
    hooks = [
        module.register_forward_hook(lambda module, args, y, name=name: rows[name].append(pool(y, None).double().cpu()))
        for name, module in modules.items()
    ]
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    try:
        with evaluating(model):
            for part in images.split(batch_size):
                model(part.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(parts) for name, parts in rows.items()}
