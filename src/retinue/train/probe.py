"""How good is a backbone? Nearest neighbours, a linear probe and fine-tuning on few labels, each beside the same network from scratch."""

import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from retinue.data import Data, Split, few_labels
from retinue.engine import Supervised, evaluate, fit, stages
from retinue.engine.modes import evaluating
from retinue.engine.seeds import own_randomness, seed_all
from retinue.errors import ArgumentError, unknown
from retinue.models import adapt, config, create_model, pooled_features, untrained

Method = Literal["knn", "linear", "finetune"]
METHODS: tuple[Method, ...] = ("knn", "linear", "finetune")
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the linear probe: scikit-learn's C, chosen on the validation images
TEMPERATURE = 0.07  # of the votes of neighbours (Wu et al. 2018, arXiv 1805.01978, section 3.4)
TRAINED, SCRATCH = "pre-trained", "from scratch"


def features(model: nn.Module, split: Split, *, batch_size: int = 256) -> Float[Tensor, "images features"]:
    """Compute the vector that enters the classifier for every image of a split, in evaluation mode; on the CPU.

    Args:
        model: any network; it is adapted to timm's protocol where it lacks it.
        split: the images.
        batch_size: images at a time.

    Raises:
        ArgumentError: if the split is empty.
    """
    if not len(split):
        raise ArgumentError("features: the split is empty. Open the data with a larger test_fraction or val_fraction.")
    network = adapt(model, input_size=split.preprocessing.input_size)
    device = next(network.parameters()).device
    with torch.inference_mode(), evaluating(network):
        return torch.cat(
            [pooled_features(network, batch.images).float().cpu() for batch in split.loader(batch_size, device=device).batches()]
        )


def knn(
    train: Float[Tensor, "images features"],
    labels: Int[Tensor, " images"],
    test: Float[Tensor, "others features"],
    neighbours: int = 20,
) -> NDArray[np.int64]:
    """Classify by the votes of the nearest neighbours in cosine, each of weight exp(cosine / 0.07) (Wu et al. 2018, section 3.4).

    Args:
        train: features of images whose labels are known.
        labels: their classes.
        test: features of the images to classify.
        neighbours: how many vote; all, where there are fewer.

    Returns:
        The class of each image of `test`.

    >>> knn(torch.eye(2), torch.tensor([3, 5]), torch.tensor([[2.0, 0.1]])).tolist()
    [3]
    """
    if neighbours < 1:
        raise ArgumentError(f"knn: `neighbours` must be at least 1, got {neighbours}.")
    votes = KNeighborsClassifier(min(neighbours, len(train)), metric="cosine", weights=lambda distance: np.exp(-distance / TEMPERATURE))
    return votes.fit(train.numpy(), labels.numpy()).predict(test.numpy())


def linear(
    train: Float[Tensor, "images features"],
    labels: Int[Tensor, " images"],
    val: Float[Tensor, "others features"],
    val_labels: Int[Tensor, " others"],
) -> Any:
    """Fit a logistic regression to standardised features; how strongly it is regularised is chosen on validation images.

    Args:
        train: features of the training images.
        labels: their classes.
        val: features of the validation images; without any, C is 1.
        val_labels: their classes.

    Returns:
        scikit-learn's classifier.
    """
    strengths = STRENGTHS if len(val) else (1.0,)
    fitted = [
        make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000)).fit(train.numpy(), labels.numpy())
        for strength in strengths
    ]
    return max(fitted, key=lambda one: one.score(val.numpy(), val_labels.numpy())) if len(val) else fitted[0]


