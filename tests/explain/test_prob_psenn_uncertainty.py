"""Prob-PSENN: distributions over prototypes, and how sure an answer and an explanation are; by hand, torch.distributions and SciPy."""

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import gaussian_kde
from torch import Tensor

from retinue.errors import ArgumentError, ShapeError
from retinue.models.prob_psenn_distributions import PrototypeDistributions
from retinue.models.prob_psenn_uncertainty import by_class, entropies, overlaps, typicality

FAMILIES = ("gauss_diag", "gauss_full", "mixture")


def close(a: Tensor, b: Any, tolerance: float = 1e-6) -> bool:
    return torch.allclose(a, torch.as_tensor(b, dtype=a.dtype), atol=tolerance, rtol=0)


def random(family: Any, number: int = 3, latent: int = 4, seed: int = 0) -> PrototypeDistributions:
    torch.manual_seed(seed)
    q = PrototypeDistributions(number, latent, family)
    with torch.no_grad():
        for parameter in q.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return q


def peer(q: PrototypeDistributions) -> Any:
    parts = torch.distributions.MultivariateNormal(q.means, scale_tril=q.factors())
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=q.log_shares), parts)


def test_the_worked_entropies_of_the_page() -> None:
    found = entropies(torch.tensor([[[0.7, 0.3], [0.5, 0.5], [0.9, 0.1]]]))
    assert close(found["predictive"], [0.610864])
    assert close(found["aleatoric"], [0.543032])
    assert close(found["epistemic"], [0.067833])


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 5))
def test_laws_of_entropies(seed: int, classes: int, samples: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probs = (3 * torch.randn(4, samples, classes, generator=generator)).softmax(-1)
    found = entropies(probs)
    assert bool((found["epistemic"] >= 0).all())
    assert close(found["predictive"], found["aleatoric"] + found["epistemic"], 1e-5)
    assert float(found["predictive"].max()) <= math.log(classes) + 1e-5
    assert float(entropies(probs[:, :1].expand(-1, 3, -1))["epistemic"].max()) < 1e-6


def test_one_sample_cannot_disagree_with_itself_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert entropies(torch.tensor([[[0.7, 0.3]]]))["epistemic"].tolist() == [0.0]
    assert "with one sample the epistemic uncertainty is 0" in caplog.text
    with pytest.raises(ArgumentError, match=r"^prob_psenn: there is no sample of the prototypes\. Take `num_samples` of 200 or more\.$"):
        entropies(torch.zeros(1, 0, 2))


def test_overlap_of_equal_sets_is_1_and_of_far_ones_0() -> None:
    d = torch.randn(2, 200, 1).abs().expand(-1, -1, 3).clone()
    d[:, :, 2] += 100
    found = overlaps(d, torch.tensor([0, 1]))
    assert bool((found[[0, 1], [1, 0]] > 0.99).all())
    assert close(found[:, 2], [0.0, 0.0])
    assert found[[0, 1], [0, 1]].tolist() == [0.0, 0.0]  # with itself


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 5.0), (0.01, 5.0), (30.0, 1000.0)])
def test_overlap_is_that_of_scipys_kernel_estimate(scale: float, offset: float) -> None:
    generator = np.random.default_rng(0)
    d = offset + scale * np.stack([generator.normal(size=150), generator.normal(1.0, 1.5, size=150), generator.gamma(2.0, size=150)], 1)
    found = overlaps(torch.as_tensor(d)[None], torch.tensor([1]))[0]
    line = np.linspace(d.min() - 8 * scale, d.max() + 8 * scale, 20_001)
    densities = [gaussian_kde(column)(line) for column in d.T]
    for j in (0, 2):
        expected = np.trapezoid(np.minimum(densities[1], densities[j]), line)
        assert abs(float(found[j]) - expected) < 2e-3  # two hundred points against twenty thousand


