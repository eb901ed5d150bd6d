"""Prob-PSENN: the network and its training; the numbers of its page, laws of sampling, stages that resume, and what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import retinue
import retinue.explain.prob_psenn as module
from retinue.data import Data
from retinue.errors import ArgumentError, DataError, ShapeError
from retinue.explain.prob_psenn import ProbPSENN, ProbPSENNLoss, prob_psenn, prob_psenn_loss, train_prob_psenn
from retinue.explain.prototype_dl import ConvDecoder, PrototypeClassifier
from retinue.models.prob_psenn_autoencoder import PSENNDecoder, PSENNEncoder
from retinue.models.prob_psenn_network import around, mean_of_log_probabilities
from retinue.models.tiny import KINDS, tiny


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


def page(family: Any = "gauss_diag", **options: Any) -> ProbPSENN:
    """The network of the page's worked numbers: means (0, 0) and (2, 0), variances (.25, .25) and (1, .5), two classes."""
    model = ProbPSENN(Flat(), Unflat(), 2, 2, family, **options)
    scales = torch.tensor([[0.25, 0.25], [1.0, 0.5]]).sqrt()
    each = model.distributions.components
    means = torch.tensor([[0.0, 0.0], [2.0, 0.0]])[:, None].expand(2, each, 2)
    model.distributions.set_to(means, torch.diag_embed(scales)[:, None].expand(2, each, 2, 2))
    return model.eval()


X = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
SMALL: dict[str, Any] = {
    "num_classes": 10,
    "in_chans": 1,
    "input_size": 8,
    "latent_dim": 6,
    "widths": [8, 16],
    "norm": False,
    "test_samples": 50,
}


@pytest.fixture(scope="module")
def digits() -> Data:
    return retinue.data.open("digits", train_images=200, test_images=60, seed=0)


def small(**options: Any) -> Any:
    return prob_psenn(**{**SMALL, **options})


@pytest.mark.parametrize("family", ["gauss_diag", "gauss_full", "mixture"])
def test_the_worked_distances_of_the_page(family: Any) -> None:
    model = page(family)
    d = model.forward(X, num_samples=100_000)["distances"][0].double()
    assert close(d.mean(0) / torch.tensor([1.5, 2.5]), [1.0, 1.0], 0.03)
    assert close(d.var(0) / torch.tensor([1.25, 6.5]), [1.0, 1.0], 0.03)
    assert close(model.distributions.spread() + 1, [1.5, 2.5], 1e-5)  # |z - mean|^2 + trace, with no sample
    assert close(torch.tensor([[[1.5, 2.5]]]) @ (-0.5 * torch.eye(2)), [[[-0.75, -1.25]]])
    assert close(mean_of_log_probabilities(model.classifier(torch.tensor([[[1.5, 2.5]]]))).exp(), [[0.622459, 0.377541]], 1e-6)
    assert close(-model.distributions.log_density(X.flatten(1)), [[2.451583, 1.991303]], 2e-6)


def test_parameters_of_the_papers_networks() -> None:
    for d in (40, 7):
        counts = [sum(p.numel() for p in part.parameters()) for part in (PSENNEncoder(1, (32, 32), d), PSENNDecoder(1, (32, 32), d))]
        assert counts == [312_960 + 257 * d, 312_961 + 256 * d]
    model = prob_psenn()
    assert sum(p.numel() for p in model.encoder.parameters()) == 323_240
    assert sum(p.numel() for p in model.decoder.parameters()) == 323_201
    assert sum(p.numel() for p in model.distributions.parameters()) == 8_600
    assert model.classifier.weight.numel() == 100
    norm = next(part for part in model.modules() if isinstance(part, nn.BatchNorm2d))
    assert (norm.eps, norm.momentum) == (1e-3, 0.01)


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (8, 8), (5, 9), (45, 64)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_is_painted_whole(size: tuple[int, int], channels: int) -> None:
    z = PSENNEncoder(channels, size, 5)(torch.rand(2, channels, *size))
    painted = PSENNDecoder(channels, size, 5)(z)
    assert z.shape == (2, 5)
    assert painted.shape == (2, channels, *size)
    assert bool((painted.abs() <= 1).all())


