"""How good a classifier is on corrupted images: accuracy, calibration and loss for each kind of corruption."""

from collections.abc import Sequence

import torch
from torch import nn

from retinue.data import Split, views
from retinue.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from retinue.engine.evaluation import as_trained, judge, logits
from retinue.engine.modes import evaluating
from retinue.errors import ArgumentError, unknown


def corruption_robustness(
    model: nn.Module,
    split: Split,
    kinds: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    *,
    seed: int = 0,
    batch_size: int = 256,
) -> dict[str, dict[str, float]]:
    """Measure a classifier on held-out images as they are, and as each corruption leaves them.

    Every model meets the same corrupted images: they depend on the seed, the kind, the severity and the image alone.

    Args:
        model: gives logits; one with its own `preprocessing` sees the images as in its training.
        split: such as `data.test`.
        kinds: names of `retinue.data.corruptions.CORRUPTIONS`; None takes all of them.
        severities: from 1 to 5.
        seed: of the corruptions.
        batch_size: images at a time.

    Returns:
        A row "clean", one for each kind, and "mean" over the kinds, each with the numbers of `retinue.evaluate`. Those of a kind are means
        over the severities, with the accuracy at each as "top1_severity_1" and so on.

    Raises:
        ArgumentError: if there is no such kind or severity, or the images do not fit the model.
    """
    chosen = list(CORRUPTIONS) if kinds is None else list(kinds)
    for kind in chosen:
        if kind not in CORRUPTIONS:
            raise unknown("corruption_robustness", "corruption", kind, CORRUPTIONS)
    if not chosen or not severities or not set(severities) <= set(SEVERITIES):
        raise ArgumentError(
            f"corruption_robustness: give one kind and one severity from 1 to 5 at least, got kinds={chosen} and "
            f"severities={list(severities)}."
        )
    table = {"clean": judge(*logits(model, split, batch_size=batch_size))}
    for kind in chosen:
        rows = {severity: _corrupted(model, split, kind, severity, seed, batch_size) for severity in severities}
        means = {name: sum(row[name] for row in rows.values()) / len(rows) for name in table["clean"]}
        table[kind] = means | {f"top1_severity_{severity}": row["top1"] for severity, row in rows.items()}
    table["mean"] = {name: sum(table[kind][name] for kind in chosen) / len(chosen) for name in table[chosen[0]]}
    return table


@torch.inference_mode()
def _corrupted(model: nn.Module, split: Split, kind: str, severity: int, seed: int, batch_size: int) -> dict[str, float]:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    seen = as_trained(model, split).preprocessing
    place = 10 * sorted(CORRUPTIONS).index(kind) + severity
    found = []
    with evaluating(model):
        for indices in torch.arange(len(split)).split(batch_size):
            shown = corrupt(seen.centre(split.images(indices)).to(device), kind, severity, views.keys(seed, place, indices).to(device))
            found.append(model(seen.normalize(shown)).float().cpu())
    return judge(torch.cat(found), split.labels)
