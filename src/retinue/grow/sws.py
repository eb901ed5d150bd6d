"""Stage-wise weight sharing: one compact network whose few layers initialise networks of any depth (Xia et al. 2024, arXiv 2404.16897).

`StageSharedViT`, or `share_stages` of any network that repeats residual blocks, is trained by `fit_learngene` as a teacher says; what it
learned is its learngene. `initialise_descendant` repeats the layers to a wanted depth; a short ordinary training follows.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from retinue.data import Data
from retinue.engine import fit
from retinue.engine.seeds import own_randomness, seed_all
from retinue.errors import ArgumentError, CheckpointError
from retinue.grow.sws_distillation import SoftDistillation
from retinue.models import adapt, config, create_model
from retinue.models.stage_shared_vit import StageSharedViT, stage_shared_vit, sws_descendant
from retinue.models.stage_sharing import descend, plan_of, share_stages, stage_map
from retinue.models.stage_sharing_by_name import stage_descendant, stage_shared

__all__ = [
    "SoftDistillation",
    "StageSharedViT",
    "descend",
    "fit_learngene",
    "initialise_descendant",
    "load_learngene",
    "save_learngene",
    "share_stages",
    "stage_descendant",
    "stage_map",
    "stage_shared",
    "stage_shared_vit",
    "sws_descendant",
]
METADATA = "retinue_learngene"  # the key in the file's metadata under which its plan stands, as JSON
FIXED = ("embed_dim", "num_heads", "patch_size", "mlp_ratio")  # in which a descendant cannot differ


def fit_learngene(
    model: nn.Module,
    teacher: nn.Module | str,
    data: Data,
    *,
    stages: Sequence[int] | None = None,
    alpha: float = 1.0,
    tau: float = 1.0,
    seed: int = 0,
    run_dir: str | Path | None = None,
    **settings: Any,
) -> nn.Module:
    """Train an auxiliary network as a teacher says.

    Args:
        model: a network that shares weights, which is trained in place; or any other, which `share_stages` makes one of.
        teacher: as in `SoftDistillation`.
        data: labelled images.
        stages: of `share_stages`, where the model does not share yet.
        alpha: as in `SoftDistillation`.
        tau: as there.
        seed: of everything random.
        run_dir: the run's folder.
        settings: of `retinue.fit`, such as epochs=150; the optimiser is "adamw" unless they say otherwise.

    Returns:
        The best auxiliary network.

    Raises:
        ArgumentError: if an argument cannot be.
    """
    shared = shared_network(model, data, stages)
    with own_randomness():
        seed_all(seed)
        objective = SoftDistillation(teacher, data, alpha=alpha, tau=tau)
    return fit(shared, objective, data, seed=seed, run_dir=run_dir, **{"optimizer": "adamw", **settings}).model


def shared_network(model: nn.Module, data: Data, stages: Sequence[int] | None = None) -> nn.Module:
    """Return a network that shares weights, and has timm's protocol: the model, or one made of it."""
    if hasattr(model, "stage_plan"):
        if stages is not None:
            raise ArgumentError(f"fit_learngene: this {type(model).__name__} shares weights already. Leave out `stages`.")
        return model
    size = data.preprocessing.input_size
    return share_stages(adapt(model, input_size=size), stages, input_size=size)


def save_learngene(model: nn.Module, path: str | Path) -> None:
    """Write what an auxiliary network learned, each tensor once, with what it takes to use it.

    Args:
        model: from `share_stages`, or a `StageSharedViT`; one that `create_model` can build.
        path: a file, such as "learngene.safetensors".

    Raises:
        ArgumentError: if nothing is shared, or the network is your own: `descend` it where it is.
        CheckpointError: if the file cannot be written.
    """
    plan_of(model)
    made = config(model)
    if made is None:
        raise ArgumentError(
            f"save_learngene: nobody could build your own {type(model).__name__} from a file. Make its descendants at once: "
            "initialise_descendant(model, depth)."
        )
    about = json.dumps({"model": made, "classes": getattr(model, "classes", None)})
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(tensors, path, metadata={METADATA: about})
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"The learngene {path} could not be written: {error}.") from error