def test_w_starts_at_minus_a_half_and_may_stay_there(digits: Data) -> None:
    assert close(small().classifier.weight, -0.5 * torch.eye(10), 2e-8)
    two = small(prototypes_per_class=2).classifier.weight
    assert close(two[0], [-0.25, -0.25] + [0.0] * 18, 2e-8)
    model = small(train_w=False)
    before = model.classifier.weight.clone()
    retinue.fit(model, ProbPSENNLoss(), digits, max_steps=2, batch_size=50, lr=0.1, progress=False)
    assert torch.equal(model.classifier.weight, before)


def test_without_variance_it_is_the_nearest_mean() -> None:
    model = page("gauss_full")
    model.distributions.set_to(model.distributions.means.detach(), 1e-5 * torch.eye(2).expand(2, 1, 2, 2))
    x = torch.randn(50, 1, 1, 2) + torch.tensor([1.0, 0.0])
    samples = model.sample_prototypes(20)
    assert close(samples, model.distributions.modes().expand(20, 2, 2), 1e-4)
    assert float(model.uncertainty(x, 20)["epistemic"].max()) < 1e-4
    fixed = PrototypeClassifier(Flat(), Unflat(), 2, 2).eval()
    with torch.no_grad():
        fixed.prototypes.copy_(model.distributions.modes())
        fixed.classifier.weight.copy_(-0.5 * torch.eye(2))
    assert close(model.predict(x), fixed(x).softmax(1), 1e-4)
    assert torch.equal(model.predict(x, mode=True).argmax(1), torch.cdist(x.flatten(1), model.distributions.modes()).argmin(1))


def test_probabilities_are_averaged_and_not_logits() -> None:
    logits = torch.tensor([[[10.0, 0.0], [0.0, 1.0]]])
    expected = logits.softmax(-1).mean(1)
    assert close(mean_of_log_probabilities(logits).exp(), expected)
    assert not close(logits.mean(1).softmax(-1), expected, 0.1)
    model = page()
    out = model(X, num_samples=200)
    assert close(model(X).exp(), out["probs"], 1e-5)
    assert close(out["probs"], out["logits"].softmax(-1).mean(1))


def test_the_loss_part_by_part() -> None:
    model = page(prototypes_per_class=1)
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [500.0, 0.0]]).view(3, 1, 1, 2)
    labels = torch.tensor([0, 0, 1])
    out = model(x, num_samples=7)
    weights = {"nll": 2.0, "rec": 3.0, "r1": 5.0, "r2": 7.0, "kl": 11.0, "vae": 0.05}
    total, parts = prob_psenn_loss(model, out, x + 1, nn.functional.one_hot(labels, 2).float(), weights)
    probabilities = out["logits"].softmax(-1)
    assert close(parts["nll"], -probabilities[torch.arange(3), :, labels].log().mean(), 1e-4)  # a mean of logarithms
    assert close(parts["rec"], 1.0, 1e-5)  # a mean over pixels
    q = -model.distributions.log_density(x.flatten(1))
    assert close(parts["r1"], (q[1, 0] + q[0, 1]) / 2, 1e-5)
    assert float(q[2, 1]) > 10_000
    assert close(parts["r2"], (q[0, 0] + q[1, 0] + 10_000) / 3, 1e-2)
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    own = torch.distributions.MultivariateNormal(model.distributions.means[:, 0], scale_tril=model.distributions.factors()[:, 0])
    assert close(parts["kl"], torch.distributions.kl_divergence(own, prior).mean(), 1e-5)
    assert "vae" not in parts
    assert close(total, sum(weights[name] * part for name, part in parts.items()), 1e-2)


def test_densities_cannot_grow_without_bound() -> None:
    model = page("gauss_full")
    model.distributions.set_to(model.distributions.means.detach(), 1e-3 * torch.eye(2).expand(2, 1, 2, 2))
    x = torch.zeros(2, 1, 1, 2)
    only = {**dict.fromkeys(("nll", "rec", "r1", "kl", "vae"), 0.0), "r2": 1.0}
    total, _ = prob_psenn_loss(model, model(x, num_samples=1), x, torch.tensor([[1.0, 0.0]] * 2), only)
    assert float(total) == -1.0
    total.backward()
    assert not model.distributions.raw_scales.grad.any()  # type: ignore[union-attr]


