"""Iterated function systems: the page's exact checks, the samplers' laws, jitters, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.errors import ArgumentError
from retinue.pretrain.fractal_jitter import JITTERS, jitter_ifs
from retinue.pretrain.fractal_render import render_ifs
from retinue.pretrain.fractal_systems import (
    band,
    check_system,
    contracts,
    fixed_point,
    iterate_ifs,
    probabilities,
    sample_ifs,
    sample_svs,
    sample_systems,
    sigma_factor,
)

SIERPINSKI = np.array([[[0.5, 0, x], [0, 0.5, y]] for x, y in ((0, 0), (0.5, 0), (0.25, 0.5))])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_fixed_point_of_the_page() -> None:
    found = fixed_point(np.array([[0.5, 0, 1], [0, 0.25, 0.5]]))
    np.testing.assert_allclose(found, [2, 2 / 3], rtol=0, atol=1e-15)


def test_the_bands_of_the_page() -> None:
    assert [band(n) for n in (2, 3, 4, 8)] == [(3.5, 4.0), (4.0, 4.5), (4.5, 5.0), (6.5, 7.0)]


def test_sierpinskis_maps_are_equally_likely_and_at_the_top_of_the_band() -> None:
    assert probabilities(SIERPINSKI).tolist() == [1 / 3] * 3
    assert sigma_factor(SIERPINSKI) == 4.5


def test_maps_are_chosen_by_the_area_that_they_leave() -> None:
    system = np.array([[[0.5, 0, 0], [0, 0.6, 0]], [[0, 0.2, 1], [-0.5, 0, 0]]])
    np.testing.assert_allclose(probabilities(system), [0.75, 0.25], rtol=1e-15)
    flat = np.array([[[0.5, 0, 0], [0, 0, 0]], [[0.5, 0, 1], [0, 0, 0]]])
    assert probabilities(flat).tolist() == [0.5, 0.5]


def test_sierpinskis_points_leave_the_middle_triangle_empty() -> None:
    x, y = iterate_ifs(SIERPINSKI, 100_000, rng()).T
    assert (abs(x.mean() - 0.5), abs(y.mean() - 1 / 3)) < (0.01, 0.01)
    assert min(x.min(), y.min()) >= 0
    assert max(x.max(), y.max()) <= 1
    assert not ((y > 2 * abs(x - 0.5) + 1e-12) & (y < 0.5 - 1e-12)).any()
    assert (render_ifs(np.stack([x, y], axis=1), 64) > 0).mean() == pytest.approx(0.29, abs=0.015)


def test_a_map_alone_stays_at_its_fixed_point() -> None:
    points = iterate_ifs(np.array([[[0.5, 0, 1], [0, 0.25, 0.5]]]), 50)
    np.testing.assert_allclose(points, np.tile([2, 2 / 3], (50, 1)), rtol=0, atol=1e-12)
    assert (render_ifs(points, 32) > 0).sum() == 1


def test_the_points_are_distributed_as_one_long_chain() -> None:
    system = sample_ifs(3, rng=rng(4))
    random, point, chain = rng(1), fixed_point(system[0]), []
    for which in random.choice(3, size=20_000, p=probabilities(system)):
        point = system[which, :, :2] @ point + system[which, :, 2]
        chain.append(point)
    ours = iterate_ifs(system, 20_000, rng(2))
    np.testing.assert_allclose(ours.mean(0), np.mean(chain, 0), atol=0.03 * np.std(chain))
    np.testing.assert_allclose(np.cov(ours.T), np.cov(np.array(chain).T), atol=0.03 * np.var(chain))


@pytest.mark.parametrize("method", ["sequential", "rejection"])
def test_every_system_contracts_and_has_its_sigma_factor(method: str) -> None:
    random = rng(7)
    for count in range(200):
        maps = 2 + count % 4
        alpha = random.uniform(*band(maps))
        values = sample_svs(maps, alpha, random, method)
        assert ((values[:, 1] >= 0) & (values[:, 1] <= values[:, 0]) & (values[:, 0] <= 1)).all()
        assert abs((values @ (1, 2)).sum() - alpha) < 1e-9


@settings(max_examples=25)
@given(st.integers(2, 8), st.integers(0, 1000))
def test_systems_have_the_singular_values_that_were_drawn(maps: int, seed: int) -> None:
    system = sample_ifs(maps, rng=rng(seed), bval=0.7)
    assert system.shape == (maps, 2, 3)
    low, high = band(maps)
    assert low - 1e-9 <= sigma_factor(system) <= high + 1e-9
    assert abs(system[:, :, 2]).max() <= 0.7
    assert sigma_factor(sample_ifs(maps, 1.25, rng=rng(seed))) == pytest.approx(1.25, abs=1e-9)
    assert np.linalg.svd(system[:, :, :2], compute_uv=False).max() < 1


def test_turns_and_mirrors_of_all_kinds_occur() -> None:
    signs = [np.sign(np.linalg.det(sample_ifs(2, rng=rng(seed))[0, :, :2])) for seed in range(60)]
    assert 15 < signs.count(1) < 45
    sizes = [len(sample_ifs(rng=rng(seed))) for seed in range(60)]
    assert min(sizes.count(n) for n in (2, 3, 4)) > 8
    assert sum(map(sizes.count, (2, 3, 4))) == 60


def test_the_share_of_lit_pixels_by_sigma_factor_is_the_pages() -> None:
    def spread(alpha: float | None) -> np.ndarray:
        lit = []
        for number in range(90):
            n = 2 + number % 3
            factor = alpha if alpha is None or alpha < 0.8 else alpha * 3 * n
            lit.append((render_ifs(iterate_ifs(sample_ifs(n, factor, rng=rng(number)), 20_000, rng(number)), 64) > 0).mean())
        return np.percentile(lit, (5, 50, 95))

    within, dust, clouds = spread(None), spread(0.5), spread(0.8)
    np.testing.assert_allclose(within, [0.13, 0.29, 0.63], atol=0.07)  # 90 systems instead of the page's thousands
    np.testing.assert_allclose(clouds, [0.33, 0.44, 0.57], atol=0.09)
    assert dust[1] < 0.005
    assert within[2] - within[0] > clouds[2] - clouds[0]


def test_a_system_is_the_same_however_many_are_drawn() -> None:
    few, many = sample_systems(3, seed=5), sample_systems(8, seed=5)
    assert all(np.array_equal(a, b) for a, b in zip(few, many))
    assert not np.array_equal(few[0], sample_systems(1, seed=6)[0])


@pytest.mark.parametrize("kind", sorted(JITTERS))
def test_jittered_systems_contract_and_stay_near(kind: str) -> None:
    changed = 0
    for seed in range(60):
        system = sample_ifs(rng=rng(seed))
        jittered = jitter_ifs(system, rng(seed + 1), kind)
        assert np.linalg.svd(jittered[:, :, :2], compute_uv=False).max() < 1
        assert np.isfinite(jittered).all()
        maps = int((jittered != system).any((1, 2)).sum())
        assert maps <= (len(system) if kind == "fractaldb" else 1)
        changed += maps > 0
    assert changed == 0 if kind == "none" else changed > 20


def test_each_jitter_changes_what_it_says() -> None:
    system = sample_ifs(3, rng=rng(3))
    for seed in range(12):
        scaled = JITTERS["scale"](system, rng(seed))
        moved = (scaled != system).any((1, 2))
        factor = scaled[moved] / system[moved]
        assert factor.min() >= 0.8
        assert factor.max() <= 1.1
        assert np.ptp(factor) < 1e-12
        turned = JITTERS["turn"](system, rng(seed))
        assert sigma_factor(turned) == pytest.approx(sigma_factor(system), abs=1e-12)
        assert np.array_equal(turned[:, :, 2], system[:, :, 2])
        shifted = JITTERS["shift"](system, rng(seed)) - system
        assert not shifted[:, :, :2].any()
        assert abs(shifted).max() <= 0.5
        weighted = JITTERS["fractaldb"](system, rng(seed)) / system
        entries = np.unique(weighted.round(9), axis=0)
        assert len(entries) == 1
        assert set(entries.ravel().tolist()) <= {1.0, 0.2, 0.6, 1.4, 1.8}
        stretched = jitter_ifs(system, rng(seed), "singular")
        assert 4.0 - 1e-9 <= sigma_factor(stretched) <= 4.5 + 1e-9


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.5, 2.0))
def test_contraction_is_told_by_the_largest_singular_value(seed: int, scale: float) -> None:
    system = rng(seed).uniform(-1, 1, (2, 2, 3)) * scale
    assert contracts(system) == bool(np.linalg.svd(system[:, :, :2], compute_uv=False).max() < 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_ifs(1), r"`n` must be 2 maps or more, or \(fewest, most\), got 1\. One map has a single point"),
        (lambda: sample_ifs((4, 2)), r"got \(4, 2\)"),
        (
            lambda: sample_ifs(2, 6.0),
            r"`alpha` must lie strictly between 0 and 6 for 2 maps, got 6\.0\. The paper draws it between 3\.5 and",
        ),
        (lambda: sample_ifs(2, 0.0), r"got 0\.0"),
        (lambda: sample_ifs(2, method="rejecting"), r'no method is called "rejecting"\. Did you mean rejection'),
        (lambda: sample_ifs(6, 17.999, rng=rng(), method="rejection"), r'1000 draws with alpha=17\.999 were rejected\. Take method="seq'),
        (lambda: sample_systems(0), r"number of systems must be at least 1, got 0"),
        (lambda: iterate_ifs(SIERPINSKI, 0), r"`n_points` must be at least 1, got 0\. The paper takes 100,000"),
        (
            lambda: iterate_ifs(2 * SIERPINSKI, 10),
            r"map 0 does not contract: its largest singular value is 1\. Scale it below 1, or pass allow",
        ),
        (lambda: iterate_ifs(1e30 * SIERPINSKI, 10, allow_divergent=True), r"grow beyond all numbers\. Take a system whose maps contract"),
        (lambda: check_system(np.zeros((2, 3))), r"a system must have the shape \(maps, 2, 3\), got \(2, 3\)"),
        (lambda: check_system(np.full((2, 2, 3), np.nan)), r"entries that are not finite\. Every number of a map must be"),
        (lambda: jitter_ifs(SIERPINSKI, rng(), "scal"), r'no `jitter` is called "scal"\. Did you mean scale'),
    ],
)
def test_what_cannot_be_is_refused(call: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()  # type: ignore[operator]


def test_a_divergent_system_may_be_tried() -> None:
    points = iterate_ifs(np.array([[[1.0, 0, 0], [0, 0.5, 0.5]]]), 10, rng(), allow_divergent=True)
    assert points.shape == (10, 2)
    assert np.isfinite(points).all()
