"""Pictures of why, for networks with prototypes: what an image is like, how much that counts, and how sure it all is."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from retinue.engine import evaluating
from retinue.errors import ArgumentError
from retinue.models.prob_psenn_network import ProbPSENN
from retinue.models.prototype_network import PrototypeClassifier
from retinue.plots.galleries import gallery as grid
from retinue.plots.galleries import to_rgb

NEAREST = 5  # prototypes shown for an image
SAMPLES = 4  # samples of a random prototype shown for an image
BAND = (0.05, 0.95)  # of samples lie in it
MOST = 10  # classes drawn, the likeliest
BLUE, GREY = "tab:blue", "0.75"


def figures(model: nn.Module, images: UInt8[Tensor, "batch channels height width"], names: Sequence[str]) -> Iterator[tuple[str, Figure]]:
    """Draw for each image which prototypes it is like, and what that says.

    Of a `PrototypeClassifier`: the image, what the decoder makes of its code, the nearest prototypes with distance, weight and
    contribution, and the probabilities. Of a `ProbPSENN` also samples of the prototype of the class it names, the distances and the
    probabilities as bands over samples, and the uncertainties.

    Args:
        model: either network, from `retinue.load`.
        images: as decoded.
        names: of the images, such as their files.

    Yields:
        Each image's name and figure.

    Raises:
        ArgumentError: if the model is neither network or does not know its preprocessing, or there is another number of names.
    """
    network = _known(model)
    if len(names) != len(images):
        raise ArgumentError(f"prototypes: there are {len(images)} images and {len(names)} names. Give one for each.")
    draw = _why_random if isinstance(model, ProbPSENN) else _why
    device = next(model.parameters()).device
    for image, name in zip(images, names):
        with torch.no_grad(), evaluating(model):
            yield name, draw(network, image, network.preprocessing.normalize(image[None].to(device)), name)


def gallery(model: nn.Module) -> Figure:
    """Draw all prototypes, decoded, with the class that each stands for; of random ones the mode and three samples.

    Args:
        model: either network, from `retinue.load`.

    Raises:
        ArgumentError: if the model is neither network.
    """
    network = _known(model)
    labels = [network.classes[k] for k in network.prototype_labels().tolist()]
    with torch.no_grad(), evaluating(model):
        if not isinstance(model, ProbPSENN):
            captions = [f"prototype {j}\nclass {label}" for j, label in enumerate(labels)]
            return grid(list(network.decode_prototypes()), captions, title="all prototypes, and the class that each stands for", width=1.2)
        shown = torch.cat([network.decode(network.distributions.modes())[None], network.decode_prototypes(3)])
    rows = [picture for j in range(len(labels)) for picture in shown[:, j]]
    captions = [f"{label}, {'mode' if s == 0 else f'sample {s}'}" for label in labels for s in range(len(shown))]
    columns = len(shown) * (2 if len(labels) > 5 else 1)
    return grid(rows, captions, columns=columns, title="prototypes of each class: the mode, and samples", width=1.0)


def _why(network: Any, image: Tensor, x: Tensor, name: str) -> Figure:
    probs = network(x).softmax(1)[0].cpu()
    told = int(probs.argmax())
    evidence = network.explain(x, top=min(NEAREST, network.num_prototypes))[0]
    figure = Figure(figsize=(1.5 * (len(evidence) + 2) + 5, 2.7), layout="constrained")
    axes = figure.subplots(1, len(evidence) + 4, width_ratios=[1] * (len(evidence) + 2) + [1.4, 1.6])
    _show(axes[0], image, "the image")
    _show(axes[1], network.decode(network.forward_features(x))[0], "as the decoder\nsees it")
    for place, one in enumerate(evidence):
        own = one.label == told
        caption = f"distance {one.distance:.2f}\nweight {one.weight:+.2f}\ncontribution {one.contribution:+.2f}"
        title = f"prototype {one.prototype}\nclass {network.classes[one.label]}"
        _show(axes[place + 2], one.image, title, caption, colour=BLUE if own else GREY)
    _bars(axes[-2], network.classes, probs, None, "probability")
    distances = network.forward_head(network.forward_features(x), pre_logits=True)[0]
    _margins(axes[-1], network, distances, told)
    figure.suptitle(f"{name}: {network.classes[told]}, and the nearest prototypes (blue: those of this class)", fontsize=10)
    return figure


def _margins(axes: Axes, network: Any, distances: Float[Tensor, " prototypes"], told: int) -> None:
    """Draw how much each prototype lifts the logit of the class above the classes' mean; all of them add up to all of the lift."""
    weights = network.classifier.weight
    lift = ((weights[told] - weights.mean(0)) * distances).cpu()
    order = lift.abs().argsort(descending=True)[:MOST].tolist()
    labels = network.prototype_labels().tolist()
    axes.barh(range(len(order)), lift[order].numpy(), color=[BLUE if labels[j] == told else GREY for j in order])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(yticks=range(len(order)))
    _small(
        axes,
        [f"{j} (class {network.classes[labels[j]]})" for j in order],
        f"prototypes that lift {network.classes[told]}\nabove the classes' mean",
    )


