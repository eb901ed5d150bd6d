"""PrototypeDL: the numbers of its page, laws of distances and decoding, training, and what is refused."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import retinue
import retinue.explain.prob_psenn
from retinue.data import Data
from retinue.errors import ArgumentError, ShapeError
from retinue.explain.prototype_dl import (
    ConvDecoder,
    ConvEncoder,
    PrototypeClassifier,
    PrototypeLoss,
    around,
    prototype_dl,
    prototype_loss,
    squared_distances,
)
from retinue.models.export import export
from retinue.models.tiny import KINDS, tiny

F_ = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 1.0]])
P = torch.tensor([[0.0, 1.0], [2.0, 2.0]])
D = [[1.0, 8.0], [2.0, 1.0], [9.0, 2.0]]


def close(a: Tensor, b: Any, tolerance: float = 1e-6) -> bool:
    return torch.allclose(a, torch.as_tensor(b, dtype=a.dtype), atol=tolerance, rtol=0)


class Flat(nn.Module):
    """The two pixels of an image as its code."""

    image_shape = (1, 1, 2)

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.flatten(1)


class Unflat(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z.view(-1, 1, 1, 2)


def page(prototypes: Tensor = P, weights: Any = ((-1.0, 1.0), (1.0, -1.0))) -> PrototypeClassifier:
    """The network of the page's worked numbers; `weights` has a row for each prototype."""
    model = PrototypeClassifier(Flat(), Unflat(), len(prototypes), 2)
    with torch.no_grad():
        model.prototypes.copy_(prototypes)
        model.classifier.weight.copy_(torch.tensor(weights).T)
    return model


def images() -> Tensor:
    return F_.view(3, 1, 1, 2)


def small(**options: Any) -> Any:
    return prototype_dl(**{"num_prototypes": 4, "num_classes": 3, "in_chans": 1, "input_size": 8, **options})


@pytest.fixture(scope="module")
def digits() -> Data:
    return retinue.data.open("digits", train_images=200, test_images=60, seed=0)


def test_the_worked_numbers_of_the_page() -> None:
    out = page()(images(), return_all=True)
    assert close(squared_distances(F_.double(), P.double()), D, 1e-12)
    assert close(out["distances"], D)
    assert close(out["logits"], [[7.0, -7.0], [-1.0, 1.0], [-7.0, 7.0]], 3e-6)
    total, parts = prototype_loss(out, images() / 3, torch.tensor([0, 1, 1]), w_ae=0.5)
    assert close(parts["class"], 0.042310)
    assert close(parts["r1"], 1.0)
    assert close(parts["r2"], 4 / 3)
    assert close(parts["ae"], 4 / 9 * F_.square().sum() / 3, 1e-5)  # summed over pixels, a mean over images
    assert close(total, 20 * parts["class"] + 0.5 * parts["ae"] + parts["r1"] + parts["r2"], 1e-5)


def test_parameters_and_sides_of_the_papers_network() -> None:
    model = prototype_dl()
    count = [sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder, model)]
    assert count == [21_706, 21_697, 44_153]
    assert model.flat_prototypes.numel() == 600
    assert model.classifier.weight.numel() == 150
    assert [side for side, _ in model.encoder.sides] == [28, 14, 7, 4, 2]
    maps = []
    for layer in (*model.encoder.layers, *model.decoder.layers):
        layer.register_forward_hook(lambda _, __, y: maps.append(tuple(y.shape[1:])))
    model(torch.rand(2, 1, 28, 28), return_all=True)
    assert maps == [(32, 14, 14), (32, 7, 7), (32, 4, 4), (10, 2, 2), (32, 4, 4), (32, 7, 7), (32, 14, 14), (1, 28, 28)]


def test_the_papers_network_starts_as_the_official_code_does() -> None:
    model = prototype_dl(weight_std=0.01)
    assert all(not layer.bias.any() and 0.005 < layer.weight.std() < 0.02 for layer in (*model.encoder.layers, *model.decoder.layers))
    for drawn in (model.prototypes, model.classifier.weight):
        assert 0 <= drawn.min() < 0.1
        assert 0.9 < drawn.max() <= 1
    assert bool((model.forward_features(torch.rand(3, 1, 28, 28)) >= 0).all())  # its last layer has a ReLU


def test_a_prototype_on_a_code_is_at_distance_0() -> None:
    model = small().eval()
    x = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        model.prototypes[1] = model.forward_features(x)[3]
    out = model(x, return_all=True)
    assert out["distances"][3, 1] == 0
    assert out["distances"].amin(0)[1] == 0


