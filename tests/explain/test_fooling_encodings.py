"""Genomes: the steps of mutation and crossover by hand, the graphs' activations and laws, and the colours."""

import colorsys
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from retinue.errors import ArgumentError
from retinue.explain.fooling_cppn import ACTIVATIONS, CPPN, CPPNEncoding, activate
from retinue.explain.fooling_encodings import DirectEncoding, hls_to_rgb, mutated, polynomial_delta, sbx, stepped


def test_the_polynomial_step_by_hand() -> None:
    assert_allclose(polynomial_delta(np.array([0.001, 0.25, 0.5, 0.75])), [-0.321868, -0.042397, 0, 0.042397], rtol=0, atol=5e-7)
    u = (np.arange(10**6) + 0.5) / 10**6
    assert np.abs(polynomial_delta(u)).mean() == pytest.approx(1 / 17, abs=1e-6)
    assert polynomial_delta(u).std() == pytest.approx(0.0808452, abs=1e-6)


@pytest.mark.parametrize(("r", "children"), [(0.5, (0.2000044, 0.5999999)), (0.9, (0.1685346, 0.6315110)), (0.1, (0.2272263, 0.5727775))])
def test_simulated_binary_crossover_by_hand(r: float, children: tuple[float, float]) -> None:
    for a, b in ((0.2, 0.6), (0.6, 0.2)):
        assert_allclose(np.ravel(sbx(np.array([a]), np.array([b]), np.array([r]))), children, rtol=0, atol=5e-8)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.999))
def test_children_stay_within_the_bounds_and_in_order(a: float, b: float, r: float) -> None:
    lower, upper = (float(child[0]) for child in sbx(np.array([a]), np.array([b]), np.array([r])))
    assert 0 <= lower <= 1
    assert 0 <= upper <= 1
    assert lower <= upper + 1e-9 or a == b
    if a == b:
        assert (lower, upper) == (a, b)


def test_a_gene_changes_with_its_probability_and_stays_in_bounds() -> None:
    genes = np.random.default_rng(0).random(20_000, dtype=np.float32)
    born = mutated(genes, np.random.default_rng(1), 0.1, 15.0)
    assert (born != genes).mean() == pytest.approx(0.1, abs=0.01)
    assert born.min() >= 0
    assert born.max() <= 1
    assert born.dtype == np.float32
    assert (mutated(genes, np.random.default_rng(1), 0.0, 15.0) == genes).all()


def test_half_of_the_pairs_are_crossed_and_the_others_copied() -> None:
    encoding = DirectEncoding((1, 4, 4), mutation_rate=0.0)
    zeros, ones = np.full((1, 4, 4), 0.25, np.float32), np.full((1, 4, 4), 0.75, np.float32)
    born = encoding.children([(zeros, ones)] * 400, np.random.default_rng(0), 0)
    assert len(born) == 800
    copied = sum(bool((a == zeros).all() and (b == ones).all()) for a, b in zip(born[::2], born[1::2]))
    assert 160 < copied < 240
    crossed = [child for child in born if len(np.unique(child)) > 2]
    assert abs(np.mean(crossed) - 0.5) < 0.02


def test_the_mutation_rate_is_halved() -> None:
    encoding, genes = DirectEncoding((1, 50, 50), crossover_rate=0.0, halve_every=1000), np.full((1, 50, 50), 0.5, np.float32)
    for generation, rate in ((999, 0.1), (1000, 0.05), (2500, 0.025)):
        child = encoding.children([(genes, genes)], np.random.default_rng(0), generation)[0]
        assert (child != genes).mean() == pytest.approx(rate, abs=0.015)


def test_pixels_are_rounded_down_to_bytes() -> None:
    encoding = DirectEncoding((1, 1, 4))
    image = encoding.render([np.array([[[0.0, 0.5, 0.999, 1.0]]], np.float32)])
    assert (image * 255).round().flatten().tolist() == [0, 127, 254, 255]
    assert stepped(np.array([[[[2.0, -1.0]]]])).flatten().tolist() == [1.0, 0.0]


def test_colours_are_those_of_colorsys() -> None:
    values = np.random.default_rng(0).random((1, 3, 4, 5))
    ours = hls_to_rgb(values)
    for i, j in np.ndindex(4, 5):
        assert_allclose(ours[0, :, i, j], colorsys.hls_to_rgb(*values[0, :, i, j]), rtol=0, atol=1e-12)
    rendered = DirectEncoding((3, 4, 5)).render([values[0].astype(np.float32)])[0]
    for i, j in np.ndindex(4, 5):
        assert_allclose(rendered[:, i, j], np.floor(255 * np.array(colorsys.hsv_to_rgb(*values[0, :, i, j]))) / 255, rtol=0, atol=0.005)
    plain = DirectEncoding((3, 4, 5), color="rgb").render([values[0].astype(np.float32)])[0]
    assert_allclose(plain, np.floor(255 * values[0].astype(np.float32)) / 255, rtol=0, atol=1e-7)


def test_activations_at_one_half() -> None:
    expected = {"sine": 0.4794255, "sigmoid": 0.2449187, "gaussian": 0.7788008, "linear": 0.1666667}
    for kind in ACTIVATIONS:
        assert activate(kind, np.array([0.5]))[0] == pytest.approx(expected[kind], abs=5e-8)
    assert activate("linear", np.array([-9.0, 9.0])).tolist() == [-1, 1]
    assert np.isfinite(activate("sigmoid", np.array([-1e6, 1e6]))).all()