def probe(
    model: nn.Module,
    data: Data,
    *,
    methods: Sequence[Method] = METHODS,
    shares: Sequence[float] = (0.01, 0.1, 1.0),
    neighbours: int = 20,
    steps: int = 400,
    batch_size: int = 64,
    lrs: Sequence[float] = (3e-3, 1e-3, 3e-4, 1e-4),
    weight_decay: float = 0.05,
    views: str | Callable[..., Any] | None = None,
    baseline: bool = True,
    seed: int = 0,
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Measure a backbone on labelled images with each share of the labels, beside the same network without pre-training.

    Both networks get the same images, updates and choices: learning rates and regularisation are chosen on the validation images for
    each of the two alone. The test images are looked at once for each number.

    Args:
        model: the pre-trained backbone; it is not changed.
        data: labelled images.
        methods: "knn" and "linear" on frozen features, "finetune" of the whole network with a new classifier.
        shares: of the training labels that are used, each in (0, 1].
        neighbours: how many vote in "knn".
        steps: updates of each fine-tuning.
        batch_size: images of an update.
        lrs: learning rates of AdamW that are tried in fine-tuning.
        weight_decay: of fine-tuning.
        views: how the images are shown in fine-tuning, such as "crop(4), flip".
        baseline: measure a network with fresh weights as well.
        seed: of the draws of images, of the new weights and of the training.
        run_dir: the folder; what has finished is not computed again.
        progress: show a live bar.

    Returns:
        For each method and share, such as "linear, 10 %": top-1 on the test images of "pre-trained" and "from scratch", and "images", the
        number of labelled training images.

    Raises:
        ArgumentError: if a method is unknown, an argument cannot be, or there are no test images.
    """
    for method in methods:
        if method not in METHODS:
            raise unknown("probe", "method", method, METHODS)
    if len(data.classes) < 2 or not len(data.test):
        raise ArgumentError(
            f"probe: {data.name} has {len(data.classes)} classes and {len(data.test)} test images. Both are needed: give labelled images."
        )
    if steps < 1 or not lrs:
        raise ArgumentError(f"probe: `steps` must be at least 1 and `lrs` hold a learning rate, got {steps} and {list(lrs)}.")
    finished = stages(run_dir)
    networks = {TRAINED: model}
    if baseline:
        with own_randomness():
            seed_all(seed)
            networks[SCRATCH] = untrained(model)
    frozen: dict[str, Frozen] = {}
    if set(methods) & {"knn", "linear"}:
        frozen = {name: Frozen(network, data) for name, network in networks.items()}
    table: dict[str, dict[str, float]] = {}
    for method in methods:
        for share in shares:
            few = few_labels(data, share=share, seed=seed)
            row: dict[str, float] = {}
            for name, network in networks.items():
                title = f"{method}, {share:.3g}, {name}"
                if method == "finetune":
                    settings = {
                        "max_steps": steps,
                        "batch_size": min(batch_size, len(few.train)),
                        "weight_decay": weight_decay,
                        "views": views,
                    }
                    row[name] = finished(title, fine_tuned, network, few, lrs, seed, progress, settings)["top1"]
                else:
                    row[name] = finished(title, frozen[name].top1, method, few, neighbours)["top1"]
            table[f"{method}, {100 * share:.3g} %"] = {**row, "images": len(few.train)}
    return table


class Frozen:
    """A network's features of all three splits, computed when first asked for.

    Args:
        network: the network.
        data: the images.
    """

    def __init__(self, network: nn.Module, data: Data) -> None:
        self.network, self.data = network, data
        self._known: dict[str, Tensor] = {}

    def of(self, part: str) -> Tensor:
        """Return the features of a split."""
        if part not in self._known:
            split = getattr(self.data, part)
            self._known[part] = features(self.network, split) if len(split) else torch.zeros(0, 1)
        return self._known[part]

    def top1(self, method: Method, few: Data, neighbours: int) -> dict[str, float]:
        """Measure one method on the labels of `few`."""
        places = {int(position): i for i, position in enumerate(self.data.train.positions)}
        chosen = [places[int(position)] for position in few.train.positions]
        known, labels = self.of("train")[chosen], few.train.labels
        if method == "knn":
            predicted = knn(known, labels, self.of("test"), neighbours)
        else:
            predicted = linear(known, labels, self.of("val"), self.data.val.labels).predict(self.of("test").numpy())
        return {"top1": float((predicted == self.data.test.labels.numpy()).mean())}


def fine_tuned(
    network: nn.Module, data: Data, lrs: Iterable[float], seed: int, progress: bool, settings: dict[str, Any]
) -> dict[str, float]:
    """Fine-tune a copy with each learning rate, and measure the one that is best on the validation images on the test images."""
    runs = []
    for lr in lrs:
        copied: Any = _copy(network, data)
        with own_randomness():
            seed_all(seed)
            copied.reset_classifier(len(data.classes))
        run = fit(copied, Supervised(), data, optimizer="adamw", lr=lr, seed=seed, progress=progress, **settings)
        runs.append(run)
    best = max(runs, key=lambda run: run.metrics.get("top1", 0.0))
    return {"top1": evaluate(best.model, data.test)["top1"]}


def _copy(network: nn.Module, data: Data) -> nn.Module:
    """Copy a network with all that learns unfrozen, adapted to the protocol."""
    made = config(network)
    if made is None:
        copied = copy.deepcopy(network)
    else:
        copied = create_model(made["name"], **{**made["arguments"], "pretrained": False})
        copied.load_state_dict(network.state_dict())
    return adapt(copied.requires_grad_(True), input_size=data.preprocessing.input_size)