def _why_random(network: Any, image: Tensor, x: Tensor, name: str) -> Figure:
    z = network.forward_features(x)
    prototypes = network.sample_prototypes(network.test_samples)
    distances = network.distances(z, prototypes)
    probs = network.classifier(distances).softmax(-1)[0].cpu()
    mean = probs.mean(0)
    told = int(mean.argmax())
    doubt = {key: float(value) for key, value in network.uncertainty(x, network.test_samples).items()}
    own = distances[0, :, told * network.prototypes_per_class : (told + 1) * network.prototypes_per_class]
    closest = int(own.amin(1).argmin())
    j = told * network.prototypes_per_class + int(own.mean(0).argmin())  # the prototype of the class that is nearest on average
    weight = float(network.classifier.weight[told, j])
    figure = Figure(figsize=(10.5, 5.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=[1, 1.25])[:, 0]
    axes = top.subplots(1, SAMPLES + 4)
    nearest = network.decode(prototypes[closest][None])[0, j]
    shown = network.decode(prototypes[:SAMPLES, j])
    modal = network.decode(network.distributions.modes()[j][None])[0]
    to_mode = float((z[0] - network.distributions.modes()[j]).square().sum())
    _show(axes[0], image, "the image")
    _show(axes[1], network.decode(z)[0], "as the decoder\nsees it")
    _show(axes[2], modal, f"mode,\nclass {network.classes[told]}", _counts(to_mode, weight), colour=BLUE)
    _show(axes[3], nearest, "closest\nsample", _counts(float(distances[0, closest, j]), weight), colour=BLUE)
    for s in range(SAMPLES):
        _show(axes[4 + s], shown[s], f"sample {s + 1}", _counts(float(distances[0, s, j]), weight), colour=BLUE)
    left, middle, right = bottom.subplots(1, 3, width_ratios=[1.3, 1.3, 1])
    of_classes = network.class_distances(distances)[0].cpu()
    _bars(left, network.classes, mean, probs, "probability, and band over samples")
    _boxes(middle, network.classes, of_classes, mean)
    _doubts(right, doubt, len(network.classes))
    figure.suptitle(f"{name}: {network.classes[told]}, because it is near prototypes of this class", fontsize=10)
    return figure


def _counts(distance: float, weight: float) -> str:
    return f"distance {distance:.1f}\nweight {weight:+.2f}\ncontribution {distance * weight:+.1f}"


def _show(axes: Axes, image: Tensor, title: str, caption: str = "", colour: str = "white") -> None:
    axes.imshow(to_rgb(image), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=2)
    axes.set_title(title, fontsize=8)
    axes.set_xlabel(caption, fontsize=7)


def _bars(axes: Axes, classes: Sequence[str], mean: Float[Tensor, " classes"], samples: Tensor | None, title: str) -> None:
    """Draw the likeliest classes' probabilities, and the band in which those of single samples lie."""
    order = mean.argsort(descending=True)[:MOST].tolist()
    values = mean[order].numpy()
    axes.barh(range(len(order)), values, color=[BLUE, *[GREY] * (len(order) - 1)])
    if samples is not None:
        low, high = torch.quantile(samples[:, order], torch.tensor(BAND), dim=0).numpy()
        axes.hlines(range(len(order)), low, high, color="black", linewidth=1.5)
    axes.set(yticks=range(len(order)), xlim=(0, 1))
    _small(axes, [classes[k] for k in order], title)


def _boxes(axes: Axes, classes: Sequence[str], distances: Float[Tensor, "samples classes"], mean: Tensor) -> None:
    """Draw where the distances to samples of each class's prototypes lie."""
    order = mean.argsort(descending=True)[:MOST].tolist()
    boxes = axes.boxplot(
        distances[:, order].numpy(),
        orientation="horizontal",
        positions=range(len(order)),
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
    )
    for place, box in enumerate(boxes["boxes"]):
        box.set_facecolor(BLUE if place == 0 else GREY)
    axes.set(yticks=range(len(order)))
    _small(axes, [classes[k] for k in order], "squared distance to prototypes (5 to 95 %)")


def _doubts(axes: Axes, doubt: dict[str, float], classes: int) -> None:
    """Draw each uncertainty on its own scale, from sure to unsure."""
    largest = {name: float(torch.tensor(float(classes)).log()) for name in ("predictive", "aleatoric", "epistemic")}
    known = {name: value for name, value in doubt.items() if value == value}
    axes.barh(range(len(known)), [1.0] * len(known), color="0.94")
    axes.barh(range(len(known)), [value / largest.get(name, 1.0) for name, value in known.items()], color="tab:orange")
    for place, value in enumerate(known.values()):
        axes.text(0.98, place, f"{value:.2f}", ha="right", va="center", fontsize=7)
    axes.set(yticks=range(len(known)), xlim=(0, 1), xticks=[0, 1])
    words = {"predictive": "answer, all", "aleatoric": "answer, aleatoric", "epistemic": "answer, epistemic"}
    _small(axes, [words.get(name, f"explanation, {name}") for name in known], "how unsure (entropies in nats)")
    axes.set_xticklabels(["sure", "unsure"])


def _small(axes: Axes, labels: Sequence[str], title: str) -> None:
    axes.invert_yaxis()
    axes.set_yticklabels(labels)
    axes.tick_params(labelsize=7)
    axes.set_title(title, fontsize=8)


def _known(model: nn.Module) -> Any:
    if not isinstance(model, PrototypeClassifier | ProbPSENN):
        raise ArgumentError(
            f"prototypes: the model must be a PrototypeClassifier or a ProbPSENN, got {type(model).__name__}. Train one: "
            'retinue.create_model("prototype_dl", ...) or retinue.explain.PrototypeLoss around any network.'
        )
    if not hasattr(model, "preprocessing") or not hasattr(model, "classes"):
        raise ArgumentError("prototypes: the model must know its classes and preprocessing. Take it from retinue.load(run_dir).")
    return model