def test_distances_at_a_prototype_have_finite_gradients_and_elsewhere_those_of_the_formula() -> None:
    z, p = F_.double().requires_grad_(), torch.cat([P, F_[:1]]).double().requires_grad_()
    weights = torch.arange(9.0, dtype=torch.float64).view(3, 3)
    ours = torch.autograd.grad((squared_distances(z, p) * weights).sum(), (z, p))
    theirs = torch.autograd.grad(((z[:, None] - p).square().sum(-1) * weights).sum(), (z, p))
    assert all(close(a, b, 1e-12) for a, b in zip(ours, theirs))


@given(st.integers(0, 10**6), st.integers(1, 5), st.floats(-50, 50))
def test_laws_of_distances(seed: int, m: int, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    z, p = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (4, m))
    d = squared_distances(z, p)
    assert bool((d >= 0).all())
    assert close(d, (z[:, None] - p).square().sum(-1), 1e-9)
    assert close(squared_distances(z + shift, p + shift), d, 1e-9)


def test_the_order_of_prototypes_does_not_matter() -> None:
    model, other = small().eval(), small().eval()
    order = torch.tensor([2, 0, 3, 1])
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.prototypes.copy_(model.prototypes[order])
        other.classifier.weight.copy_(model.classifier.weight[:, order])
    x = torch.rand(5, 1, 8, 8)
    assert close(model(x), other(x), 1e-5)


def test_steep_weights_name_the_nearest_prototype() -> None:
    model = small(num_prototypes=3).eval()
    x = torch.rand(20, 1, 8, 8)
    with torch.no_grad():
        model.prototypes.copy_(model.forward_features(x[:3]))
        model.classifier.weight.copy_(-1e4 * torch.eye(3))
        out = model(x, return_all=True)
    assert torch.equal(out["logits"].argmax(1), out["distances"].argmin(1))
    assert len(out["distances"].argmin(1).unique()) == 3


def test_gradients_of_both_distance_losses_reach_encoder_and_prototypes() -> None:
    for weight in ("w_r1", "w_r2"):
        model = small()
        out = model(torch.rand(6, 1, 8, 8), return_all=True)
        zero = {"w_class": 0.0, "w_ae": 0.0, "w_r1": 0.0, "w_r2": 0.0}
        prototype_loss(out, torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 2] * 2), **{**zero, weight: 1.0})[0].backward()
        assert bool(model.encoder.layers[0].weight.grad.abs().sum() > 0)
        assert bool(model.flat_prototypes.grad.abs().sum() > 0)


@pytest.mark.parametrize("size", [(28, 28), (7, 4), (1, 5), (33, 50)])
@pytest.mark.parametrize("padding", ["symmetric", "tf_same"])
def test_the_decoder_is_the_encoders_mirror_at_any_size(size: tuple[int, int], padding: Any) -> None:
    encoder, decoder = ConvEncoder(3, size, padding=padding), ConvDecoder(3, size, padding=padding)
    x = torch.rand(2, 3, *size)
    assert decoder(encoder(x)).shape == x.shape
    # with the same kernel, each transposed layer is the adjoint of its convolution: <conv x, y> = <x, transposed y>
    one, other = ConvEncoder(2, size, [3], padding=padding), ConvDecoder(2, size, [3], padding=padding)
    conv, transposed = one.layers[0], other.layers[0]
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    nn.init.zeros_(transposed.bias)  # type: ignore[arg-type]
    with torch.no_grad():
        transposed.weight.copy_(conv.weight)  # type: ignore[operator]
        x = torch.randn(1, 2, *size)
        grown: list[Tensor] = []
        conv.register_forward_hook(lambda _, __, y: grown.append(y))
        one(x)
        y = torch.randn_like(grown[0])
        back: list[Tensor] = []
        transposed.register_forward_hook(lambda _, __, out: back.append(out))
        other(y.flatten(1))
    shift = [side % 2 if padding == "tf_same" else 0 for side in size]
    cut = back[0][..., shift[0] : shift[0] + size[0], shift[1] : shift[1] + size[1]]
    assert close((grown[0] * y).sum(), (x * cut).sum(), 1e-3)


def test_tensorflows_padding_adds_below_and_right_alone() -> None:
    encoder = ConvEncoder(1, (4, 4), [1], padding="tf_same")
    with torch.no_grad():
        encoder.layers[0].weight.fill_(1.0)  # type: ignore[operator, union-attr]
        encoder.layers[0].bias.zero_()  # type: ignore[operator, union-attr]
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert encoder(x)[0].tolist() == [45.0, 39.0, 66.0, 50.0]  # sums of rows 0-2 and columns 0-2, then of what is left