def test_a_variational_encoder_is_sampled_in_training_alone(digits: Data) -> None:
    model = small(variational=True)
    x = torch.rand(4, 1, 8, 8)
    assert not close(model.train()(x, num_samples=2)["latent"], model(x, num_samples=2)["latent"], 1e-3)
    out = model.eval()(x, num_samples=2)
    assert torch.equal(out["latent"], out["mean"])
    assert out["log_variance"].shape == (4, 6)
    weights = {**dict.fromkeys(("nll", "rec", "r1", "r2", "kl"), 0.0), "vae": 1.0}
    _, parts = prob_psenn_loss(model, out, model.pixels.painted(x), torch.eye(10)[:4], weights)
    q = torch.distributions.Normal(out["mean"], (0.5 * out["log_variance"]).exp())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    assert close(parts["vae"], expected, 1e-4)
    for stage in ("autoencoder", "joint"):
        run = retinue.fit(model, ProbPSENNLoss(stage), digits, max_steps=2, batch_size=50, progress=False)  # type: ignore[arg-type]
        assert run.history[-1]["train/vae"] > 0


@settings(max_examples=10)
@given(st.integers(1, 6))
def test_evaluation_is_the_same_each_time_and_for_any_batch(rows: int) -> None:
    model = small().eval()
    x = torch.rand(6, 1, 8, 8)
    whole = model(x)
    assert torch.equal(whole, model(x))
    assert close(model(x[:rows]), whole[:rows], 1e-4)
    for n in (50, 7):  # as many as are kept, and any other number
        assert torch.equal(model.predict(x, n), model.predict(x, n))
    model.train()
    assert not torch.equal(model.sample_prototypes(3), model.sample_prototypes(3))


def test_few_images_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small().eval()
    x = torch.rand(7, 1, 8, 8)
    whole = model(x), *model.uncertainty(x, 50).values()
    monkeypatch.setattr("retinue.models.prob_psenn_network.AT_A_TIME", 1000)  # two images
    assert model.rows(50) == 2
    parts = model(x), *model.uncertainty(x, 50).values()
    assert all(torch.allclose(a, b, atol=1e-5, equal_nan=True) for a, b in zip(whole, parts))


def test_memory_of_distances_has_no_axis_of_the_latent() -> None:
    model = small(latent_dim=64)
    z, prototypes = torch.randn(40, 64, requires_grad=True), torch.randn(30, 10, 64)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        sizes: list[int] = []
        d = model.distances(z, prototypes)
    assert d.shape == (40, 30, 10)
    assert max(sizes) <= max(40 * 30 * 10, 30 * 10 * 64)
    assert torch.allclose(d, (z[:, None, None] - prototypes).square().sum(-1), rtol=1e-5)


def test_several_prototypes_of_a_class_stand_together() -> None:
    model = small(prototypes_per_class=3)
    assert model.prototype_labels().tolist() == [k for k in range(10) for _ in range(3)]
    d = torch.rand(2, 5, 30)
    assert torch.equal(model.class_distances(d)[:, :, 1], d[:, :, 3:6].amin(2))
    assert model.decode_prototypes(2).shape == (2, 30, 1, 8, 8)


def test_another_classifier_makes_prototypes_anew() -> None:
    model = small()
    model.fitted.fill_(True)
    model.reset_classifier(3)
    assert model.eval()(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    assert not bool(model.fitted)
    model.reset_classifier(0)
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 3)  # the distances