def load_learngene(path: str | Path) -> nn.Module:
    """Read the auxiliary network of a file that `save_learngene` wrote, in evaluation mode.

    Raises:
        CheckpointError: if the file is none, or damaged.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[METADATA])
        network: Any = create_model(about["model"]["name"], **about["model"]["arguments"])
        network.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        told = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path} is no whole learngene ({told}). Write one: save_learngene(model, path).") from error
    if about["classes"] is not None:
        network.classes = about["classes"]
    return network.eval()


def initialise_descendant(
    learngene: nn.Module | str | Path,
    depth: int | Sequence[int] | None = None,
    layer_map: Sequence[int] | None = None,
    *,
    num_classes: int | None = None,
    reuse_head: bool = True,
    input_size: int | tuple[int, int] | None = None,
    interpolate: bool = False,
    **options: Any,
) -> nn.Module:
    """Make an ordinary network of a depth, whose layers begin as copies of the learngene's (section 3.3).

    Args:
        learngene: an auxiliary network, or the file that `save_learngene` wrote.
        depth: layers, which `stage_map` hands out to the stages; or those of each stage. None keeps the depth.
        layer_map: instead, the stage of each layer, never falling.
        num_classes: outputs; None keeps them.
        reuse_head: begin with the learngene's classifier, for the same classes; otherwise with a fresh one.
        input_size: of the images, for a vision transformer; None keeps it.
        interpolate: where that gives another number of tokens, interpolate the position embedding.
        options: of a vision transformer's descendant: official_pooling, drop_rate, drop_path_rate. Width, heads and patch cannot differ.

    Raises:
        ArgumentError: if the depth, the map or an option cannot be.
        CheckpointError: if the file is no learngene.

    >>> auxiliary = StageSharedViT(8, 2, 32, 2, stages=(2, 2), num_classes=10, in_chans=1)
    >>> len(initialise_descendant(auxiliary, 5).blocks)
    5
    """
    network: Any = learngene if isinstance(learngene, nn.Module) else load_learngene(learngene)
    plan_of(network)
    own = getattr(network, "shape", {})
    for name in FIXED:
        if name in options and options.pop(name) != own.get(name):
            raise ArgumentError(
                f"initialise_descendant: `{name}` is the learngene's, {own.get(name)}, and cannot change: its weights are copied. Train an "
                "auxiliary network of that shape."
            )
    if num_classes is not None and num_classes != network.num_classes and reuse_head:
        raise ArgumentError(
            f"initialise_descendant: the learngene's classifier has {network.num_classes} classes and cannot serve {num_classes}. Take a "
            "fresh one: reuse_head=False."
        )
    descendant: Any = descend(network, depth, layer_map, **options)
    if input_size is not None:
        descendant = _for_size(descendant, input_size, interpolate)
    if not reuse_head or (num_classes is not None and num_classes != network.num_classes):
        descendant.reset_classifier(network.num_classes if num_classes is None else num_classes)
    return descendant


def _for_size(network: Any, input_size: int | tuple[int, int], interpolate: bool) -> nn.Module:
    """Let a vision transformer take images of another size."""
    size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    if not hasattr(network, "set_input_size") or getattr(network, "pos_embed", None) is None:
        raise ArgumentError(
            "initialise_descendant: `input_size` is for vision transformers with a position embedding, and this is a "
            f"{type(network).__name__}. Leave it out."
        )
    patch, tokens = network.patch_embed.patch_size, network.patch_embed.grid_size
    if size[0] % patch[0] or size[1] % patch[1]:
        raise ArgumentError(f"initialise_descendant: images of {size[0]}x{size[1]} px cannot be cut into patches of {patch[0]}x{patch[1]}.")
    grid = (size[0] // patch[0], size[1] // patch[1])
    if grid != tuple(tokens) and not interpolate:
        raise ArgumentError(
            f"initialise_descendant: images of {size[0]}x{size[1]} px are {grid[0]}x{grid[1]} tokens, and the learngene has positions of "
            f"{tokens[0]}x{tokens[1]}. Ask for new ones in between: interpolate=True."
        )
    network.set_input_size(img_size=size)
    made = getattr(network, "retinue_config", None)
    if made is not None:
        made["arguments"]["input_size"] = list(size)
    return network