def test_an_explanation_takes_the_logit_apart() -> None:
    model = page()
    model.eval()
    for image, row in zip(images(), model.explain(images(), top=2)):
        assert [one.distance for one in row] == sorted(one.distance for one in row)
        logit = float(model(image[None]).max())
        assert math.isclose(sum(one.contribution for one in row), logit, rel_tol=1e-5)
        assert all(math.isclose(one.contribution, one.weight * one.distance, rel_tol=1e-6) for one in row)
    first = model.explain(images()[:1], top=1, target=1)[0][0]
    assert (first.prototype, first.label, first.weight) == (0, 0, 1.0)
    assert close(first.image.flatten(), P[0])


def test_prototypes_are_decoded_in_evaluation_mode_and_nothing_stays_changed() -> None:
    decoder = nn.Sequential(nn.Dropout(0.9), Unflat())
    model = PrototypeClassifier(Flat(), decoder, 2, 2)
    model.train()
    model.encoder.eval()
    assert close(model.decode_prototypes().flatten(1), model.prototypes)
    assert decoder[0].training
    assert not model.encoder.training


def test_pixels_are_compared_in_the_decoders_range_however_images_were_normalised(digits: Data) -> None:
    for output, low in (("sigmoid", 0.0), ("tanh", -1.0)):
        model = PrototypeLoss().prepare(small(num_classes=10, output=output), digits)
        batch = next(digits.val.loader(8).batches())
        painted = model.pixels.painted(batch.images)
        unit = digits.val.images(batch.indices).float() / 255
        assert close(painted, low + (1 - low) * unit, 1e-5)
        assert close(model.pixels.unit(painted), unit, 1e-5)
        assert close(model.pixels.normalized(painted), batch.images, 1e-4)


def test_another_classifier_leaves_the_prototypes(digits: Data) -> None:
    model = small()
    before = model.flat_prototypes.clone()
    model.reset_classifier(7)
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 7)
    assert torch.equal(model.flat_prototypes, before)
    model.reset_classifier(0)
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 4)


def test_weight_decay_does_not_pull_prototypes_to_0(digits: Data) -> None:
    model = small(num_classes=10)
    before = model.flat_prototypes.clone()
    still = PrototypeLoss(w_class=0.0, w_r1=0.0, w_r2=0.0)
    retinue.fit(model, still, digits, max_steps=3, batch_size=50, lr=0.1, weight_decay=0.5, schedule="constant", progress=False)
    assert torch.equal(model.flat_prototypes, before)


@pytest.mark.parametrize("kind", KINDS)
def test_any_network_is_trained_saved_and_loaded(kind: Any, tmp_path: Path) -> None:
    data = retinue.data.open("digits", input_size=32, channels=3, train_images=60, test_images=20)
    run = retinue.fit(
        tiny(kind), PrototypeLoss(num_prototypes=11, latent_dim=6), data, max_steps=2, batch_size=20, run_dir=tmp_path, progress=False
    )
    assert {"top1", "ae", "r1", "r2"} <= set(run.metrics)
    built = around(tiny(kind), num_classes=10, in_chans=3, input_size=(32, 32), num_prototypes=11, latent_dim=6)
    loaded = retinue.load(tmp_path, **({"model": built} if kind == "bare" else {}))
    x = data.preprocessing.normalize(data.test.images([0, 1]))
    assert torch.equal(loaded(x), run.model(x))
    assert torch.equal(loaded.pixels.mean.flatten(), torch.tensor(data.preprocessing.mean))
    assert loaded.decode_prototypes().shape == (11, 3, 32, 32)


def test_digits_are_learned_and_numbers_are_over_the_whole_split(digits: Data) -> None:
    model = prototype_dl(widths=[32, 32], latent_dim=16, input_size=8)
    settings: dict[str, Any] = {"batch_size": 50, "optimizer": "adam", "lr": 4e-3, "weight_decay": 0.0, "schedule": "constant"}
    run = retinue.fit(model, PrototypeLoss(), digits, epochs=25, progress=False, **settings)
    assert retinue.evaluate(run.model, digits.test)["top1"] > 0.8
    assert run.history[-1]["train/loss"] < 0.5 * run.history[0]["train/loss"]
    numbers = [PrototypeLoss().evaluate(run.model, digits.test.loader(size)) for size in (7, 60)]
    for name in ("top1", "ae", "r1", "r2"):
        assert math.isclose(numbers[0][name], numbers[1][name], rel_tol=1e-4)


def test_shares_of_classes_are_taken() -> None:
    out = page()(images(), return_all=True)
    labels = torch.tensor([0, 1, 1])
    hard, soft = (prototype_loss(out, images() / 3, y)[0] for y in (labels, nn.functional.one_hot(labels, 2).float()))
    assert close(hard, soft)


