"""What the numbers of an audit mean: for each topic a verdict in words, and what to do about it."""

from typing import Literal, NamedTuple

from retinue.audit.dataset_report import EPS, DatasetReport

Level = Literal["good", "look", "mend"]

FEW = 20  # training images of a class that are very few
LOPSIDED, VERY_LOPSIDED = 3.0, 10.0  # largest class over smallest
LEAK = 0.001  # share of a split's images that have a copy elsewhere, above which its scores cannot be trusted
SIGNAL = 0.5  # share of the variance of brightness between classes, above which brightness alone tells the class
SHIFT = 0.5  # difference of the splits' mean brightness, in standard deviations (Cohen's d, "medium")
LOW, HIGH = 14.0, 30.0  # dimensions by this estimator: MNIST has about 13, CIFAR-10 26, ImageNet 43 (Pope et al. 2021, arXiv 2104.08894)
SHARP, SOFT = 10.0, 20.0  # grey levels between the nearest differently labelled images: tiles 4, digits and small photographs 30 to 45


class Verdict(NamedTuple):
    """One topic: how it stands, in a sentence, and what to do about it."""

    topic: str
    level: Level
    text: str
    advice: str


def verdicts(report: DatasetReport) -> list[Verdict]:
    """Judge each topic that was measured, in the order of the page."""
    found = [files(report), copies(report), balance(report), pictures(report)]
    found += [judge(report) for judge in (dimension, sharpness, more_images, robustness)]  # type: ignore[misc]
    return [one for one in found if one is not None]


def overall(found: list[Verdict]) -> str:
    """Say in a sentence what matters most."""
    mend, look = ([one.topic for one in found if one.level == level] for level in ("mend", "look"))
    if mend:
        return f"Mend this first: {_listed(mend)}." + (f" Then look at: {_listed(look)}." if look else "")
    return f"Nothing is broken. Worth a look: {_listed(look)}." if look else "Nothing stands in the way of training."


def files(report: DatasetReport) -> Verdict:
    """Judge broken files."""
    count, total = len(report.broken), sum(report.count(part) for part in ("train", "val", "test"))
    if count:
        return Verdict(
            "Broken files", "mend", f"{_many(count, 'file')} cannot be read, {total:,} can.",
            "Mend or delete them, or train with on_bad=skip, which leaves them out.",
        )  # fmt: skip
    return Verdict("Broken files", "good", f"All {total:,} images can be read.", "")


def copies(report: DatasetReport) -> Verdict:
    """Judge copies within and across splits."""
    found = report.copies
    shares = {name: count / max(1, report.count(name.split()[0])) for name, count in found["leaks"].items()}
    leaking = {name: share for name, share in shares.items() if share > LEAK}
    if leaking:
        told = " and ".join(f"{found['leaks'][name]:,} {_of(name)} ({100 * share:.2g} %)" for name, share in leaking.items())
        clash = f" {_many(found['clashes'], 'pair')} of copies {'has' if found['clashes'] == 1 else 'have'} different labels." * bool(
            found["clashes"]
        )
        return Verdict(
            "Copies", "mend", f"{told}.{clash}",
            "A test image that was trained on measures memory. Remove one of each pair, or draw the splits so that copies stay together.",
        )  # fmt: skip
    if found["clashes"]:
        return Verdict(
            "Copies", "mend", f"{_many(found['clashes'], 'pair')} of copies with different labels.",
            "At least one label of each is wrong, or the classes overlap. Look at the pairs.",
        )  # fmt: skip
    if found["exact"] or found["near"]:
        return Verdict(
            "Copies", "look",
            f"{_many(found['exact'], 'exact copy', 'exact copies')} and {_many(found['near'], 'near copy', 'near copies')}, "
            "hardly any across the splits.", "They count twice in training. Remove them if they are not meant.",
        )  # fmt: skip
    return Verdict("Copies", "good", "No image is there twice, within or across the splits.", "")


def balance(report: DatasetReport) -> Verdict:
    """Judge the sizes of the classes."""
    counts = {one["name"]: one["train"] for one in report.classes}
    if len(counts) < 2:
        return Verdict("Classes", "look", "There is one class, so there are no labels to learn.", "Good for learning without labels.")
    least, most = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
    absent = [one["name"] for one in report.classes if report.count("test") and not one["test"]]
    ratio = counts[most] / max(1, counts[least])
    told = f'{len(counts)} classes, from {counts[least]:,} training images ("{least}") to {counts[most]:,} ("{most}").'
    if counts[least] == counts[most]:
        told = f"{len(counts)} classes of {counts[least]:,} training images each."
    if not counts[least] or absent:
        return Verdict(
            "Classes", "mend", f"{told} Without a test image: {_listed(absent[:5])}." if absent else told,
            "Every class needs images to learn from and to be measured on. Draw the splits anew: splits=drawn.",
        )  # fmt: skip
    if ratio > VERY_LOPSIDED or counts[least] < FEW:
        return Verdict(
            "Classes", "mend" if ratio > VERY_LOPSIDED else "look", told,
            "Judge by balanced accuracy, weigh the classes in the loss (class_weights), or collect more of the rare ones.",
        )  # fmt: skip
    if ratio > LOPSIDED:
        return Verdict("Classes", "look", told, "Look at balanced accuracy beside accuracy.")
    return Verdict("Classes", "good", told, "")