def test_distances_that_do_not_vary_have_no_density() -> None:
    d = torch.tensor([4.0, 4.0, 5.0]).expand(1, 9, 3).clone()
    d = torch.cat([d, 4 + torch.rand(1, 9, 1)], 2)
    assert overlaps(d, torch.tensor([0]))[0].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert overlaps(d[:, :1], torch.tensor([0]))[0].tolist() == [0.0, 1.0, 0.0, 0.0]  # one sample


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.floats(0.1, 100))
def test_laws_of_overlap(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    d = torch.rand(3, 40, 4, generator=generator) * torch.tensor([1.0, 2.0, 3.0, 1.0])
    found = overlaps(d, torch.tensor([0, 1, 2]))
    assert bool(((found >= 0) & (found <= 1)).all())
    assert close(overlaps(scale * d + 3, torch.tensor([0, 1, 2])), found, 2e-3)
    assert close(overlaps(d, torch.tensor([1, 0, 0]))[1, 1], found[1, 0], 1e-5)  # of two classes either way
    one_by_one = torch.cat([overlaps(d[i : i + 1], torch.tensor([i])) for i in range(3)])
    assert close(one_by_one, found, 1e-6)


def test_typicality_counts_training_images_of_the_nearest_class() -> None:
    train = by_class([torch.tensor([3.0, 1.0, 9.0]), torch.tensor([2.0, 5.0])], [torch.tensor([0, 0, 1]), torch.tensor([0, 1])], 2)
    assert train.tolist() == [[1.0, 2.0, 3.0], [5.0, 9.0, -1.0]]
    found = typicality(torch.tensor([[2.5, 7.0], [0.5, 7.0], [8.0, 7.0], [99.0, 50.0], [1.0, 99.0]]), train)
    assert close(found, [2 / 3, 0.0, 1 / 2, 1.0, 0.0])
    assert math.isnan(float(typicality(torch.tensor([[1.0]]), -torch.ones(1, 4))))
    with pytest.raises(ShapeError, match=r"`train_stats` must have a row for each of 3 classes, got 2\. Compute it by training_distances"):
        typicality(torch.zeros(1, 3), train)


@pytest.mark.parametrize("family", FAMILIES)
def test_densities_and_moments_are_those_of_torch(family: Any) -> None:
    q = random(family)
    z = torch.randn(5, 4)
    assert close(q.log_density(z), torch.stack([peer(q).log_prob(row.expand(3, -1)) for row in z]), 1e-3)
    assert close(q.spread(), peer(q).variance.sum(-1), 1e-3)
    samples = q.sample(*q.noise(40_000))
    assert close(samples.mean(0), peer(q).mean, 0.06)
    assert close(samples.var(0), peer(q).variance, 0.15)


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_carry_gradients_to_every_parameter(family: Any) -> None:
    q = random(family)
    (q.sample(*q.noise(8)) * torch.randn(8, 3, 4)).sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in q.parameters())


def test_prototypes_are_drawn_independently_of_each_other() -> None:
    samples = random("gauss_full").sample(*random("gauss_full").noise(20_000)).flatten(1)
    across = torch.corrcoef(samples.T)[:4, 4:]
    assert float(across.abs().max()) < 0.05


def test_the_divergence_of_a_mixture_of_equal_parts_is_that_of_one() -> None:
    q = random("mixture")
    one = torch.randn(3, 1, 4).expand(3, 2, 4)
    q.set_to(one, 0.5 * torch.eye(4).expand(3, 2, 4, 4))
    own = torch.distributions.MultivariateNormal(one[:, 0], scale_tril=0.5 * torch.eye(4))
    prior = torch.distributions.MultivariateNormal(torch.zeros(4), torch.eye(4))
    assert close(q.divergence(), torch.distributions.kl_divergence(own, prior).mean(), 1e-4)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.floats(-3, 3))
def test_what_is_set_is_there_again(seed: int, exponent: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    q = PrototypeDistributions(2, 3, "gauss_full")
    L = 10**exponent * (
        torch.randn(2, 1, 3, 3, generator=generator).tril(-1) + torch.diag_embed(0.1 + torch.rand(2, 1, 3, generator=generator))
    )
    means = torch.randn(2, 1, 3, generator=generator)
    q.set_to(means, L)
    assert torch.allclose(q.factors(), L, rtol=1e-4, atol=1e-6)
    assert torch.equal(q.means, means)


def test_scales_must_be_positive() -> None:
    with pytest.raises(ArgumentError, match=r"^ProbPSENN: scales must be above 0, got -1\. They are standard deviations, or the diagonal"):
        PrototypeDistributions(1, 2).set_to(torch.zeros(1, 1, 2), torch.diag(torch.tensor([1.0, -1.0]))[None, None])


def test_a_diagonal_fit_has_standard_deviations_and_not_variances() -> None:
    z = torch.randn(400, 3) * torch.tensor([0.1, 1.0, 5.0])
    q = PrototypeDistributions(1, 3, "gauss_diag")
    q.fit(z, torch.zeros(400, dtype=torch.long), 1)
    assert close(q.scales[0, 0], (z.var(0) + 1e-3).sqrt(), 1e-4)


@pytest.mark.parametrize("family", ["gauss_full", "mixture"])
def test_parts_of_a_class_are_found(family: Any) -> None:
    parts = 2 if family == "gauss_full" else 1
    centres = torch.tensor([[-5.0, 0.0], [5.0, 0.0], [0.0, -50.0], [0.0, 50.0]])
    z = (centres[:, None] + 0.3 * torch.randn(4, 60, 2)).flatten(0, 1)
    q = PrototypeDistributions(2 * parts, 2, family)
    q.fit(z, torch.tensor([0, 0, 1, 1]).repeat_interleave(60), 2)
    found = q.means.detach().view(2, 2, 2)
    for k in (0, 1):
        assert close(torch.cdist(found[k], centres[2 * k : 2 * k + 2]).amin(0), [0.0, 0.0], 0.3)
    assert float(q.scales.max()) < 0.6


def test_two_images_and_equal_images_have_a_distribution() -> None:
    z = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [3.0, 1.0]])
    for family in FAMILIES:
        q = PrototypeDistributions(2, 2, family)  # type: ignore[arg-type]
        q.fit(z, torch.tensor([0, 0, 1, 1]), 2)
        assert bool(q.log_density(z).isfinite().all())
