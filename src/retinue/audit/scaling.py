"""How the test loss falls with more images: the law L = O(K_F N^(-1/d)) as a fit, with intervals for its predictions (arXiv 2401.08865)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from retinue.errors import ArgumentError

LEVEL = 0.95  # of the intervals
SAME = 1e-9  # spread of a column below which it counts as constant


class ScalingRecord(NamedTuple):
    """One trained network: training images, test loss in nats, intrinsic dimension and label sharpness of its data."""

    images: int
    loss: float
    dimension: float
    sharpness: float


class Prediction(NamedTuple):
    """A test loss, and the interval in which one more training would land with 95 %; infinite where no record is to spare."""

    loss: float
    low: float
    high: float


@dataclass(frozen=True)
class ScalingFit:
    """log L = intercept + sharpness log K_F - rate log(N) / d.

    Attributes:
        intercept: the constant.
        sharpness: coefficient of log K_F, 1 by the law; None where all records have the same K_F, which is then in the constant.
        rate: coefficient of -log(N) / d, 1 by the law.
        r2: share of the variance of log L that the fit explains.
        records: how many networks it rests on.
        spread: standard deviation of log L about the fit; not a number where no record is to spare.
    """

    intercept: float
    sharpness: float | None
    rate: float
    r2: float
    records: int
    spread: float
    covariance: tuple[tuple[float, ...], ...]

    def predict(self, images: int, dimension: float, sharpness: float = 1.0) -> Prediction:
        """Predict the test loss of a network trained on so many images.

        Args:
            images: training images.
            dimension: intrinsic dimension of the data.
            sharpness: its label sharpness; of no effect where the fit has no coefficient for it.

        Raises:
            ArgumentError: if a number is not positive.
        """
        _positive("predict", {"images": images, "dimension": dimension, "sharpness": sharpness})
        row = [1.0, -math.log(images) / dimension]
        coefficients = [self.intercept, self.rate]
        if self.sharpness is not None:
            row.append(math.log(sharpness))
            coefficients.append(self.sharpness)
        middle = float(np.dot(row, coefficients))
        free = self.records - len(row)
        if free < 1:
            return Prediction(math.exp(middle), 0.0, math.inf)
        error = self.spread * math.sqrt(1 + float(np.array(row) @ np.array(self.covariance) @ np.array(row)))
        reach = float(student.ppf((1 + LEVEL) / 2, free)) * error
        return Prediction(math.exp(middle), math.exp(middle - reach), math.exp(min(middle + reach, 700.0)))


def fit_scaling(records: Sequence[ScalingRecord | tuple[int, float, float, float]]) -> ScalingFit:
    """Fit the law to trained networks by least squares of log L on [1, log K_F, -log(N) / d].

    Args:
        records: of each network the training images N, the test loss L in nats, and the data's dimension d and label sharpness K_F. All of
            one kind of network, trained alike: the law has no term for it.

    Raises:
        ArgumentError: if a number is not positive, log(N) / d is the same for all, or there are fewer records than coefficients.

    >>> fit = fit_scaling([ScalingRecord(n, 8 * n ** (-1 / 4), 4.0, 0.1) for n in (100, 200, 400)])
    >>> round(fit.rate, 6), fit.sharpness, round(fit.predict(10_000, 4.0).loss, 6)
    (1.0, None, 0.8)
    """
    rows = [ScalingRecord(*record) for record in records]
    for record in rows:
        _positive("fit_scaling", record._asdict())
    if len(rows) < 2:
        raise ArgumentError(f"fit_scaling: at least 2 records are needed, got {len(rows)}. Train on different numbers of images.")
    losses = np.log([record.loss for record in rows])
    columns = [np.ones(len(rows)), np.array([-math.log(record.images) / record.dimension for record in rows])]
    if np.ptp(columns[1]) < SAME:
        raise ArgumentError(
            "fit_scaling: `records` all have the same log(N) / d, so nothing is told of how the loss falls. "
            "Train on different numbers of images."
        )
    sharp = np.log([record.sharpness for record in rows])
    if np.ptp(sharp) >= SAME:
        columns.append(sharp)
    design = np.stack(columns, 1)
    if len(rows) < design.shape[1] or np.linalg.matrix_rank(design) < design.shape[1]:
        raise ArgumentError(
            f"fit_scaling: {len(rows)} records do not determine {design.shape[1]} coefficients. Give more, with other N, d and K_F."
        )
    found: NDArray[np.float64] = np.linalg.lstsq(design, losses, rcond=None)[0]
    left = float(np.square(losses - design @ found).sum())
    whole = float(np.square(losses - losses.mean()).sum())
    free = len(rows) - design.shape[1]
    return ScalingFit(
        intercept=float(found[0]),
        sharpness=float(found[2]) if len(found) > 2 else None,
        rate=float(found[1]),
        r2=1 - left / whole if whole > 0 else 1.0,
        records=len(rows),
        spread=math.sqrt(left / free) if free else math.nan,
        covariance=tuple(map(tuple, np.linalg.inv(design.T @ design).tolist())),
    )


def _positive(where: str, numbers: dict[str, float]) -> None:
    for name, value in numbers.items():
        if not (value > 0 and math.isfinite(value)):
            raise ArgumentError(f"{where}: `{name}` must be positive and finite, got {value}. Its logarithm is taken.")
