"""NT-Xent and the supervised contrastive loss: values by hand, laws, the plain form, its memory, two processes, and what is refused."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT
from torch import Tensor
from torch.testing import assert_close

from retinue.errors import ArgumentError, ShapeError
from retinue.losses.contrastive import nt_xent, others_logsumexp, supcon
from retinue.losses.gathering import gather_with_gradient
from retinue.losses.self_contrastive import ImagiNetLoss

PAIR = torch.eye(4, dtype=torch.float64)[:2]
Z1 = torch.tensor([[1, 2], [3, -1], [0, 1]], dtype=torch.float64)
Z2 = torch.tensor([[2, 1], [2, -2], [-1, 1]], dtype=torch.float64)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def plain(z1: Tensor, z2: Tensor, temperature: float, memory: Tensor | None = None) -> Tensor:
    """NT-Xent as one cross-entropy over the whole matrix; one loss for each anchor."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    logits = z @ z.T / temperature
    logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool), -math.inf)
    if memory is not None:
        logits = torch.cat([logits, z @ F.normalize(memory, dim=1).T / temperature], 1)
    count = len(z1)
    return F.cross_entropy(logits, torch.cat([torch.arange(count) + count, torch.arange(count)]), reduction="none")


def plain_supcon(z: Tensor, labels: list[int], temperature: float) -> float:
    """Equation 2, term by term."""
    rows = [(F.normalize(view, dim=0), label) for views, label in zip(z, labels) for view in views]
    losses = []
    for i, (own, label) in enumerate(rows):
        others = [(float(own @ other) / temperature, kind) for k, (other, kind) in enumerate(rows) if k != i]
        total = math.log(sum(math.exp(value) for value, _ in others))
        positives = [value - total for value, kind in others if kind == label]
        if positives:
            losses.append(-sum(positives) / len(positives))
    return sum(losses) / len(losses)


