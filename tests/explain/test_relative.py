import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group
from torch import Tensor, nn

import retinue
from retinue.data import Data
from retinue.errors import ArgumentError, ShapeError
from retinue.explain import Relative, RelativeProjection, select_anchors, stitch
from retinue.explain.relative import encode
from retinue.models.relative import RelativeModel
from retinue.models.tiny import KINDS, tiny

X = torch.tensor([[3.0, 4.0], [1.0, 0.0], [-2.0, 2.0]])
A = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
COSINE = [[0.6, 0.8, 0.98994949], [1, 0, 0.70710678], [-0.70710678, 0.70710678, 0]]
ANGULAR = [[0.29516724, 0.20483276, 0.04516724], [0, 0.5, 0.25], [0.75, 0.25, 0.5]]


def close(a: Tensor, b: Any, tolerance: float = 1e-6) -> bool:
    return torch.allclose(a, torch.as_tensor(b, dtype=a.dtype), atol=tolerance, rtol=0)


def test_the_numbers_of_the_page() -> None:
    x, a = X.double(), A.double()
    assert close(RelativeProjection()(x, a), COSINE, 1e-8)
    assert close(RelativeProjection("angular")(x, a), ANGULAR, 1e-8)
    assert close(RelativeProjection("euclidean")(x, a)[0], [4.47213595, 3.60555128, 3.60555128], 1e-8)
    assert close(RelativeProjection("l1")(x, a)[0], [6.0, 5.0, 5.0], 1e-12)
    assert close(RelativeProjection("basis")(x, a[:2]), [[3.0, 2.0], [1.0, 0.0], [-2.0, 1.0]], 1e-12)
    assert close(RelativeProjection("inner")(x, a)[0], [3 / 2**0.5, 8 / 2**0.5, 7 / 2**0.5], 1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 10))
def test_what_each_similarity_does_not_see(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    z, a = (torch.as_tensor(rng.normal(size=(n, 6)), dtype=torch.float32) for n in (5, 4))
    Q = torch.as_tensor(ortho_group.rvs(6, random_state=seed), dtype=torch.float32)
    shift = torch.full((6,), 20.0)
    M = torch.as_tensor(rng.normal(size=(6, 6)) + 3 * np.eye(6), dtype=torch.float32)
    order = torch.as_tensor(rng.permutation(6))

    def same(similarity: Any, change: Any, tolerance: float = 1e-5, **options: Any) -> bool:
        project = RelativeProjection(similarity, **options)
        return close(project(change(z), change(a)), project(z, a), tolerance)

    for similarity in ("cosine", "angular"):
        assert same(similarity, lambda x: scale * x @ Q, 1e-4 if similarity == "angular" else 3e-6)
        assert not same(similarity, lambda x: x + shift)
        assert same(similarity, lambda x: x + shift, 1e-4, center=True)
    assert same("euclidean", lambda x: x @ Q + shift, 1e-4)
    assert not same("euclidean", lambda x: 3 * x)
    assert same("l1", lambda x: x[:, order] + shift, 1e-4)
    assert not same("l1", lambda x: x @ Q, 1e-6)
    assert same("inner", lambda x: x @ Q)
    z, a = z.double(), torch.as_tensor(rng.normal(size=(6, 6)) + 3 * np.eye(6))
    assert same("basis", lambda x: x @ M.double(), 1e-6)


def test_anchors_have_one_at_their_own_place_and_twins_the_same_column() -> None:
    r = RelativeProjection()(A, torch.cat([A, A[:1]]))
    assert close(r.diagonal(), [1.0, 1.0, 1.0])
    assert torch.equal(r[:, 0], r[:, 3])


def test_rounded_similarities_keep_the_gradient() -> None:
    x = X.clone().requires_grad_()
    rounded, plain = RelativeProjection(step=0.25)(x, A), RelativeProjection()(x, A)
    assert close(rounded / 0.25, (plain / 0.25).round())
    weights = torch.arange(9.0).view(3, 3)
    ours, theirs = (torch.autograd.grad((out * weights).sum(), x, retain_graph=True)[0] for out in (rounded, plain))
    assert close(ours, theirs)


@pytest.mark.parametrize("similarity", ["cosine", "angular", "euclidean", "l1"])
def test_gradients_are_finite_at_the_anchors_themselves(similarity: Any) -> None:
    x = A.clone().requires_grad_()
    RelativeProjection(similarity)(x, x).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def test_half_precision_never_leaves_the_arc_cosine() -> None:
    z = torch.randn(50, 64, dtype=torch.bfloat16)
    r = RelativeProjection("angular")(z, z)
    assert bool(r.isfinite().all())
    assert r.min() >= 0
    assert r.max() <= 1


def test_zero_vectors_are_said_once_and_count_zero(caplog: pytest.LogCaptureFixture) -> None:
    project = RelativeProjection().eval()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(project(torch.zeros(1, 2), A), torch.zeros(1, 3))
    assert len(caplog.records) == 1


@pytest.fixture(scope="module")
def digits() -> Data:
    return retinue.data.open("digits", train_images=120, test_images=60, val_fraction=0.0, seed=0)


def network(seed: int = 0, widths: Any = (16, 8)) -> nn.Module:
    torch.manual_seed(seed)
    return retinue.create_model("mlp", widths=list(widths), num_classes=10, in_chans=1, input_size=8)


def built(data: Data, seed: int = 0, **options: Any) -> Any:
    return Relative(**{"num_anchors": 20, **options}).prepare(network(seed), data)


def test_anchors_are_encoded_once_in_evaluation_and_anew_when_a_weight_changes(digits: Data) -> None:
    model = built(digits).eval()
    first = model.encoded_anchors()
    assert model.encoded_anchors() is first
    with torch.no_grad():
        model.encoder.layers[0][0].weight.mul_(1.5)
    assert not torch.equal(model.encoded_anchors(), first)
    again = model.encoded_anchors()
    model.fill(model.anchors + 1)
    assert not torch.equal(model.encoded_anchors(), again)


def test_counting_computes_nothing_and_keeps_nothing(digits: Data) -> None:
    model = built(digits).eval()
    assert retinue.models.count_macs(model, 8) > 0
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(model(x), model(x))
    once = 64 * 16 + 16 * 8 + 8 * 20 + 20 * 10  # encoder, similarities, head; the anchors are encoded already
    assert retinue.models.count_macs(model, 8) == once


def test_the_gradient_flows_through_the_anchors(digits: Data) -> None:
    model = built(digits).train()
    z = retinue.models.pooled_features(model.encoder, torch.randn(4, 1, 8, 8)).detach()
    model.projection(z, model.encoded_anchors()).square().sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in model.encoder.parameters() if p.ndim > 1)


