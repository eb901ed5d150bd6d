"""Learning from a teacher's soft answers, scaled as in the code of DeiT (arXiv 2404.16897, section 3.2)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retinue.data import Batch, Data, Preprocessing
from retinue.engine import Supervised, load
from retinue.engine.optim import exempt_from_decay
from retinue.errors import ArgumentError
from retinue.grow.teachers import outputs_of
from retinue.losses.distillation import distillation_kl
from retinue.models import create_model


class SoftDistillation(Supervised):
    """Minimise (1 - alpha) CE(y, z_s) + alpha tau^2 / (B K) sum KL(softmax(z_t / tau) || softmax(z_s / tau)), for K classes (section 3.2).

    The teacher stays in evaluation mode, is never changed, and sees images normalised as in its own training.

    Args:
        teacher: a network; the folder of the run in which it was trained; or a name for `create_model`.
        data: what is trained on; a teacher given by name is built for its images.
        teacher_args: options of a teacher given by name, such as {"pretrained": true}.
        alpha: weight of the teacher, in [0, 1]; 1 leaves out the labels, as the paper does.
        tau: temperature of both softmaxes, above 0.
        label_smoothing: of the labels, as in `Supervised`.

    Raises:
        ArgumentError: if an argument cannot be.

    >>> from retinue.models import tiny
    >>> objective = SoftDistillation(tiny("timm_cnn"))
    """

    def __init__(
        self,
        teacher: nn.Module | str,
        data: Data | None = None,
        *,
        teacher_args: Mapping[str, Any] | None = None,
        alpha: float = 1.0,
        tau: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(label_smoothing)
        if not 0 <= alpha <= 1:
            raise ArgumentError(f"SoftDistillation: `alpha` must lie in [0, 1], got {alpha}. The paper has 1.")
        if not tau > 0:
            raise ArgumentError(f"SoftDistillation: `tau` must be above 0, got {tau}. The paper has 1.")
        self.alpha, self.tau = alpha, tau
        self.teacher: Any = find_teacher(teacher, data, teacher_args).requires_grad_(False).eval()
        self.scale: Any
        self.shift: Any
        self.register_buffer("scale", None, persistent=False)
        self.register_buffer("shift", None, persistent=False)

    def train(self, mode: bool = True) -> "SoftDistillation":
        """Switch between training and evaluation; the teacher stays in evaluation."""
        super().train(mode)
        self.teacher.eval()
        return self

    def prepare(self, model: nn.Module, data: Data) -> nn.Module:
        """Return the network that is trained; what it does not want decayed is marked."""
        return exempt_from_decay(super().prepare(model, data))

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuse a teacher that is the student, tells other classes apart, or cannot take the images."""
        super().check(model, data)
        if model is self.teacher:
            raise ArgumentError("SoftDistillation: the teacher is the network that learns. Give a copy of it, or another network.")
        self._see_as_in_training(data.preprocessing)
        outputs = outputs_of(self.teacher, data, "SoftDistillation")
        known = getattr(self.teacher, "classes", None)
        if outputs != len(data.classes) or (known is not None and list(known) != list(data.classes)):
            raise ArgumentError(
                f"SoftDistillation: the teacher tells {outputs} classes apart{'' if known is None else f' ({str(list(known))[1:60]} ...)'} "
                f"and {data.name} has {len(data.classes)} ({str(data.classes)[1:60]} ...). Take a teacher of the same classes."
            )

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss, the divergence as it enters it, and how many images of the batch are right."""
        logits = model(batch.images)
        with torch.no_grad():
            images = batch.images if self.scale is None else batch.images * self.scale + self.shift
            answers = self.teacher(images)
        divergence = distillation_kl(logits, answers, self.tau) / logits.shape[-1]
        loss = self.alpha * divergence
        if self.alpha < 1:
            loss = loss + (1 - self.alpha) * self._loss(logits, batch)
        return {"loss": loss, "divergence": divergence.detach(), "top1": (logits.argmax(-1) == batch.labels).float().mean()}

    def _see_as_in_training(self, seen: Preprocessing) -> None:
        own = getattr(self.teacher, "preprocessing", None)
        if own is None or own.channels != seen.channels:
            return
        mean, std, their_mean, their_std = (
            torch.tensor(values).reshape(1, -1, 1, 1) for values in (seen.mean, seen.std, own.mean, own.std)
        )
        self.scale, self.shift = std / their_std, (mean - their_mean) / their_std


def find_teacher(teacher: nn.Module | str, data: Data | None, options: Mapping[str, Any] | None) -> nn.Module:
    """Take, load or build the teacher; the arguments are those of `SoftDistillation`."""
    if isinstance(teacher, nn.Module):
        if options:
            raise ArgumentError(
                "SoftDistillation: `teacher_args` are options of a teacher given by name; yours is a module. Leave them out."
            )
        return teacher
    if (Path(teacher) / "config.json").is_file():
        return load(teacher)
    shape: dict[str, Any] = {}
    if data is not None:
        seen = data.preprocessing
        shape = {"num_classes": len(data.classes), "in_chans": seen.channels, "input_size": seen.input_size}
    network: Any = create_model(teacher, **{**shape, **(options or {})})
    if (options or {}).get("pretrained"):
        cfg = network.pretrained_cfg
        network.preprocessing = Preprocessing(tuple(cfg["input_size"][-2:]), network.in_chans, tuple(cfg["mean"]), tuple(cfg["std"]))
    return network
