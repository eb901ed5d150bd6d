"""The reliability diagram."""

import io

import pytest
import torch

from retinue.metrics import calibration
from retinue.plots import reliability


def test_bars_reach_what_is_right_and_the_gap_says_which_way() -> None:
    # bin 0.5-0.75: 0.6 sure, all right; bin 0.75-1: 0.8 sure, half right
    shares = torch.tensor([[0.6, 0.4], [0.8, 0.2], [0.8, 0.2]], dtype=torch.float64)
    figure = reliability(calibration(shares, torch.tensor([0, 0, 1]), bins=4))
    above, below = figure.axes
    right, under, over = ([(bar.get_x(), bar.get_y(), bar.get_height()) for bar in bars] for bars in above.containers)
    assert right == [pytest.approx((0.5, 0, 0.6)), pytest.approx((0.75, 0, 0.5))]
    assert under == [pytest.approx((0.5, 0.6, 0.4)), pytest.approx((0.75, 0.5, 0))]
    assert over == [pytest.approx((0.5, 0.6, 0)), pytest.approx((0.75, 0.5, 0.3))]
    assert [bar.get_height() for bar in below.containers[0]] == [1, 2]
    assert above.get_title(loc="left") == "expected calibration error 0.333"  # 1/3 * 0.4 + 2/3 * 0.3
    figure.savefig(io.BytesIO(), format="png")
