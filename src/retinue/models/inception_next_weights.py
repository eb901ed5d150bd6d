"""Published weights of InceptionNeXt: timm's names and the official ones are ours; small images take over what stays the same there."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from retinue.errors import CheckpointError

Cut = Callable[[str, Tensor, Sequence[int]], Tensor]


def from_timm(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Fit the published weights, timm's or the official ones, to an InceptionNeXt.

    What is adapted to small images takes over what stays the same there: band kernels without their outer taps, and a stem of stride 2 as
    the sums of 2x2 cells of the published kernel, which sees an image as the published one sees it enlarged twice.

    Args:
        tensors: the published `state_dict`.
        model: the network that is to take them. A classifier of another number of classes keeps what it has, and so does the whole head
            where the last stage was left out.

    Returns:
        What `model.load_state_dict` takes.

    Raises:
        CheckpointError: if they are the weights of another network, or of other channels of images.
    """
    taken = fitted(tensors, model)
    channels, ours = taken["stem.0.weight"].shape[1], model.state_dict()["stem.0.weight"].shape[1]
    if channels != ours:
        raise CheckpointError(
            f"the stem of the checkpoint takes {channels} channels and the network has in_chans={ours}. "
            f"Build it with in_chans={channels}, or let create_model(..., pretrained=True, in_chans={ours}) fit the stem."
        )
    return taken


def fitted(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Do what `from_timm` does, but leave the stem's channels as they are: timm fits them afterwards."""
    return fit_tensors(tensors, model, classifier="head.fc2.", end=("head.",), cut=_cut)


def fit_tensors(tensors: Mapping[str, Tensor], model: nn.Module, *, classifier: str, end: tuple[str, ...], cut: Cut) -> dict[str, Tensor]:
    """Complete published tensors under our names to what a network takes, and check every one.

    Args:
        tensors: the published ones. Those of stages that the network lacks are left out.
        model: the network.
        classifier: prefix of the tensors that keep what they have where their shapes differ.
        end: prefixes of all that depends on the last stage, and keeps what it has where that was left out.
        cut: makes of a name, a published tensor and a shape what the network takes of the tensor.

    Raises:
        CheckpointError: if a tensor is missing, has no place, or another shape (the channels of the first layer may differ).
    """
    own = model.state_dict()
    stages = {name.split(".")[1] for name in own if name.startswith("stages.")}
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("stages.") or name.split(".")[1] in stages}
    shorter = len(kept) < len(tensors)
    free = end if shorter else (classifier,)
    taken = {}
    for name, tensor in own.items():
        given = kept.pop(name, None)
        if name.startswith(free) and (shorter or given is None or given.shape != tensor.shape):
            given = tensor
        if given is None:
            raise CheckpointError(f'the checkpoint lacks the tensor "{name}". The network must have the published variant and `depths`.')
        taken[name] = cut(name, given, tensor.shape)
        if taken[name].shape != tensor.shape and not (name == "stem.0.weight" and taken[name][:, 0].shape == tensor[:, 0].shape):
            raise CheckpointError(
                f'the tensor "{name}" has shape {tuple(given.shape)} in the checkpoint and {tuple(tensor.shape)} in the network. '
                "Published weights need the published variant; images below 28 px have another stem."
            )
    for name in kept:
        if not name.startswith(free):
            raise CheckpointError(f'the network lacks the tensor "{name}". It must have the published variant and `depths`.')
    return taken


def _cut(name: str, given: Tensor, shape: Sequence[int]) -> Tensor:
    """Cut a published kernel to what the network has of it."""
    if name == "stem.0.weight" and given.shape[2:] == (4, 4) and tuple(shape[2:]) == (2, 2):
        return given.unflatten(3, (2, 2)).unflatten(2, (2, 2)).sum((3, 5))
    if name.endswith(("dwconv_w.weight", "dwconv_h.weight")) and given.ndim == 4:
        for axis in (2, 3):
            outer = given.shape[axis] - shape[axis]
            given = given.narrow(axis, outer // 2, shape[axis]) if outer > 0 else given
    return given