@pytest.mark.parametrize("kind", KINDS)
def test_any_network_is_trained_saved_and_loaded(kind: Any, tmp_path: Path) -> None:
    data = retinue.data.open("digits", input_size=32, channels=3, train_images=80, test_images=20)
    options = {"latent_dim": 5, "family": "mixture", "test_samples": 20}
    run = retinue.fit(tiny(kind), ProbPSENNLoss(options=options), data, max_steps=2, batch_size=20, run_dir=tmp_path, progress=False)
    assert {"top1", "rec"} <= set(run.metrics)
    built = around(tiny(kind), num_classes=10, in_chans=3, input_size=(32, 32), **options)
    loaded: Any = retinue.load(tmp_path, **({"model": built} if kind == "bare" else {}))
    x = data.preprocessing.normalize(data.test.images([0, 1]))
    assert torch.equal(loaded(x), run.model(x))
    assert torch.equal(loaded.typical, run.model.typical)
    doubt = loaded.uncertainty(x, 20)
    assert bool(torch.stack(list(doubt.values())).isfinite().all())
    assert retinue.evaluate(loaded, data.test)["loss"] > 0


class Stop(BaseException):
    """Ends a training as a kill does."""


def test_three_stages_killed_and_resumed_are_three_stages(digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(name: str) -> tuple[dict[str, Any], Any]:
        torch.manual_seed(0)
        model: Any = retinue.create_model("prob_psenn", **SMALL)
        numbers = train_prob_psenn(model, digits, epochs=(2, 2), batch_size=50, run_dir=tmp_path / name, progress=False)
        return numbers, model

    whole, model = train("whole")
    forward = ProbPSENNLoss.forward
    calls: list[str] = []

    def killed(self: ProbPSENNLoss, model: nn.Module, batch: Any) -> Any:
        calls.append(self.stage)
        if calls.count("joint") == 6:
            raise Stop
        return forward(self, model, batch)

    monkeypatch.setattr(ProbPSENNLoss, "forward", killed)
    with pytest.raises(Stop):
        train("killed")
    calls.clear()
    monkeypatch.setattr(ProbPSENNLoss, "forward", lambda *given: calls.append(given[0].stage) or forward(*given))
    resumed, other = train("killed")
    assert calls == ["joint"] * 4  # from its last evaluation on
    assert resumed == whole
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))
    assert set(whole) == {"autoencoder", "joint", "test"}
    assert {"top1", "predictive", "aleatoric", "epistemic", "overlap", "typicality"} <= set(whole["test"])
    loaded = retinue.load(tmp_path / "whole" / "joint")
    assert torch.equal(loaded.typical, model.typical)  # type: ignore[arg-type]


def test_the_first_stage_moves_the_autoencoder_alone(digits: Data) -> None:
    model = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    retinue.fit(model, ProbPSENNLoss("autoencoder"), digits, max_steps=2, batch_size=50, lr=0.1, weight_decay=0.5, progress=False)
    moved = {name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved - {"pixels"} == {"encoder", "decoder"}


def test_digits_are_learned(digits: Data) -> None:
    model = small(latent_dim=8, widths=[16, 32], family="gauss_diag")
    numbers = train_prob_psenn(model, digits, epochs=(10, 30), batch_size=25, lr=4e-3, progress=False)
    assert numbers["test"]["top1"] > 0.75
    assert numbers["joint"]["rec"] < numbers["autoencoder"]["rec"] + 0.05
    assert math.isclose(retinue.evaluate(model, digits.test)["top1"], numbers["test"]["top1"], abs_tol=1e-6)
    stats = module.training_distances(model, digits.train)
    assert (stats >= 0).sum(1).tolist() == digits.train.labels.bincount(minlength=10).tolist()
    x = digits.preprocessing.normalize(digits.test.images())
    noise = digits.preprocessing.normalize(torch.rand(50, 1, 8, 8))
    inside, outside = (model.uncertainty(some, 200, stats)["typicality"].mean() for some in (x, noise))
    assert outside > inside + 0.2


def test_distributions_are_fitted_in_evaluation_mode_and_modes_are_kept(digits: Data) -> None:
    model = prob_psenn(**{**SMALL, "norm": True}).train()
    model.decoder.eval()
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    model.fit_prototypes(digits.train.loader(50))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.encoder.state_dict().items())
    assert model.encoder.training
    assert not model.decoder.training
    codes, labels = model.codes(digits.train.loader(64))
    own = codes[labels == 3].double()
    assert close(model.distributions.means[3, 0], own.mean(0).float(), 1e-4)
    L = model.distributions.factors()[3, 0].detach().double()
    assert close(L @ L.T, own.T.cov() + 1e-3 * torch.eye(6), 1e-4)


