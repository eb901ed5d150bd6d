"""Is this picture synthetic, and from which family of generators? ImagiNet's detector (Boychev and Cholakov 2024, arXiv 2407.20020).

A backbone pre-trained by `retinue.pretrain.SelfCon` is frozen; `SyntheticDetector` is fitted on top by the ordinary cross-entropy; and
`calibrate` moves its logit to where 0.5 is the threshold. `retinue.audit.train_detector` does all of it.
"""

import time
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from retinue.data import Split
from retinue.engine import evaluating, logits
from retinue.errors import ArgumentError, DataError
from retinue.models.synthetic_detector import SyntheticDetector

STRENGTH = 1e10  # scikit-learn's C: practically no penalty


class Calibration(NamedTuple):
    """P(synthetic) = 1 / (1 + exp(-(slope l + intercept))) of a logit l."""

    slope: float
    intercept: float

    def probability(self, logit: Float[Tensor, " images"]) -> Float[Tensor, " images"]:
        """Compute P(synthetic)."""
        return torch.sigmoid(self.slope * logit + self.intercept)


def synthetic_logit(model: nn.Module, split: Split, *, batch_size: int = 256) -> Float[Tensor, " images"]:
    """Compute log P(synthetic) / P(real) of every image, in evaluation mode: the second logit less the first.

    Args:
        model: a classifier of two classes, real and synthetic in this order.
        split: the images.
        batch_size: images at a time.

    Raises:
        ArgumentError: if the model has not two classes, or the images do not fit it.
    """
    found = logits(model, split, batch_size=batch_size)[0].double()
    if found.shape[1] != 2:
        raise ArgumentError(
            f"synthetic_logit: the model has {found.shape[1]} classes, and needs 2: real and synthetic. Train it on "
            "retinue.data.annotations.by_origin(data)."
        )
    return found[:, 1] - found[:, 0]


def fit_calibration(logit: Float[Tensor, " images"], synthetic: Int[Tensor, " images"]) -> Calibration:
    """Fit a logistic regression without penalty to the logits of held-out images.

    Args:
        logit: of each image.
        synthetic: 0 real, 1 synthetic.

    Raises:
        DataError: if there is one class only.
    """
    check_both("fit_calibration", synthetic)
    values: NDArray[np.float64] = logit.double().numpy()[:, None]
    spread = float(values.std()) or 1.0  # the solver wants numbers near 1
    fitted = LogisticRegression(C=STRENGTH, max_iter=1000).fit(values / spread, synthetic.numpy())
    return Calibration(float(fitted.coef_[0, 0]) / spread, float(fitted.intercept_[0]))


def calibrate(detector: SyntheticDetector, split: Split, *, batch_size: int = 256) -> Calibration:
    """Set `slope` and `intercept` of a detector by images on which it was not fitted.

    Args:
        detector: of two classes.
        split: as many real (0) as synthetic images (1); the paper has 40 of each.
        batch_size: images at a time.

    Raises:
        DataError: if there is one class only.
        ArgumentError: if the detector has not two classes.
    """
    detector.slope.fill_(1)
    detector.intercept.fill_(0)
    found = fit_calibration(synthetic_logit(detector, split, batch_size=batch_size), split.labels)
    detector.slope.fill_(found.slope)
    detector.intercept.fill_(found.intercept)
    return found


def balanced_images(split: Split, count: int, seed: int = 0) -> Split:
    """Draw images for `calibrate`, half of each of two classes; fewer where a class has not so many.

    Args:
        split: images of two classes.
        count: how many.
        seed: of the draw.

    Raises:
        ArgumentError: if `count` is below 2.
        DataError: if there is one class only.
    """
    if count < 2:
        raise ArgumentError(f"balanced_images: `count` must be 2 or more, half of each class, got {count}. The paper has 80.")
    check_both("balanced_images", split.labels)
    random = np.random.default_rng(seed)
    members = [random.permutation(np.flatnonzero(split.labels.numpy() == label)) for label in (0, 1)]
    each = min(count // 2, *map(len, members))
    return split.subset(torch.from_numpy(np.sort(np.concatenate([some[:each] for some in members]))))


def throughput(model: nn.Module, split: Split, *, batch_size: int = 256, images: int = 256) -> float:
    """Measure how many decoded images a model judges in a second, in evaluation mode, after one batch that is not counted.

    Args:
        model: any classifier.
        split: where the images are from.
        batch_size: images at a time.
        images: how many are judged at least.

    Raises:
        ArgumentError: if the split is empty.
    """
    if not len(split):
        raise ArgumentError("throughput: the split is empty. Open the data with a larger test_fraction.")
    device = next(model.parameters()).device
    batch = next(iter(split.loader(batch_size, device=device).batches())).images
    done = 0
    with torch.inference_mode(), evaluating(model):
        model(batch)
        _wait(device)
        started = time.perf_counter()
        while done < images:
            model(batch)
            done += len(batch)
        _wait(device)
        return done / (time.perf_counter() - started)


def check_both(where: str, synthetic: Int[Tensor, " images"]) -> None:
    """Refuse images that are all real or all synthetic.

    Raises:
        DataError: if they are, or a label is neither 0 nor 1.
    """
    found = sorted(set(synthetic.tolist()))
    if found != [0, 1]:
        names = {0: "real", 1: "synthetic"}
        told = ", ".join(names.get(one, str(one)) for one in found) or "none"
        raise DataError(f"{where}: there must be real (0) and synthetic (1) images, got {told} only. Add the others.")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