def pictures(report: DatasetReport) -> Verdict:
    """Judge what the images look like."""
    images = report.images
    troubles, advice = [], []
    if images["flat_count"]:
        troubles.append(f"{_many(images['flat_count'], 'image')} show{'s' if images['flat_count'] == 1 else ''} nothing (one flat colour).")
        advice.append("Remove them.")
    for name, share in images["class_signal"].items():
        if share > SIGNAL:
            troubles.append(f"{name.capitalize()} alone gives the class away: {100 * share:.0f} % of its variance lies between classes.")
            advice.append("A network may learn the lighting instead of the thing. Normalise each image, or vary brightness in training.")
    train = images["parts"].get("train")
    for part, row in images["parts"].items():
        if train and part != "train" and train["spread"] > 0 and abs(row["brightness"] - train["brightness"]) > SHIFT * train["spread"]:
            troubles.append(
                f"The {part} images are {'brighter' if row['brightness'] > train['brightness'] else 'darker'} than those to train on."
            )
            advice.append("They were taken otherwise: expect worse scores, or draw the splits anew.")
    grey = images["grey"]
    total = sum(report.count(part) for part in ("train", "val", "test"))
    if report.convention["channels"] == 3 and 0 < grey < total:
        troubles.append(f"{_many(grey, 'image')} of {total:,} {'is' if grey == 1 else 'are'} grey among coloured ones.")
        advice.append("Harmless, unless it happens in one class only.")
    if troubles:
        only_grey = len(troubles) == 1 and "grey among" in troubles[0]
        return Verdict("Images", "good" if only_grey else "look", " ".join(troubles), " ".join(dict.fromkeys(advice)))
    return Verdict("Images", "good", "Brightness and contrast are alike in all classes and splits.", "")


def dimension(report: DatasetReport) -> Verdict | None:
    """Judge how many images it takes, by the dimension."""
    if report.dimension is None:
        return None
    value = report.dimension["mle"]["value"]
    kind, level = ("low, as of handwritten digits", "good") if value < LOW else ("middling, as of small photographs", "good")
    if value > HIGH:
        kind, level = "high, as of large photographs", "look"
    factor = 2**value
    told = f"{factor:,.0f}" if factor < 1e6 else f"10^{len(str(round(factor))) - 1}"
    return Verdict(
        "Dimension", level, f"The images have about {value:.1f} degrees of freedom: {kind}.",  # type: ignore[arg-type]
        f"By the bound of the law alone, half the loss would take {told} times the images; networks that know images do better. "
        + ("Start from a pre-trained network." if value >= LOW else "A small network from scratch will do."),
    )  # fmt: skip


def sharpness(report: DatasetReport) -> Verdict | None:
    """Judge how near to each other differently labelled images are."""
    found = report.sharpness
    if found is None:
        return None
    levels = found["grey_levels"]
    told = (
        f'The nearest two images of different classes ("{found["labels"][0]}" and "{found["labels"][1]}") are {levels:.1f} of 255 grey '
        f"levels apart on average."
    )
    if found["left_out"]:
        told += f" {_many(found['left_out'], 'image')} left out that {'has' if found['left_out'] == 1 else 'have'} two labels."
    if levels < SHARP:
        return Verdict(
            "Label sharpness", "look", f"{told} That is very near.",
            "Look at the pair: one is mislabelled, or the classes differ in fine detail. Then a trained network will be easy to mislead.",
        )  # fmt: skip
    return Verdict("Label sharpness", "good", f"{told} {'That is near.' if levels < SOFT else 'That is far.'}", "")


def more_images(report: DatasetReport) -> Verdict | None:
    """Say what more images would bring."""
    curve = report.curve
    if curve is None:
        return None
    now, (_, _, ten, low, high) = curve["now"][0], curve["ahead"][-1]
    less = 1 - ten / now
    if curve["r2"] < 0.5 or not high < float("inf"):
        return Verdict(
            "More images", "look", "The test loss does not follow the law here, so nothing can be foretold.",
            "Train on more images and see, or give several runs.",
        )  # fmt: skip
    return Verdict(
        "More images", "good" if less > 0.1 else "look",
        f"Ten times the images would bring the test loss of {curve['by']} from {now:.2g} to {ten:.2g} (95 %: {low:.2g} to {high:.2g}).",
        "More images are worth their price."
        if less > 0.3
        else "More images of the same kind help little: better labels or another network may.",
    )  # fmt: skip


def robustness(report: DatasetReport) -> Verdict | None:
    """Judge what an attack costs, by the model, or by the probe on the most images."""
    if report.attack is not None:
        clean, attacked, who = report.attack[0.0]["top1"], report.attack[EPS]["top1"], "the model"
    elif report.curve is not None and "attacked" in report.curve["rows"][0]:
        row = max(report.curve["rows"], key=lambda one: one["images"])
        clean, attacked, who = row["top1"], row["attacked"], "a small network"
    else:
        return None
    lost = clean - attacked
    told = f"Moving every pixel by 2 of 255 against {who} takes its accuracy from {100 * clean:.0f} % to {100 * attacked:.0f} %."
    if lost > 0.3:
        return Verdict("Attack", "look", told, "Where somebody may want to mislead it, train against such changes.")
    return Verdict("Attack", "good", told, "")


def _many(count: int, one: str, several: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def _of(leak: str) -> str:
    later, earlier = leak.split(" in ")
    return f"{later} images have a copy in {earlier}"


def _listed(names: list[str]) -> str:
    return ", ".join(name if name[1:2].isupper() else name[:1].lower() + name[1:] for name in names)
