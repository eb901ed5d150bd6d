"""`optimize`: a network in inference form, run by one of four backends."""

import copy
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retinue.errors import ArgumentError, ShapeError, unknown
from retinue.models.backends import BACKENDS
from retinue.models.fusion import fuse_checked
from retinue.models.probe import check_equal, inference_copy, outputs, trial_images

Backend = Literal["torch", "inductor", "onnxruntime", "openvino"]
OWN_MERGE = ("onnxruntime", "openvino")  # they run sibling convolutions faster than one convolution and the copies of its parts
OWN_THREADS = ("onnxruntime", "openvino")
KEPT = ("num_classes", "in_chans", "num_features", "classes", "preprocessing", "pretrained_cfg", "default_cfg")


class Optimized(nn.Module):
    """A network in inference form, with the network's call.

    Its weights are constants: it cannot be trained, and changing its parameters need not change what it computes. A copy or a pickle of it
    is compiled anew at its first call.

    Attributes:
        backend: what runs it.
        notes: what was done to it, in words.
        num_classes, in_chans, num_features, classes, preprocessing, pretrained_cfg, default_cfg: the network's, where it had them.

    Args:
        form: the network as the backend runs it.
        backend: the backend's name.
        notes: what was done.
        model: the network that it comes from.
    """

    def __init__(self, form: nn.Module, backend: str, notes: list[str], model: nn.Module) -> None:
        super().__init__()
        self.form, self.backend, self.notes = form, backend, notes
        for name in KEPT:
            if hasattr(model, name):
                setattr(self, name, copy.deepcopy(getattr(model, name)))
        self.min_side: int = getattr(model, "min_side", 1)
        self.eval()

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Any:
        """Compute what the network computes.

        Raises:
            ShapeError: if the images have the wrong number of channels, or are too small.
        """
        channels, least = getattr(self, "in_chans", None), self.min_side
        if images.ndim != 4 or channels not in (None, images.shape[1]) or min(images.shape[2:]) < least:
            raise ShapeError(
                f"this network takes images of shape (batch, {channels or 'channels'}, height, width) with sides of at least {least} px, "
                f"got {tuple(images.shape)}. Add the batch with images[None], or build the network for such images."
            )
        return self.form(images)

    def train(self, mode: bool = True) -> "Optimized":
        """Stay in evaluation.

        Raises:
            ArgumentError: if training is asked for.
        """
        if mode:
            raise ArgumentError(
                "an optimized network cannot be trained: its weights are folded. Train the network it comes from, then optimize."
            )
        return super().train(False)

    def extra_repr(self) -> str:
        """Show the backend and what was done."""
        return "\n".join([f"backend={self.backend}", *self.notes])


def optimize(
    model: nn.Module,
    backend: Backend = "torch",
    *,
    input_size: int | tuple[int, int] | list[int] | None = None,
    threads: int | None = None,
) -> Optimized:
    """Turn a network into its inference form: batch norms and constant scales folded, sibling 1x1 convolutions merged, channels last.

    The outputs equal the network's to 1e-4 of the largest (of 1 where all are smaller), which is checked on random images. The network is
    not changed; one in training is taken as it would be in evaluation. Batches of any size go in, and images of any size that the network
    takes. What torch.fx cannot trace is folded child by child, and `notes` says so.

    Args:
        model: any network that takes a batch of images: ours, timm's, or anyone's `nn.Module`.
        backend: "torch" needs nothing else, keeps to the network's device and passes gradients to the images. "inductor" compiles, for a
            minute or so per shape of images, at the first call with it; it needs a C++ compiler. "onnxruntime" (the extra "export") and
            "openvino" (the extra "openvino") run on the CPU only; they keep sibling convolutions apart, which is faster there.
        input_size: side of the images, or height and width, for the trial; None: the network's own, or the first of the usual ones that
            passes.
        threads: how many threads "onnxruntime" and "openvino" use; None: as many as torch. Torch's own are the process's:
            `torch.set_num_threads`.

    Raises:
        ArgumentError: if the backend is unknown, no image passes, or an argument does not fit the backend.
        MissingExtraError: if the backend is not installed.
        UnequalError: if the backend computes something else.

    >>> from retinue.models import tiny
    >>> fast = optimize(tiny("bare"))
    >>> fast.backend, fast.notes
    ('torch', ['batch norms folded into the layers before them: 2'])
    """
    if backend not in BACKENDS:
        raise unknown("optimize", "backend", backend, BACKENDS)
    if isinstance(model, Optimized):
        raise ArgumentError(
            f'optimize: this network is optimized already (backend "{model.backend}"). Give the network that it comes from.'
        )
    if threads is not None and backend not in OWN_THREADS:
        raise ArgumentError(
            f'optimize: `threads` is for {" and ".join(OWN_THREADS)}, got {threads} for "{backend}". Use torch.set_num_threads.'
        )
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ArgumentError(f"optimize: `threads` must be a whole number of at least 1, got {threads!r}. None takes as many as torch uses.")
    reference = inference_copy(model)
    images = trial_images(reference, input_size, where="optimize")
    expected = outputs(reference, images)
    if backend in OWN_THREADS:
        reference, images = reference.cpu(), images.cpu()
        if len(expected) != 1:
            raise ArgumentError(
                f'optimize: "{backend}" runs networks that return one tensor, this one returns {len(expected)}. Use backend="torch".'
            )
    net, notes = fuse_checked(reference, images, expected, merge=backend not in OWN_MERGE)
    form = BACKENDS[backend](net, images, threads or torch.get_num_threads())
    result = Optimized(form, backend, notes, model)
    if backend != "inductor":  # a trial would compile for a shape that may never come
        for batch in (images, images[:1]):
            advice = 'Use backend="torch".' if backend in OWN_THREADS else "Please report it."
            check_equal([value[: len(batch)] for value in expected], outputs(form, batch), f'the backend "{backend}"', advice)
    return result