def test_a_graph_by_hand() -> None:
    # hidden = linear(3 x), output = sine(-1 hidden + 2 bias); the outer pixels' x is -1 and 1
    graph = CPPN(1, {4: "sine", 5: "linear"}, {(0, 5): 0.65, (5, 4): 0.45, (3, 4): 0.6})
    image = graph.render((1, 3), coords="unit")
    assert_allclose(image[0, 0], np.abs(np.sin([3.0, 2.0, 1.0])), rtol=1e-12)
    raw = graph.render((1, 3))  # columns 0, 1, 2
    assert_allclose(raw[0, 0], np.abs(np.sin([2.0, 1.0, 1.0])), rtol=1e-12)
    distance = CPPN(1, {4: "linear"}, {(2, 4): 0.55}).render(3)[0] * 3  # scaled in both
    assert_allclose(distance, [[2**0.5, 1, 2**0.5], [1, 0, 1], [2**0.5, 1, 2**0.5]], rtol=1e-12)


def test_the_bias_alone_paints_one_colour_and_a_single_pixel_is_the_centre() -> None:
    constant = CPPN(1, {4: "gaussian"}, {(3, 4): 0.7})
    assert len(np.unique(constant.render(9))) == 1
    assert CPPN(1, {4: "linear"}, {(2, 4): 0.9}).render(1).item() == 0
    assert CPPN(1, {4: "linear"}, {(0, 4): 0.9}).render(1, "unit").item() == 0
    assert CPPN(1, {4: "gaussian"}, {}).render(2).tolist() == [[[1.0, 1.0], [1.0, 1.0]]]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 3]))
def test_graphs_stay_graphs(seed: int, outputs: int) -> None:
    rng = np.random.default_rng(seed)
    graph = CPPN.random(rng, outputs)
    assert len(graph.edges) == 4 * outputs
    for _ in range(40):
        graph = graph.mutate(rng)
        assert all(0 <= gene <= 1 for gene in graph.edges.values())
    image = graph.render(5)
    assert image.shape == (outputs, 5, 5)
    assert image.min() >= 0
    assert image.max() <= 1
    again = CPPN.from_dict(json.loads(json.dumps(graph.to_dict())))
    assert (again.render(5) == image).all()
    assert again.to_dict() == graph.to_dict()


def test_mutation_comes_with_its_chances_and_changes_nothing_in_the_parent() -> None:
    rng = np.random.default_rng(0)
    start = CPPN(1, {4: "sine"}, {(source, 4): 0.5 for source in range(4)})
    before = start.to_dict()
    children = [start.mutate(rng) for _ in range(800)]
    assert start.to_dict() == before
    # an edge more is not possible here, all are there; a split makes a node and is followed by the node's death in 1 of 5
    share = np.mean([len(child.kinds) > 1 for child in children])
    assert share == pytest.approx(0.5 * 0.8, abs=0.06)
    assert np.mean([child.kinds[4] != "sine" for child in children]) == pytest.approx(0.1 * 0.75, abs=0.03)
    grown = CPPN(1, {4: "sine"}, {})
    assert np.mean([len(grown.mutate(rng).edges) > 0 for _ in range(800)]) == pytest.approx(0.5 * (1 - 0.3 + 0.0), abs=0.06)


def test_the_graphs_of_an_encoding_paint_in_colour() -> None:
    encoding, rng = CPPNEncoding((3, 6, 7), coords="unit"), np.random.default_rng(0)
    genomes = encoding.random(6, rng)
    born = encoding.children([(genomes[0], genomes[1]), (genomes[2], genomes[3])], rng, 0)
    images = encoding.render(born)
    assert images.shape == (4, 3, 6, 7)
    assert torch.equal((images * 255).round() / 255, images)
    again = encoding.unpack(*encoding.pack(born))
    assert torch.equal(encoding.render(again), images)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (
            lambda: CPPN(1, {4: "sine", 5: "sine", 6: "sine"}, {(5, 6): 0.5, (6, 5): 0.5, (0, 4): 1.0}),
            r"the graph has a cycle among the nodes \[5, 6\]\. Every node must be computed from earlier ones",
        ),
        (lambda: CPPN(1, {4: "sine", 5: "sine"}, {(4, 5): 0.5}), r"there can be no edge from 4 to 5\. Edges go from inputs \(0 to 3\)"),
        (lambda: CPPN(1, {4: "sine"}, {(0, 3): 0.5}), r"there can be no edge from 0 to 3"),
        (lambda: CPPN(1, {4: "sinus"}, {}), r'no activation is called "sinus"\. Did you mean sine'),
        (lambda: CPPN(2, {4: "sine", 5: "sine"}, {}), r"`outputs` must be 1 or 3 and each needs an activation, got 2"),
        (lambda: CPPN(1, {4: "sine"}, {}).render(3, "row"), r'no `coords` is called "row"\. Did you mean raw'),
        (lambda: CPPNEncoding((1, 8, 8), coords="row"), r'fool: no `coords` is called "row"'),
        (lambda: CPPNEncoding((1, 8, 8), mutation_rate=2), r"`mutation_rate` must lie in \[0, 1\], got 2\. It is a probability"),
        (lambda: DirectEncoding((1, 8, 8), crossover_rate=-0.1), r"`crossover_rate` must lie in \[0, 1\], got -0\.1"),
        (lambda: DirectEncoding((3, 8, 8), color="hls"), r'no `color` is called "hls"\. Did you mean hsv'),
        (lambda: DirectEncoding((1, 8, 8), halve_every=0), r"`halve_every` must be at least 1, got 0"),
        (lambda: DirectEncoding((2, 8, 8)), r"`image_shape` must be \(channels, height, width\) with 1 or 3 channels, got \(2, 8, 8\)"),
    ],
)
def test_what_is_refused(build: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        build()