def test_encoding_anchors_moves_no_running_statistics() -> None:
    data = retinue.data.open("digits", input_size=32, channels=3, train_images=40, seed=0)
    model: Any = Relative(num_anchors=10).prepare(tiny("timm_cnn"), data).train()
    before = {name: value.clone() for name, value in model.encoder.named_buffers()}
    model.encoded_anchors()
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.named_buffers())


@pytest.mark.parametrize("kind", KINDS)
def test_any_backbone_is_trained_on_similarities(kind: Any) -> None:
    data = retinue.data.open("digits", input_size=32, channels=3, train_images=40, test_images=20, seed=0)
    run = retinue.fit(tiny(kind), Relative(num_anchors=10), data, max_steps=2, batch_size=8, progress=False)
    assert isinstance(run.model, RelativeModel)
    assert run.model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert run.model.num_features == 10


def test_a_run_is_opened_again_and_a_frozen_encoder_stays(digits: Data, tmp_path: Path) -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = retinue.fit(
        model, Relative(num_anchors=20, head="mlp", frozen=True), digits, max_steps=5, run_dir=tmp_path / "run", progress=False
    )
    again: Any = retinue.load(tmp_path / "run")
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(again(x), run.model(x))
    assert torch.equal(again.anchors, run.model.anchors)
    assert all(torch.equal(value, before[name]) for name, value in again.encoder.state_dict().items())


def test_the_tanh_head_normalises_over_the_batch(digits: Data) -> None:
    model = built(digits, head="tanh").eval()
    hidden = model.forward_head(torch.randn(30, 20), pre_logits=True)
    assert close(hidden.mean(0), torch.zeros(20), 1e-5)
    assert close(hidden.var(0, correction=0), torch.ones(20), 1e-2)


def test_onnxruntime_computes_the_same(digits: Data, tmp_path: Path, unchecked: None) -> None:
    import onnxruntime

    run = retinue.fit(network(), Relative(num_anchors=20), digits, max_steps=2, progress=False)
    run.model.classes, run.model.preprocessing = digits.classes, digits.preprocessing  # type: ignore[assignment]
    run.model.eval()(torch.zeros(1, 1, 8, 8))
    torch.onnx.export(run.model, (torch.zeros(2, 1, 8, 8),), tmp_path / "r.onnx", dynamo=True, verbose=False)
    x = torch.randn(2, 1, 8, 8)
    session = onnxruntime.InferenceSession(tmp_path / "r.onnx", providers=["CPUExecutionProvider"])
    told = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    assert close(torch.as_tensor(told), run.model(x).detach(), 1e-4)


