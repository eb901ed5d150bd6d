"""How numbers and settings are written."""

import json
from collections.abc import Mapping
from typing import Any

LONGEST_TEXT = 400  # characters of a setting
EXPLAINED = {  # what the pictures of each method of `retinue explain` show
    "gradcam": "Grad-CAM: the warmer, the more a place spoke for the class.",
    "gradcam++": "Grad-CAM++: the warmer, the more a place spoke for the class.",
    "layercam": "LayerCAM: the warmer, the more a place spoke for the class.",
    "gradient": "Gradient: how much each pixel matters for the class.",
    "guided": "Guided Grad-CAM: the pixels that matter where the network looked.",
    "prototypes": "Prototypes: everything that images are compared with, and the class for which each speaks.",
    "fool-direct": "Fooling images, evolved pixel by pixel: nothing to see, and the confidence of the model that there is.",
    "fool-cppn": "Fooling images, evolved as patterns: nothing to see, and the confidence of the model that there is.",
    "fool-gradient": "Fooling images, by gradient ascent: nothing to see, and the confidence of the model that there is.",
}
UNSET = "–"


def percent(share: float, sign: bool = True) -> str:
    """Write a share with one digit after the point, or two below one percent.

    >>> percent(0.9749), percent(0.00321), percent(0.5, sign=False)
    ('97.5 %', '0.32 %', '50.0')
    """
    digits = 1 if abs(share) >= 0.01 or share == 0 else 2
    return f"{100 * share:.{digits}f}{' %' if sign else ''}"


def number(value: float) -> str:
    """Write a number as briefly as it goes.

    >>> number(20.0), number(0.5), number(1294)
    ('20', '0.5', '1,294')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def measured(value: float) -> str:
    """Write a measurement with three significant digits, zeros at the end included.

    >>> measured(0.16), measured(2), measured(123.4)
    ('0.160', '2.00', '123')
    """
    return f"{value:#.3g}".rstrip(".")


def count(value: float) -> str:
    """Write a whole number with its thousands apart.

    >>> count(50000)
    '50,000'
    """
    return f"{value:,.0f}"


def rounded(value: float) -> str:
    """Write a rate with three digits that count, its thousands apart.

    >>> rounded(2567.3), rounded(0.4567)
    ('2,570', '0.457')
    """
    return f"{float(f'{value:.3g}'):,g}"


def short(value: float) -> str:
    """Write a large number with k, M or G.

    >>> short(54306464), short(1234), short(312)
    ('54.3 M', '1.23 k', '312')
    """
    for factor, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Write a time in the two largest units that it has.

    >>> duration(3.04), duration(58.3), duration(72), duration(7260)
    ('3.0 s', '58 s', '1 min 12 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def last_name(path: str | None) -> str:
    """Return the last part of a dotted name.

    >>> last_name("retinue.train.Supervised"), last_name(None)
    ('Supervised', '')
    """
    return (path or "").rpartition(".")[2]


def flat(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Write nested settings as pairs of a dotted name and a text; very long texts are cut.

    >>> flat({"lr": 0.1, "views": None, "data": {"size": [8, 8]}})
    [('lr', '0.1'), ('views', '–'), ('data.size', '[8, 8]')]
    """
    if isinstance(values, Mapping) and (values or not prefix):
        return [pair for name, value in values.items() for pair in flat(value, f"{prefix}.{name}" if prefix else str(name))]
    if values is None or values == [] or values == {}:
        text = UNSET
    else:
        text = values if isinstance(values, str) else json.dumps(values, ensure_ascii=False, default=str)
    return [(prefix, text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} … ({len(text):,} characters)")]
