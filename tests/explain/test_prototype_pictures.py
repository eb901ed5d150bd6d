"""Pictures of prototypes: what stands on them, for either network, and what is refused."""

from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

import retinue
from retinue.data import Data
from retinue.errors import ArgumentError
from retinue.explain.prob_psenn import ProbPSENNLoss
from retinue.explain.prototype_dl import PrototypeLoss
from retinue.explain.prototype_pictures import figures, gallery


@pytest.fixture(scope="module")
def digits() -> Data:
    return retinue.data.open("digits", train_images=100, test_images=40, seed=0)


def trained(name: str, data: Data, **options: Any) -> Any:
    objective = PrototypeLoss() if name == "prototype_dl" else ProbPSENNLoss()
    made = {"num_classes": 10, "in_chans": 1, "input_size": 8, **options}
    model: Any = retinue.fit(retinue.create_model(name, **made), objective, data, max_steps=3, batch_size=50, progress=False).model
    model.classes, model.preprocessing = [f"digit {k}" for k in range(10)], data.preprocessing
    return model


def words(figure: Figure) -> str:
    figure.canvas.draw()
    texts = figure.findobj(lambda artist: hasattr(artist, "get_text"))
    return "\n".join(text.get_text() for text in texts)  # type: ignore[attr-defined]


def test_each_image_has_its_nearest_prototypes_with_their_numbers(digits: Data) -> None:
    model = trained("prototype_dl", digits, num_prototypes=12)
    images = digits.test.images([0, 1, 2])
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shown = list(figures(model, images, ["a.png", "b.png", "c.png"]))
    assert [name for name, _ in shown] == ["a.png", "b.png", "c.png"]
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.eval()
    x = digits.preprocessing.normalize(images)
    for (name, figure), evidence, told in zip(shown, model.explain(x, top=5), model(x).argmax(1).tolist()):
        said = words(figure)
        assert f"{name}: digit {told}, and the nearest prototypes" in said
        for one in evidence:
            assert f"prototype {one.prototype}\nclass digit {one.label}" in said
            assert f"distance {one.distance:.2f}\nweight {one.weight:+.2f}\ncontribution {one.contribution:+.2f}" in said


@pytest.mark.parametrize("options", [{}, {"prototypes_per_class": 2, "family": "mixture"}])
def test_random_prototypes_have_samples_bands_and_doubts(digits: Data, options: dict[str, Any]) -> None:
    model = trained("prob_psenn", digits, latent_dim=5, widths=[8, 16], norm=False, **options)
    ((_, figure),) = figures(model, digits.test.images([0]), ["a.png"])
    said = words(figure)
    for part in ("mode,\nclass digit", "closest\nsample", "sample 4", "band over samples", "squared distance to prototypes (5 to 95 %)"):
        assert part in said
    doubt = model.uncertainty(digits.preprocessing.normalize(digits.test.images([0])))
    for value in doubt.values():
        assert f"{float(value):.2f}" in said
    assert "explanation, typicality" in said
    model.typical.fill_(-1.0)  # nothing is known of the training images
    ((_, figure),) = figures(model, digits.test.images([0]), ["a.png"])
    assert "explanation, typicality" not in words(figure)


def test_the_gallery_has_every_prototype_and_its_class(digits: Data) -> None:
    model = trained("prototype_dl", digits, num_prototypes=12)
    said = words(gallery(model))
    for j, label in enumerate(model.prototype_labels().tolist()):
        assert f"prototype {j}\nclass digit {label}" in said
    said = words(gallery(trained("prob_psenn", digits, latent_dim=5, widths=[8, 16], norm=False)))
    assert all(f"digit {k}, {what}" in said for k in range(10) for what in ("mode", "sample 1", "sample 3"))


def test_colour_and_oblong_images_are_drawn() -> None:
    images = torch.randint(0, 256, (40, 3, 12, 20), dtype=torch.uint8)
    data = retinue.data.from_arrays(images, [0, 1] * 20)
    for name in ("prototype_dl", "prob_psenn"):
        model: Any = retinue.create_model(name, num_classes=2, in_chans=3, input_size=(12, 20))
        model.classes, model.preprocessing = ["cat", "dog"], data.preprocessing
        assert isinstance(next(figures(model, images[:1], ["a"]))[1], Figure)
        assert isinstance(gallery(model), Figure)


def test_what_is_refused(digits: Data) -> None:
    model = trained("prototype_dl", digits)
    with pytest.raises(ArgumentError, match=r"^prototypes: there are 2 images and 1 names\. Give one for each\.$"):
        list(figures(model, digits.test.images([0, 1]), ["a"]))
    with pytest.raises(ArgumentError, match=r"must be a PrototypeClassifier or a ProbPSENN, got Linear\. Train one: retinue\.create_model"):
        gallery(torch.nn.Linear(2, 2))
    del model.classes
    with pytest.raises(ArgumentError, match=r"must know its classes and preprocessing\. Take it from retinue\.load\(run_dir\)\.$"):
        gallery(model)