def test_stitched_accuracies_are_those_of_head_behind_encoder(digits: Data) -> None:
    one, two = (retinue.fit(network(i), Relative(num_anchors=20), digits, max_steps=20, progress=False).model for i in (0, 1))
    accuracy = stitch([one, two], digits.test)
    x = digits.preprocessing.normalize(digits.test.images())
    mixed = two.forward_head(one.forward_features(x)).argmax(-1)  # type: ignore[operator]
    assert accuracy[0, 1].item() == pytest.approx((mixed == digits.test.labels).float().mean().item())
    assert accuracy[0, 0].item() == pytest.approx(retinue.evaluate(one, digits.test)["top1"])


def test_heads_that_take_other_lengths_are_not_connected(digits: Data) -> None:
    narrow, wide = network(0, (16, 8)), network(1, (16, 9))
    accuracy = stitch([narrow, wide], digits.test)
    assert [[math.isnan(value) for value in row] for row in accuracy.tolist()] == [[False, True], [True, False]]
    assert accuracy[1, 1].item() == pytest.approx(retinue.evaluate(wide, digits.test)["top1"])


def test_farthest_points_of_the_page() -> None:
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0], [5.0, 5.0], [5.0, 4.0]])
    assert select_anchors(points, 3, "fps").tolist() == [0, 3, 2]
    assert sorted(select_anchors(torch.zeros(4, 2), 4, "fps").tolist()) == [0, 1, 2, 3]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(3, 30), st.sampled_from(["uniform", "stratified", "kmeans", "fps"]))
def test_each_is_chosen_once_and_the_same_by_the_same_seed(seed: int, k: int, method: Any) -> None:
    rng = np.random.default_rng(seed)
    among = torch.as_tensor(rng.normal(size=(40, 3)))
    if method == "stratified":
        among = torch.arange(40) % 3
    chosen = select_anchors(among, k, method, seed)
    assert len(chosen.unique()) == k
    assert torch.equal(chosen, select_anchors(among, k, method, seed))
    if method == "stratified":
        counts = torch.bincount(among[chosen], minlength=3)
        assert counts.max() - counts.min() <= 1


def test_a_rare_class_gives_what_it_has() -> None:
    labels = torch.tensor([0] * 20 + [1] * 2)
    assert torch.bincount(labels[select_anchors(labels, 10, "stratified")]).tolist() == [8, 2]


def test_kmeans_takes_the_samples_nearest_to_the_centres() -> None:
    points = torch.tensor([[0.0], [0.1], [0.2], [9.0], [9.1], [9.2]])
    assert select_anchors(points, 2, "kmeans").tolist() == [1, 4]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RelativeProjection("cosin"), r'^RelativeProjection: no `similarity` is called "cosin"\. Did you mean "?cosine'),  # type: ignore[arg-type]
        (lambda: RelativeProjection(eps=0.0), r"^RelativeProjection: `eps` must be above 0, got 0\.0\.$"),
        (lambda: select_anchors(torch.zeros(3), 4), r"`k` must lie between 1 and the number of samples, 3, got 4\.$"),
        (lambda: select_anchors(torch.arange(5), 3, "stratified"), r"needs an anchor of each of 5 classes at least, got `k`=3\.$"),
        (lambda: select_anchors(torch.arange(5), 3, "fps"), r'^select_anchors: "fps" chooses by features, one row a sample'),
        (lambda: Relative(num_anchors=0), r"^Relative: `num_anchors` must be at least 1, got 0\.$"),
        (
            lambda: Relative(head="cnn").prepare(network(), retinue.data.open("digits")),
            r'^RelativeModel: no `head` is called "cnn"\. There is linear, mlp, tanh\.$',
        ),  # type: ignore[arg-type]
        (lambda: stitch([], retinue.data.open("digits").test), r"^stitch: there is no network\."),
        (lambda: RelativeProjection().eval()(torch.full((1, 2), math.nan), A), r"the features hold values that are not finite"),
    ],
)
def test_what_cannot_be_is_refused(call: Any, message: str, unchecked: None) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()


def test_shapes_that_do_not_fit_are_refused(digits: Data, unchecked: None) -> None:
    with pytest.raises(ShapeError, match=r"^RelativeProjection: features and anchors must be of one length.*Encode both with the same"):
        RelativeProjection()(X, torch.zeros(2, 3))
    with pytest.raises(ShapeError, match="there must be an anchor"):
        RelativeProjection()(X, torch.zeros(0, 2))
    model = built(digits)
    with pytest.raises(ShapeError, match=r"^RelativeModel: the head takes 20 features, got 7\."):
        model.forward_head(torch.zeros(1, 7))
    with pytest.raises(ShapeError, match=r"^RelativeModel: the anchors must be of shape"):
        model.fill(torch.zeros(3, 1, 8, 8))
    with pytest.raises(ArgumentError, match=r"^encode: the split is empty\."):
        encode(model, digits.test.subset([]))