@pytest.mark.parametrize("name", ["prototype_dl", "prob_psenn"])
def test_the_networks_are_built_without_memory_and_exported(name: str, tmp_path: Path, unchecked: None, digits: Data) -> None:
    with torch.device("meta"):
        assert retinue.create_model(name, num_classes=5, in_chans=1, input_size=8)(torch.empty(2, 1, 8, 8)).shape == (2, 5)
    model: Any = retinue.create_model(name, num_classes=10, in_chans=1, input_size=8)
    model.classes, model.preprocessing = digits.classes, digits.preprocessing
    for form in ("onnx", "torchscript"):  # compares what is written with the network
        assert export(model, tmp_path / f"model.{form}", format=form).exists()  # type: ignore[arg-type]


def test_memory_does_not_hold_differences() -> None:
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        sizes: list[int] = []
        squared_distances(torch.randn(50, 300, requires_grad=True), torch.randn(40, 300, requires_grad=True))
    assert max(sizes) <= 50 * 300


def test_too_few_prototypes_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        small(num_prototypes=2)
    assert "2 prototypes cannot stand for 3 classes" in caplog.text


def test_what_is_refused(digits: Data) -> None:
    def refuses(text: str, error: Any = ArgumentError) -> Any:
        return pytest.raises(error, match=text)

    with refuses(r"^PrototypeClassifier: `num_prototypes` must be at least 1, got 0\. The paper has 15 for 10 classes\.$"):
        small(num_prototypes=0)
    with refuses(r"^prototypes: the decoder must paint images of shape \(1, 8, 8\), as the encoder takes, got \(1, 9, 9\)\.", ShapeError):
        PrototypeClassifier(ConvEncoder(1, (8, 8), [4], 5), ConvDecoder(1, (9, 9), [4], 5), 3, 2)
    with refuses(r"Linear does not say which images it takes\. Give image_shape=\(channels, height, width\)\.$"):
        PrototypeClassifier(nn.Linear(2, 2), Unflat(), 3, 2)
    with refuses(r"^PrototypeClassifier: images must be of shape \(1, 8, 8\), got \(1, 9, 9\)\. Build the network with this", ShapeError):
        small()(torch.zeros(2, 1, 9, 9))
    out = page()(images(), return_all=True)
    labels = torch.tensor([0, 1, 1])
    with refuses(r"R1 looks for the nearest image of a batch, so it needs two at least, got 1\. Take larger batches\.$"):
        prototype_loss({name: value[:1] for name, value in out.items()}, images()[:1], labels[:1])
    with refuses(r"so it needs two at least, got 0\."):
        prototype_loss({name: value[:0] for name, value in out.items()}, images()[:0], labels[:0])
    with refuses(r"^prototype_loss: pixels must lie in \[0, 1\], which is what the decoder can paint, got 0 to 3\. Give it"):
        prototype_loss(out, images(), labels)
    with refuses(r"the reconstruction must be of the images' shape \(3, 1, 2, 1\), got \(3, 1, 1, 2\)\.", ShapeError):
        prototype_loss(out, images().transpose(2, 3), labels)
    with refuses(r"^prototypes: distances are not numbers \(NaN\)\. Look for NaN in the images"):
        page().eval()(images() * math.nan)
    with refuses(r"^PrototypeClassifier: `top` must lie between 1 and the number of prototypes, 2, got 3\.$"):
        page().explain(images(), top=3)
    with refuses(r"^PrototypeLoss: `w_r1` must be 0 or more, got -1\. The paper has 20 for the classes and 1 for the rest\.$"):
        PrototypeLoss(w_r1=-1)
    with refuses(r"^PrototypeLoss: the model has 3 outputs and digits has 10 classes\. Build it with num_classes=10\.$"):
        retinue.fit(small(), PrototypeLoss(), digits, progress=False)
    with refuses(r"^PrototypeLoss: the model takes images of shape \(1, 9, 9\) and digits has \(1, 8, 8\)\. Build it with in_chans=1"):
        retinue.fit(small(input_size=9), PrototypeLoss(), digits, progress=False)
    with refuses(r'no `padding` is called "same"\. Did you mean tf_same\?'):
        small(padding="same")
    with refuses(r'no `output` of a decoder is called "relu"\. There is sigmoid, tanh\.'):
        small(output="relu")
    with refuses(r"`widths` must be positive whole numbers, one for each layer, got \[0\]\. MNIST has 32, 32, 32, 10\."):
        small(widths=[0])
    with refuses(r"`weight_std` must be above 0, got 0\. The official code has 0\.01\."):
        small(weight_std=0)
    with refuses(r"^prototype_dl: `encoder_args` are options of a network given by name\. Leave them out, or name the network\.$"):
        small(encoder_args={"widths": [3]})