def peak(function: Any) -> int:
    """Measure the most bytes that a function holds at once, beyond what was there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize(("temperature", "expected"), [(0.5, math.log(math.e**2 + 2) - 2), (0.1, math.log1p(2 * math.exp(-10)))])
def test_orthogonal_pairs(temperature: float, expected: float) -> None:
    assert nt_xent(PAIR, PAIR, temperature).item() == pytest.approx(expected, rel=1e-9)
    assert {0.5: 0.23954477, 0.1: 9.0795737e-05}[temperature] == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("temperature", [0.05, 0.3, 2.0])
def test_collapsed_embeddings_pay_the_logarithm_of_the_others(temperature: float) -> None:
    same = torch.ones(8, 5, dtype=torch.float64)
    assert nt_xent(same, same, temperature).item() == pytest.approx(math.log(15), abs=1e-12)


def test_three_pairs_of_the_page() -> None:
    assert nt_xent(Z1, Z2, 0.5).item() == pytest.approx(0.81513730, abs=5e-9)
    assert nt_xent(Z1, Z2, 0.1).item() == pytest.approx(0.63784155, abs=5e-9)


def test_reductions() -> None:
    each = nt_xent(Z1, Z2, 0.5, reduction="none")
    assert each.shape == (6,)
    assert nt_xent(Z1, Z2, 0.5) == each.mean()
    assert nt_xent(Z1, Z2, 0.5, reduction="sum") == each.sum()
    assert nt_xent(Z1, Z2, 0.5, reduction="official").item() == pytest.approx(float(each[:3].mean() + each[3:].mean()))


def test_two_of_three_of_a_class() -> None:
    z = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)[:, None]
    for temperature in (0.1, 1.0):  # the third has no positive and is left out
        assert supcon(z, torch.tensor([7, 7, -2]), temperature).item() == pytest.approx(math.log1p(math.exp(-1 / temperature)), rel=1e-9)


def test_one_class_alone_pays_the_spread_of_its_cosines() -> None:
    z = torch.eye(3, dtype=torch.float64)[:, None]
    assert supcon(z, torch.zeros(3, dtype=torch.int64), 0.1).item() == pytest.approx(math.log(2), abs=1e-12)


def test_without_labels_two_views_are_nt_xent() -> None:
    z1, z2 = draw(7, 5), draw(7, 5, seed=1)
    assert_close(supcon(torch.stack([z1, z2], 1), None, 0.2), nt_xent(z1, z2, 0.2))
    assert_close(supcon(torch.stack([z1, z2], 1), torch.arange(7) * 3, 0.2), nt_xent(z1, z2, 0.2))


@settings(max_examples=12)
@given(seed=st.integers(0, 999), count=st.integers(2, 9), temperature=st.floats(0.05, 3.0))
def test_what_changes_nothing(seed: int, count: int, temperature: float) -> None:
    z1, z2 = draw(count, 4, seed=seed), draw(count, 4, seed=seed + 1000)
    expected = nt_xent(z1, z2, temperature)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    turn = torch.linalg.qr(draw(4, 4, seed=seed + 2000)).Q
    lengths = draw(count, 1, seed=seed + 3000).exp()
    for changed in ((z2, z1), (z1[order], z2[order]), (z1 * lengths, z2 / lengths), (z1 @ turn, z2 @ turn)):
        assert_close(nt_xent(*changed, temperature), expected)
    stacked, labels = torch.stack([z1, z2], 1), order % 2
    expected = supcon(stacked, labels, temperature)
    for views, kinds in ((stacked[order], labels[order]), (stacked.flip(1), labels), (stacked @ turn, labels), (stacked, 9 - 4 * labels)):
        assert_close(supcon(views, kinds, temperature), expected)


@settings(max_examples=12)
@given(seed=st.integers(0, 999), images=st.integers(2, 6), views=st.integers(1, 3), classes=st.integers(1, 3))
def test_the_supervised_loss_is_its_equation(seed: int, images: int, views: int, classes: int) -> None:
    z = draw(images, views, 5, seed=seed)
    labels = [0, 0, *((torch.randint(classes, (4,), generator=torch.Generator().manual_seed(seed))).tolist())][:images]
    assert supcon(z, torch.tensor(labels), 0.3).item() == pytest.approx(plain_supcon(z, labels, 0.3), rel=1e-9)


@pytest.mark.parametrize("chunk", [None, 1, 5, 24, 100])
@pytest.mark.parametrize("entries", [0, 7])
def test_every_chunk_has_the_values_and_gradients_of_the_plain_form(chunk: int | None, entries: int) -> None:
    z1, z2 = draw(12, 6).requires_grad_(), draw(12, 6, seed=1).requires_grad_()
    memory = draw(entries, 6, seed=2) if entries else None
    weights = draw(24, seed=3)
    ours, theirs = nt_xent(z1, z2, 0.1, memory, chunk=chunk, reduction="none"), plain(z1, z2, 0.1, memory)
    assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours @ weights, (z1, z2)), torch.autograd.grad(theirs @ weights, (z1, z2))):
        assert_close(a, b)


def test_single_precision_has_gradients_within_a_hundred_thousandth() -> None:
    z1, z2 = draw(512, 128, dtype=torch.float32).requires_grad_(), draw(512, 128, seed=1, dtype=torch.float32).requires_grad_()
    expected = torch.autograd.grad(plain(z1.double(), z2.double(), 0.1).mean(), (z1, z2))
    for chunk in (None, 100):
        for a, b in zip(torch.autograd.grad(nt_xent(z1, z2, 0.1, chunk=chunk), (z1, z2)), expected):
            assert float((a - b).norm() / b.norm()) < 1e-5


def test_the_gradients_are_those_of_small_differences() -> None:
    z1, z2 = draw(3, 4).requires_grad_(), draw(3, 4, seed=1).requires_grad_()
    labels = torch.tensor([0, 0, 1])
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5, PAIR, chunk=2, reduction="none"), (z1, z2))
    assert torch.autograd.gradcheck(lambda a, b: supcon(torch.stack([a, b], 1), labels, 0.5, chunk=4), (z1, z2))


def test_the_memory_gets_no_gradient_and_is_only_negative() -> None:
    memory = draw(5, 2).requires_grad_()
    assert nt_xent(Z1, Z2, 0.5, memory) > nt_xent(Z1, Z2, 0.5)
    nt_xent(Z1.clone().requires_grad_(), Z2, 0.5, memory).backward()
    assert memory.grad is None


def test_sixteen_bits_are_computed_in_single_precision() -> None:
    z1, z2 = draw(16, 8, dtype=torch.bfloat16), draw(16, 8, seed=1, dtype=torch.bfloat16)
    expected = nt_xent(z1.float(), z2.float(), 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        found = nt_xent(z1, z2, 0.1)
    assert found.dtype == torch.float32
    assert found == expected


def test_far_similarities_do_not_overflow() -> None:
    z1, z2 = draw(8, 3, dtype=torch.float32), draw(8, 3, seed=1, dtype=torch.float32)
    assert nt_xent(z1, z2, 1e-3).isfinite()
    assert_close(nt_xent(z1, z2, 1e-3), plain(z1.double(), z2.double(), 1e-3).mean().float(), rtol=1e-4, atol=0)


def test_at_8192_images_it_holds_a_quarter_of_the_plain_form_at_most() -> None:
    def held(function: Any, count: int, **options: Any) -> int:
        z1, z2 = (draw(count, 8, seed=seed, dtype=torch.float32).requires_grad_() for seed in (0, 1))
        return peak(lambda: function(z1, z2, 0.1, **options).mean().backward())

    of_plain = held(plain, 512)
    assert of_plain >= 2 * 4 * 1024**2, "the similarities, and their softmax, of 4 bytes"
    assert held(nt_xent, 512, chunk=64) < of_plain / 4
    assert held(nt_xent, 8192) < 2 * 4 * 16384**2 / 4 / 8, "an eighth of that quarter"


PROGRAM = """
import sys, torch, torch.distributed
from retinue.losses.contrastive import nt_xent, supcon
from retinue.losses.gathering import gather_with_gradient
from retinue.losses.self_contrastive import ImagiNetLoss

