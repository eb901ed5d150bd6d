"""SelfCon: the losses' exact values and laws, the two exits, gradient caching, the objective on any backbone, and what is refused."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import images, parameters, same
from torch import Tensor, nn
from torch.testing import assert_close

import retinue
from retinue.data import Batch, Data
from retinue.engine import checkpoint
from retinue.errors import ArgumentError, ShapeError
from retinue.losses.self_contrastive import ImagiNetLoss, SelfConLoss
from retinue.models import adapt, create_model, feature_size, tiny
from retinue.models.gradient_cache import in_chunks
from retinue.models.selfcon import SelfConEncoder, SelfConHeads, find_exit, no_down, two_exits
from retinue.models.tiny import KINDS
from retinue.pretrain.selfcon import SelfCon

APART = torch.tensor([[[1, 0], [1, 0]], [[0, 1], [0, 1]]], dtype=torch.float64)
THREE = torch.tensor([[[1, 0], [0.6, 0.8]], [[0, 1], [0.8, 0.6]], [[-1, 0], [0, -1]]], dtype=torch.float64)


def embeddings(count: int, dim: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 2, dim, generator=generator, dtype=torch.float64), dim=-1)


def digits(**options: Any) -> Data:
    return retinue.data.open("digits", input_size=32, channels=3, train_images=160, test_images=20, **options)


def batch_of(count: int = 6, classes: int = 3, side: int = 32) -> Batch:
    return Batch(images(count, 3, side, side), torch.arange(count) % classes, torch.arange(count))


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, math.log(math.e + 2) - 1), (0.07, math.log1p(2 * math.exp(-1 / 0.07)))])
def test_two_images_apart_pay_log_of_one_and_two_negatives(temperature: float, expected: float) -> None:
    loss = SelfConLoss(temperature)(APART, torch.tensor([0, 1])).item()
    assert loss == pytest.approx(expected, abs=1e-12)
    assert loss == pytest.approx({1.0: 0.551445, 0.07: 1.249749e-06}[temperature], rel=1e-6)


@pytest.mark.parametrize("temperature", [0.07, 0.5, 3.0])
def test_eight_equal_vectors_pay_log_seven(temperature: float) -> None:
    z = torch.tensor([0.6, 0.8], dtype=torch.float64).expand(4, 2, 2)
    assert SelfConLoss(temperature)(z, torch.zeros(4, dtype=torch.int64)).item() == pytest.approx(math.log(7), abs=1e-12)


@pytest.mark.parametrize(
    ("labels", "temperature", "expected"), [([0, 0, 1], 0.5, 1.184409), ([0, 0, 1], 0.07, 2.696450), ([0, 1, 2], 0.5, 1.219965)]
)
def test_three_images_pay_what_the_page_says(labels: list[int], temperature: float, expected: float) -> None:
    assert SelfConLoss(temperature)(THREE, torch.tensor(labels)).item() == pytest.approx(expected, abs=1e-6)


def test_without_labels_each_image_is_a_class() -> None:
    assert SelfConLoss(0.5)(THREE).item() == SelfConLoss(0.5)(THREE, torch.arange(3)).item()


def test_the_families_of_real_images_do_not_matter() -> None:
    z, origin = embeddings(6), torch.tensor([0, 1, 1, 0, 1, 1])
    a, b = (ImagiNetLoss()(z, origin, torch.tensor(model)) for model in ([4, 0, 0, 4, 1, 2], [0, 0, 0, 9, 1, 2]))
    assert a == b


def test_the_two_terms_are_the_losses_of_all_and_of_the_synthetic_images() -> None:
    z, origin, model = embeddings(6), torch.tensor([0, 1, 1, 0, 1, 1]), torch.tensor([4, 0, 0, 4, 1, 2])
    single = SelfConLoss()
    first, second = single(z, origin), single(z[origin == 1], model[origin == 1])
    assert_close(ImagiNetLoss()(z, origin, model), first + second)
    assert_close(ImagiNetLoss((2, 0.5))(z, origin, model), 2 * first + 0.5 * second)
    assert abs(first - second) > 0.1


def test_without_a_synthetic_image_the_second_term_is_nought_with_a_graph() -> None:
    z = embeddings(3).requires_grad_()
    first, second = ImagiNetLoss().terms(z, torch.zeros(3, dtype=torch.int64), torch.full((3,), 4))
    assert second.item() == 0
    (gradient,) = torch.autograd.grad(second, z, retain_graph=True)
    assert not gradient.any()
    assert first.isfinite()


@pytest.mark.parametrize("origin", [[0, 1, 0], [1, 0, 0]])
def test_one_synthetic_image_has_its_other_exit_and_nothing_to_be_told_from(origin: list[int]) -> None:
    z = embeddings(3).requires_grad_()
    second = ImagiNetLoss().terms(z, torch.tensor(origin), torch.tensor([1, 1, 1]))[1]
    assert second.item() == pytest.approx(0, abs=1e-12)
    second.backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(5)))
def test_order_exits_and_rotation_do_not_change_the_loss(seed: int, order: list[int]) -> None:
    z, labels = embeddings(5, seed=seed), torch.tensor([0, 1, 1, 0, 2])
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[0]
    loss = SelfConLoss()
    whole = loss(z, labels)
    for changed, kinds in ((z[order], labels[order]), (z.flip(1), labels), (z @ turn, labels)):
        assert_close(loss(changed, kinds), whole, rtol=1e-9, atol=1e-9)


def test_wrong_embeddings_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"`z` must be \(images, exits, dim\), got \(4, 2\)\. Stack the exits"):
        SelfConLoss()(torch.ones(4, 2))
    with pytest.raises(ArgumentError, match=r"must have length 1, and that of image 1 is off by 0\.5.*normalize"):
        SelfConLoss()(APART * torch.tensor([1, 1.5])[:, None, None])
    SelfConLoss()(APART * 1.0009)
    with pytest.raises(ArgumentError, match=r"off by 0\.0011"):
        ImagiNetLoss()(APART * 1.0011, torch.tensor([0, 1]), torch.tensor([4, 0]))
    with pytest.raises(ShapeError, match=r"`origin` and `model` must be 2 whole numbers each, one for each image, got \(3,\)"):
        ImagiNetLoss()(APART, torch.tensor([0, 1, 1]), torch.tensor([0, 1]))
    with pytest.raises(ArgumentError, match=r"`origin` must be 0 \(real\) or 1 \(synthetic\), got \[0, 2\]"):
        ImagiNetLoss()(APART, torch.tensor([0, 2]), torch.tensor([0, 1]))
    with pytest.raises(ArgumentError, match=r"`temperature` must be above 0, got 0"):
        SelfConLoss(0)
    with pytest.raises(ArgumentError, match=r"`weights` must be two numbers of 0 or more, for origin and family, got \[1, -1\]"):
        ImagiNetLoss((1, -1))
    with pytest.raises(ArgumentError, match=r"NaN or infinite"):
        SelfConLoss()(APART * math.nan)


def test_the_papers_encoder_has_the_papers_parameters() -> None:
    with torch.device("meta"):  # counted without being filled
        backbone = create_model("resnet_no_down", num_classes=0)
        heads = SelfConHeads(feature_size(backbone), 512)
    assert find_exit(backbone) == "layer2"
    assert {tap["module"]: tap["num_chs"] for tap in backbone.feature_info}["layer2"] == 512  # type: ignore[union-attr,index]
    assert (parameters(backbone), parameters(heads.side)) == (23_508_032, 1_050_624)
    assert parameters(heads.project_main) == parameters(heads.project_side) == 4_458_624
    assert parameters(backbone) + parameters(heads) == 33_475_904


def test_without_early_strides_the_last_map_is_four_times_as_wide_and_weights_still_load() -> None:
    usual = timm.create_model("resnet18", num_classes=0).eval()
    wide = create_model("resnet_no_down", backbone="timm:resnet18", num_classes=0).eval()
    x = images(1, 3, 96, 96)
    with torch.no_grad():
        assert usual.forward_features(x).shape[-2:] == (3, 3)
        assert wide.forward_features(x).shape[-2:] == (12, 12)
    wide.load_state_dict(usual.state_dict())
    assert [tap["reduction"] for tap in wide.feature_info] == [1, 1, 2, 4, 8]
    with pytest.raises(ArgumentError, match=r"has not a convolution `conv1` and a max-pool `maxpool` as timm's ResNets have"):
        no_down(tiny("timm_vit"))


@pytest.mark.parametrize("kind", KINDS)
def test_both_exits_of_any_backbone_come_from_one_pass(kind: Any) -> None:
    model = adapt(tiny(kind), input_size=32).eval()
    encoder = SelfConEncoder(model, feat_dim=7).eval()
    x = images(3, 3, 32, 32)
    with torch.no_grad():
        out = encoder(x)
        features, side = two_exits(model, x, encoder.exit)
        assert_close(out["features"], retinue.models.pooled_features(model, x))
    assert out["main"].shape == out["side"].shape == (3, 7)
    assert_close(torch.stack([out["main"], out["side"]]).norm(dim=-1), torch.ones(2, 3))
    assert features.shape == (3, feature_size(model))
    seen: list[Tensor] = []
    model.get_submodule(encoder.exit).register_forward_hook(lambda module, args, y: seen.append(y))
    with torch.no_grad():
        model(x)
    places = (2, 3) if seen[0].ndim == 4 else 1
    tokens = seen[0] if seen[0].ndim == 4 else seen[0][:, model.num_prefix_tokens :]
    assert_close(side, tokens.mean(places))


def test_exits_that_cannot_be_are_refused() -> None:
    model = tiny("timm_cnn")
    assert find_exit(model) == "layer2"
    assert find_exit(adapt(tiny("bare")), "conv1") == "module.conv1"
    with pytest.raises(ArgumentError, match=r'no module for `exit` is called "layr2"\. Did you mean layer2'):
        find_exit(model, "layr2")
    with pytest.raises(ArgumentError, match=r'the module "fc" gives no maps or tokens'):
        SelfConEncoder(model, exit="fc")
    with pytest.raises(ArgumentError, match=r"Linear does not say what its stages are\. Name the module"):
        find_exit(nn.Linear(2, 2))
    with pytest.raises(ArgumentError, match=r"`feat_dim` must be at least 1, got 0"):
        SelfConEncoder(model, feat_dim=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 4])
def test_cached_gradients_are_those_of_the_whole_batch(kind: Any, chunk: int) -> None:
    model = adapt(tiny(kind), input_size=32)
    objective = SelfCon(model)
    model.eval()
    found = []
    for objective.chunk in (None, chunk):
        model.zero_grad()
        objective.zero_grad()
        loss = objective(model, batch_of())["loss"]
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in (*model.parameters(), *objective.parameters()) if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 5
    for a, b in zip(*found):
        assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_caching_keeps_no_activations_and_moves_averages_once() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    x = torch.randn(12, 4)
    runs = 0

    def embed(part: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        return net(part)

    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(1)
    z = in_chunks(embed, x, 4, net)
    once = {name: value.clone() for name, value in net.state_dict().items()}
    assert runs == 3
    z.square().sum().backward()
    assert runs == 6
    assert same(once, dict(net.state_dict()))
    assert net[1].num_batches_tracked.item() == 3
    gradient = net[0].weight.grad.clone()
    net.load_state_dict(before)
    net.zero_grad()
    torch.manual_seed(1)
    torch.cat([net(part) for part in x.split(4)]).square().sum().backward()
    assert_close(net[0].weight.grad, gradient)  # the same dropout was drawn again


@pytest.mark.parametrize("chunk", [0, -1, 2.5, True])
def test_chunks_that_cannot_be_are_refused(chunk: Any) -> None:
    with pytest.raises(ArgumentError, match=rf"`chunk` must be a whole number of images, 1 or more, got {chunk}"):
        in_chunks(lambda x: x, torch.zeros(4, 2), chunk)


@pytest.mark.parametrize(("kind", "real"), list(itertools.product(KINDS, [None, "3"])))
def test_a_step_moves_the_backbone_and_both_heads(kind: Any, real: str | None) -> None:
    data = digits()
    model = adapt(tiny(kind), input_size=32)
    model.reset_classifier(0)
    objective = SelfCon(model, data, real=real, feat_dim=16)
    before = {name: p.detach().clone() for name, p in (*model.named_parameters(), *objective.named_parameters())}
    retinue.fit(model, objective, data, max_steps=1, batch_size=8, lr=0.1, schedule="constant", progress=False)
    moved = {name for name, p in (*model.named_parameters(), *objective.named_parameters()) if not torch.equal(p, before[name])}
    assert {name for name, value in before.items() if value.ndim > 1} <= moved


def test_with_real_images_named_the_loss_has_the_two_terms() -> None:
    data = digits()
    model = tiny("timm_cnn", num_classes=0).eval()
    objective = SelfCon(model, data, real="2", weights=(1, 0.5))
    batch = batch_of(8, classes=4)
    numbers = objective(model, batch)
    assert_close(numbers["loss"], numbers["by_origin"] + 0.5 * numbers["by_family"])
    z = objective.heads(*two_exits(model, batch.images, objective.exit))
    kept = batch.labels != 2
    assert_close(numbers["by_origin"], SelfConLoss()(z, kept.long()))
    assert_close(numbers["by_family"], SelfConLoss()(z[kept], batch.labels[kept]))


@pytest.mark.parametrize("chunk", [None, 3])
def test_resumed_is_uninterrupted(tmp_path: Path, chunk: int | None) -> None:
    class Stop(BaseException):
        pass

    def train(folder: str, stop_at: int = -1) -> None:
        torch.manual_seed(0)
        model = tiny("ours")
        objective = SelfCon(model, digits(), real="1", chunk=chunk)

        def after_step(model: nn.Module, step: int) -> None:
            if step == stop_at:
                raise Stop

        objective.after_step = after_step  # type: ignore[method-assign]
        retinue.fit(model, objective, digits(), max_steps=4, batch_size=8, checkpoint_every=1, run_dir=tmp_path / folder, progress=False)

    train("whole")
    with pytest.raises(Stop):
        train("stopped", stop_at=3)
    train("stopped")
    whole, stopped = (checkpoint.read(tmp_path / name / "checkpoints" / "step-000000004") for name in ("whole", "stopped"))
    assert same(whole.tensors, stopped.tensors)


def test_training_brings_images_of_a_class_together() -> None:
    data = digits(seed=1)
    torch.manual_seed(0)
    model = tiny("ours", num_classes=0)
    objective = SelfCon(model, feat_dim=16)
    run = retinue.fit(model, objective, data, epochs=12, batch_size=16, optimizer="sgd", lr=0.05, clip_grad=1.0, progress=False)
    after = objective.evaluate(run.model, data.train.loader(16))["loss"]
    assert after < math.log(2 * 16 - 1) - 0.1  # what the same embedding for all would pay


def test_what_the_objective_cannot_work_with_is_refused() -> None:
    data, model = digits(), tiny("ours")
    with pytest.raises(ArgumentError, match=r"`real` names a class, so the data is needed too"):
        SelfCon(model, real="real")
    with pytest.raises(ArgumentError, match=r'no class of the data \(`real`\) is called "real"\. There is 0, 1'):
        SelfCon(model, data, real="real")
    other = retinue.data.from_arrays(torch.zeros(40, 3, 32, 32, dtype=torch.uint8), [0, 1] * 20, classes=["real", "fake"])
    with pytest.raises(ArgumentError, match=r'class 1 of arrays is not "1"\. Build the objective with the data that is trained on'):
        retinue.fit(model, SelfCon(model, data, real="1"), other, max_steps=1, progress=False)
    with pytest.raises(ArgumentError, match=r"the view mixup\(\) mixes images, and a mixed one is of no class"):
        retinue.fit(model, SelfCon(model), data, max_steps=1, views="flip, mixup(0.2)", progress=False)
