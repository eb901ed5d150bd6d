"""Whether a classifier's confidence can be taken at its word."""

from matplotlib.figure import Figure

from retinue.metrics import Calibration


def reliability(calibration: Calibration) -> Figure:
    """Draw a reliability diagram: accuracy against confidence, and below it how many predictions have that confidence.

    On the diagonal both agree. Orange is what is missing to it (too sure), light blue what goes beyond it.

    Args:
        calibration: from `retinue.metrics.calibration`.

    >>> import torch
    >>> from retinue import metrics
    >>> figure = reliability(metrics.calibration(torch.tensor([[0.8, 0.2], [0.6, 0.4]]), torch.tensor([0, 1])))
    """
    figure = Figure(figsize=(4.2, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
    taken = calibration.count > 0
    edges, accuracy, confidence = calibration.edges, calibration.accuracy[taken], calibration.confidence[taken]
    left, width = edges[:-1][taken].tolist(), (edges[1] - edges[0]).item() * 0.92
    agreed = accuracy.minimum(confidence)
    parts = [
        (agreed, 0 * agreed, "#2458ba", "right"),
        (accuracy - agreed, agreed, "#a6bde3", "right more often than promised"),
        (confidence - agreed, agreed, "#dd9a6c", "too sure"),
    ]
    for height, bottom, colour, label in parts:
        above.bar(left, height.tolist(), width, bottom.tolist(), align="edge", color=colour, label=label)
    above.plot([0, 1], [0, 1], color="black", linewidth=1)
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="share right")
    above.set_title(f"expected calibration error {calibration.error.item():.3f}", loc="left")
    above.legend(frameon=False, fontsize="small", loc="upper left")
    below.bar(left, calibration.count[taken].tolist(), width, align="edge", color="#8d929b")
    below.set(xlabel="confidence", ylabel="images")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