def work(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    x = torch.load(f"{folder}/x.pt")
    mine = {name: value[4 * rank : 4 * rank + 4] for name, value in x.items() if name in ("a", "b", "labels")}
    weight = x["weight"].clone().requires_grad_()
    z1, z2 = mine["a"] @ weight, mine["b"] @ weight
    found = {}
    for name, loss in (
        ("nt_xent", nt_xent(z1, z2, 0.2, x["memory"], chunk=3)), ("alone", nt_xent(z1, z2, 0.2, gather=False)),
        ("self", supcon(torch.stack([z1, z2], 1), None, 0.2)), ("labels", supcon(torch.stack([z1, z2], 1), mine["labels"], 0.2)),
        ("imaginet", ImagiNetLoss(temperature=0.2)(torch.nn.functional.normalize(torch.stack([z1, z2], 1), dim=-1),
                                                   (mine["labels"] > 0).long(), mine["labels"])),
    ):
        gradient, = torch.autograd.grad(loss, weight, retain_graph=True)
        for tensor in (gradient, loss := loss.detach()):  # as the engine does after each backward pass
            torch.distributed.all_reduce(tensor)
        found[name] = (loss / 2, gradient / 2)
    found["gathered"] = gather_with_gradient(mine["labels"])
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    torch.distributed.destroy_process_group()

if __name__ == "__main__":
    torch.multiprocessing.spawn(work, (sys.argv[1],), nprocs=2)
"""


def test_two_processes_have_the_loss_and_gradient_of_one_with_all_images(tmp_path: Path) -> None:
    x = {"a": draw(8, 5), "b": draw(8, 5, seed=1), "weight": draw(5, 3, seed=2), "memory": draw(6, 3, seed=3)}
    x["labels"] = torch.tensor([0, 1, 2, 0, 1, 1, 2, 5])
    torch.save(x, tmp_path / "x.pt")
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "found.pt")
    weight = x["weight"].requires_grad_()
    z1, z2 = x["a"] @ weight, x["b"] @ weight
    both = torch.stack([z1, z2], 1)
    expected = {
        "nt_xent": nt_xent(z1, z2, 0.2, x["memory"]),
        "self": supcon(both, None, 0.2),
        "labels": supcon(both, x["labels"], 0.2),
        "imaginet": ImagiNetLoss(temperature=0.2)(F.normalize(both, dim=-1), (x["labels"] > 0).long(), x["labels"]),
        "alone": (nt_xent(z1[:4], z2[:4], 0.2) + nt_xent(z1[4:], z2[4:], 0.2)) / 2,
    }
    for name, loss in expected.items():
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        assert_close(found[name][0], loss.detach(), msg=name)
        assert_close(found[name][1], gradient, msg=name)
    assert found["gathered"].tolist() == x["labels"].tolist()


def test_alone_nothing_is_gathered() -> None:
    rows = draw(3, 2)
    assert gather_with_gradient(rows) is rows


def test_an_anchor_may_stand_anywhere_among_the_keys() -> None:
    keys = F.normalize(draw(6, 3), dim=1)
    whole = others_logsumexp(keys, keys, 0, 0.5)
    assert_close(others_logsumexp(keys[2:5], keys, 2, 0.5, chunk=2), whole[2:5])


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        ((Z1, Z2[:2]), {}, ShapeError, r"must both be \(images, dim\), row by row of the same image, got \(3, 2\) and \(2, 2\)\."),
        ((Z1[:1], Z2[:1]), {}, ShapeError, r"a batch needs 2 images at least, got 1: one image has no negatives\. Leave it out\."),
        ((Z1, Z2, 0.0), {}, ArgumentError, r"`temperature` must be above 0, got 0\.0\. Usual are 0\.07 to 0\.5\."),
        ((Z1, Z2, math.nan), {}, ArgumentError, r"`temperature` must be above 0, got nan"),
        ((Z1, Z2 * torch.tensor([[1.0], [math.nan], [1.0]])), {}, ArgumentError, r"embedding of image 1 is NaN or infinite\. Lower the"),
        ((Z1 / torch.zeros(1), Z2), {}, ArgumentError, r"embedding of image 0 is NaN or infinite"),
        ((Z1, Z2, 0.1, PAIR), {}, ShapeError, r"`memory` must be \(entries, 2\), got \(2, 4\)\."),
        ((Z1, Z2), {"chunk": 0}, ArgumentError, r"`chunk` must be a whole number of anchors, 1 or more, got 0\. None chooses one\."),
        ((Z1, Z2), {"reduction": "man"}, ArgumentError, r'no `reduction` is called "man"\. Did you mean mean\?'),
    ],
)
def test_nt_xent_refuses(arguments: Any, options: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=f"^nt_xent: .*{message}"):
        nt_xent(*arguments, **options)


@pytest.mark.parametrize(
    ("z", "labels", "kind", "message"),
    [
        (Z1, None, ShapeError, r"`z` must be \(images, views, dim\), got \(3, 2\)\. For one view of each: z\[:, None\]\."),
        (Z1[:1, None], torch.tensor([0]), ShapeError, r"there must be 2 views at least, got `z` of \(1, 1, 2\)"),
        (Z1[:, None], torch.tensor([0, 1]), ShapeError, r"`labels` must be 3 whole numbers, one for each image, got \(2,\)\."),
        (Z1[:, None], None, ArgumentError, r"with one view of each image, and no `labels`, nothing is a positive\. Give labels, or two"),
        (Z1[:, None], torch.tensor([0, 1, 2]), ArgumentError, r"no two images have the same label, so nothing is a positive\. Give larger"),
        (Z1[:, None] * math.inf, torch.tensor([0, 0, 2]), ArgumentError, r"the embedding of image 0 is NaN or infinite"),
    ],
)
def test_supcon_refuses(z: Any, labels: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=f"^supcon: .*{message}"):
        supcon(z, labels)