def test_what_is_refused(digits: Data, tmp_path: Path) -> None:
    def refuses(text: str, error: Any = ArgumentError) -> Any:
        return pytest.raises(error, match=text)

    with refuses(r"^ProbPSENN: `num_samples` must be at least 1, got 0\. In evaluation 200 are usual\.$"):
        small().predict(torch.rand(2, 1, 8, 8), num_samples=0)
    with refuses(r"^ProbPSENN: `samples` must be at least 1, got 0\.$"):
        small(samples=0)
    with refuses(r'no `family` is called "gauss_ful"\. Did you mean gauss_full, gauss_diag\?'):
        small(family="gauss_ful")
    with refuses(r"^ProbPSENN: `prior` must be above 0, got 0\. It is the standard deviation of the first means\.$"):
        small(prior=0)
    with refuses(
        r"^ProbPSENN: the encoder gives 6 numbers, which is neither `latent_dim`=5 nor, for a variational one, twice that\.$", ShapeError
    ):
        ProbPSENN(PSENNEncoder(1, (8, 8), 6), PSENNDecoder(1, (8, 8), 6), 10, 5)
    with refuses(r"decoder must paint images of shape \(1, 8, 8\), as the encoder takes, got \(1, 9, 9\)\.", ShapeError):
        ProbPSENN(PSENNEncoder(1, (8, 8), 6), ConvDecoder(1, (9, 9), None, 6), 10, 6)
    with refuses(r"^ProbPSENN: images must be of shape \(1, 8, 8\), got \(3, 8, 8\)\. Build the network with this", ShapeError):
        small()(torch.rand(2, 3, 8, 8))
    with refuses(r"^prototypes: distances are not numbers \(NaN\)\."):
        small().predict(torch.full((2, 1, 8, 8), math.nan))
    with refuses(r"^prob_psenn: `widths` must be two positive whole numbers at least, got \[3\]\. The paper has 32, 32, 64, 256"):
        small(widths=[3])
    with refuses(r"^prob_psenn: 4 halvings leave nothing of images of 8x8 px\. Give fewer `widths`, or larger images\.$"):
        small(widths=[3] * 5)
    with refuses(r"^prob_psenn: `encoder_args` are options of a network given by name\. Leave them out, or name the network\.$"):
        small(encoder_args={"widths": [3]})
    with refuses(r'^prob_psenn: `variational` is of the encoder "conv", got "mlp"\. Leave it out\.$'):
        small(variational=True, encoder="mlp")
    with refuses(r'no `stage` is called "autoencode"\. Did you mean autoencoder\?'):
        ProbPSENNLoss("autoencode")  # type: ignore[arg-type]
    with refuses(r"^ProbPSENNLoss: `r2` must be 0 or more, got -0\.1\.$"):
        ProbPSENNLoss(r2=-0.1)
    with refuses(r"^ProbPSENNLoss: the model has 3 outputs and digits has 10 classes\. Build it with num_classes=10\.$"):
        retinue.fit(small(num_classes=3), ProbPSENNLoss(), digits, progress=False)
    with refuses(r"^ProbPSENNLoss: the model takes images of shape \(1, 9, 9\) and digits has \(1, 8, 8\)\."):
        retinue.fit(small(input_size=9), ProbPSENNLoss(), digits, progress=False)
    with refuses(r"^train_prob_psenn: `epochs` must be two positive numbers, of the autoencoder and of the rest, got \[3\]\.$"):
        train_prob_psenn(small(), digits, epochs=(3,), progress=False)  # type: ignore[arg-type]
    few = retinue.data.few_labels(digits, per_class=1)
    with refuses(r"^prob_psenn: class 0 has 1 training images, and a covariance needs two at least\. Give more images", DataError):
        retinue.fit(small(), ProbPSENNLoss(), few, progress=False)
    unseen = retinue.data.from_arrays(torch.zeros(30, 1, 8, 8, dtype=torch.uint8), [0, 1] * 15, classes=["a", "b", "c"])
    with refuses(r"^prob_psenn: class 2 has 0 training images", DataError):
        retinue.fit(small(num_classes=3), ProbPSENNLoss(), unseen, progress=False)
