import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import python
from torch import nn

import retinue
from retinue.data import Data
from retinue.errors import ArgumentError, ShapeError
from retinue.explain.st_protopnet import (
    PartPrototypes,
    between,
    class_pairs,
    closeness,
    cluster,
    discrimination,
    orthogonality,
    parts,
)
from retinue.models.protopnet import Branch, ProtoPNet, STProtoPNet
from retinue.models.tiny import KINDS, tiny

P = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, -0.6], [-1.0, 0.0], [0.0, -1.0]])
OWNER = torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.fixture(scope="module")
def digits() -> Data:
    return retinue.data.open("digits", train_images=120, test_images=60, val_fraction=0.0, seed=0)


def backbone(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return retinue.create_model("small_convnet", widths=[8, 16], num_classes=10, in_chans=1, input_size=8)


def network(seed: int = 0, kind: Any = STProtoPNet, **options: Any) -> Any:
    return kind(backbone(seed), 10, **{"prototypes_per_class": 2, "dim": 6, "in_chans": 1, "input_size": 8, **options})


def branch(similarity: Any = "cosine", counts: Any = (2, 2, 2)) -> Branch:
    return Branch(4, 2, counts, similarity, (1, 8, 8))


def test_the_tables_and_losses_of_the_page() -> None:
    low, high = class_pairs(P, OWNER, 3, "amin"), class_pairs(P, OWNER, 3, "amax")
    above = torch.triu_indices(3, 3, 1)
    assert torch.allclose(low[above[0], above[1]], torch.tensor([-0.6, -1.0, -0.8]))
    assert torch.allclose(high[above[0], above[1]], torch.tensor([0.8, 0.0, 0.6]))
    assert closeness(P, OWNER, 3).item() == pytest.approx(0.8)
    assert discrimination(P, OWNER, 3).item() == pytest.approx(0.466667, abs=1e-6)
    assert orthogonality(P, OWNER).item() == pytest.approx(0.0, abs=1e-6)
    assert orthogonality(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1])).item() == 2.0


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 4), min_size=2, max_size=5))
def test_the_tables_are_those_of_two_loops_whatever_the_counts(seed: int, counts: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    owner = torch.repeat_interleave(torch.tensor(counts))
    vectors = torch.randn(len(owner), 5, generator=generator, dtype=torch.float64)
    sets = [vectors[owner == c] for c in range(len(counts))]
    pairs = [(a @ b.T) for i, a in enumerate(sets) for j, b in enumerate(sets) if i != j]
    assert closeness(vectors, owner, len(counts)).item() == pytest.approx(-sum(pair.min().item() for pair in pairs) / len(pairs))
    assert discrimination(vectors, owner, len(counts)).item() == pytest.approx(sum(pair.max().item() for pair in pairs) / len(pairs))
    eyes = [(a @ a.T - torch.eye(len(a))).abs().sum().item() for a in sets]
    assert orthogonality(vectors, owner).item() == pytest.approx(sum(eyes))


def test_cluster_takes_the_best_of_a_mask_and_others_count_as_they_do_in_the_papers() -> None:
    nearness = torch.tensor([[0.2, 0.7, 0.9], [-0.5, -0.1, 0.3]])
    own = torch.tensor([[True, True, False], [True, True, False]])
    assert cluster(nearness, own).item() == pytest.approx((0.7 + 0.0) / 2)
    assert cluster(nearness, own, -math.inf).item() == pytest.approx((0.7 - 0.1) / 2)
    assert cluster(nearness, ~own).item() == pytest.approx((0.9 + 0.3) / 2)


def test_the_last_layer_begins_with_one_and_minus_a_half() -> None:
    weight = branch().last.weight
    assert weight[0].tolist() == [1, 1, -0.5, -0.5, -0.5, -0.5]
    assert weight[2].tolist() == [-0.5, -0.5, -0.5, -0.5, 1, 1]


def test_the_logarithm_of_the_page() -> None:
    one = branch("log")
    near = torch.tensor([0.0, -1.0]).view(1, 2, 1, 1)
    told = one.activation(near, torch.zeros(1, 2, 1, 1)).flatten()
    assert told[0].item() == pytest.approx(9.210340, abs=1e-5)
    assert told[1].item() == pytest.approx(0.693047, abs=1e-6)
    z = torch.rand(2, 2, 3, 3)
    distances = (z[:, None] - one.prototypes[:, :, None, None]).square().sum(2)
    assert torch.allclose(one.nearness(z), -distances, atol=1e-6)


def test_a_branch_by_hand() -> None:
    one = branch()
    with torch.no_grad():
        one.prototypes.copy_(P)
    z = torch.tensor([[3.0, 0.0], [4.0, -2.0]]).view(1, 2, 1, 2)  # places (3, 4) and (0, -2)
    seen = one(z)
    cosines = torch.tensor([[0.6, 0.0], [0.8, -1.0], [1.0, -0.8], [0.0, 0.6], [-0.6, 0.0], [-0.8, 1.0]])
    assert torch.allclose(seen.maps[0, :, 0], cosines.relu(), atol=1e-6)
    best = torch.tensor([0.6, 0.8, 1.0, 0.6, 0.0, 1.0])
    assert torch.allclose(seen.activations[0], best, atol=1e-6)
    sums = torch.tensor([1.4, 1.6, 1.0])
    assert torch.allclose(seen.logits[0], 1.5 * sums - 0.5 * sums.sum(), atol=1e-6)
    projected = branch("projection")
    with torch.no_grad():
        projected.prototypes.copy_(P)
    seen = projected(z)
    lengths = torch.tensor([5.0, 2.0])
    assert torch.allclose(seen.maps[0, :, 0], cosines * lengths, atol=1e-5)
    assert torch.allclose(seen.nearness[0], cosines.amax(1), atol=1e-6)


@settings(max_examples=10)
@given(st.floats(0.01, 100))
def test_lengths_do_not_matter_to_cosines(c: float) -> None:
    one = branch()
    z = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(one(c * z).logits, one(z).logits, atol=1e-5)


def test_what_stands_before_the_prototypes() -> None:
    between_ = {"log": [nn.ReLU, nn.Sigmoid], "cosine": [], "projection": [nn.Tanh, nn.Tanh]}
    for similarity, kinds in between_.items():
        layers = branch(similarity).addon
        assert [type(layer) for layer in layers if not isinstance(layer, nn.Conv2d)] == kinds
        assert sum(isinstance(layer, nn.Conv2d) for layer in layers) == 2
    drawn = branch().prototypes
    assert torch.allclose(drawn.norm(dim=1), torch.ones(6))
    assert bool((drawn >= 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_any_backbone_and_every_stage_moves_its_players_alone(kind: Any) -> None:
    data = retinue.data.open("digits", input_size=32, channels=3, train_images=40, test_images=20, val_fraction=0.0)
    torch.manual_seed(0)
    model: Any = PartPrototypes(options={"prototypes_per_class": 2, "dim": 8}).prepare(tiny(kind), data)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    for stage, moving in (("warm", {"addon", "prototypes"}), ("joint", {"backbone", "addon", "prototypes"}), ("last", {"last"})):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        retinue.fit(model, PartPrototypes(stage=stage), data, max_steps=2, batch_size=8, lr=0.01, schedule="constant", progress=False)  # type: ignore[arg-type]
        after = model.state_dict()
        named = {id(parameter): name for name, parameter in model.named_parameters()}
        for part, parameters in parts(model).items():
            moved = any(not torch.equal(before[named[id(p)]], after[named[id(p)]]) for p in parameters)
            assert moved == (part in moving), (stage, part)
        if stage == "warm":
            still = [name for name in before if name.startswith("backbone.")]
            assert all(torch.equal(before[name], after[name]) for name in still)  # running statistics too
        if stage != "last":
            assert all(torch.allclose(one.prototypes.norm(dim=1), torch.ones(20), atol=1e-5) for one in model.branches.values())


@pytest.mark.parametrize("name", ["timm:resnet18", "timm:vit_tiny_patch16_224", "timm:convnext_atto", "timm:swin_tiny_patch4_window7_224"])
def test_networks_of_timm_give_maps(name: str) -> None:
    inner = retinue.create_model(name, num_classes=3, input_size=64)
    model = STProtoPNet(inner, 3, 2, 8, input_size=64).eval()
    told = model(torch.randn(1, 3, 64, 64), return_all=True)
    assert set(told) == {"logits", "logits_t", "logits_s", "act_t", "act_s", "maps_t", "maps_s"}
    assert torch.allclose(told["logits"], told["logits_t"] + told["logits_s"])
    assert torch.allclose(told["act_s"], told["maps_s"].amax((2, 3)))
    assert told["maps_t"].shape[2] * told["maps_t"].shape[3] >= 4


def test_batches_alternate_between_the_branches(digits: Data) -> None:
    model: Any = network()
    objective = PartPrototypes()
    batch = next(iter(digits.train.loader(8).batches()))
    for step, learns in ((0, "trivial"), (1, "support"), (2, "trivial")):
        model.zero_grad()
        player, numbers = next(objective.losses(model, batch, step))
        assert player == "backbone"
        assert ("closeness" in numbers) == (learns == "support")
        assert ("discrimination" in numbers) == (learns == "trivial")
        numbers["loss"].backward()
        other = "support" if learns == "trivial" else "trivial"
        assert model.branches[learns].prototypes.grad is not None
        assert model.branches[other].prototypes.grad is None


def test_the_loss_is_put_together_with_the_papers_weights_and_signs(digits: Data) -> None:
    model: Any = network()
    batch = next(iter(digits.train.loader(8).batches()))
    for step, (kind, far) in enumerate((("trivial", 0.08), ("support", 0.48))):
        one = model.branches[kind]
        seen = one(one.embed(model.forward_features(batch.images)))
        own = one.owner == batch.labels[:, None]
        expected = F.cross_entropy(seen.logits, batch.labels)
        expected = expected - 0.8 * (seen.activations * own).amax(1).mean() + far * (seen.activations * ~own).amax(1).mean()
        vectors, owner = one.prototypes, one.owner
        expected = expected + 1e-3 * orthogonality(vectors, owner)
        expected = expected + (closeness if kind == "support" else discrimination)(vectors, owner, 10)
        losses = [numbers["loss"] for _, numbers in PartPrototypes().losses(model, batch, step)]
        assert all(torch.allclose(loss, expected, atol=1e-6) for loss in losses)
        scaled = next(PartPrototypes(orth_weight=None).losses(model, batch, step))[1]["loss"]
        assert torch.allclose(scaled - expected, (0.02 - 1e-3) * orthogonality(vectors, owner), atol=1e-5)
    plain: Any = network(kind=ProtoPNet)
    one = plain.branches["plain"]
    seen = one(one.embed(plain.forward_features(batch.images)))
    own = one.owner == batch.labels[:, None]
    near, other = (-seen.nearness.masked_fill(~mask, -math.inf).amax(1).mean() for mask in (own, ~own))
    expected = F.cross_entropy(seen.logits, batch.labels) + 0.8 * near - 0.08 * other
    assert torch.allclose(next(PartPrototypes().losses(plain, batch, 0))[1]["loss"], expected, atol=1e-6)
    last = next(PartPrototypes(stage="last").losses(plain, batch, 0))[1]["loss"]
    wrong = one.last.weight[~one.identity.T].abs().sum()
    assert wrong.item() == pytest.approx(0.5 * 20 * 9)
    assert torch.allclose(last, F.cross_entropy(seen.logits, batch.labels) + 1e-4 * wrong, atol=1e-6)


def test_all_players_get_the_gradient_of_one_joint_step(digits: Data) -> None:
    batch = next(iter(digits.train.loader(8).batches()))
    objective, model = PartPrototypes(), network()
    _, numbers = next(objective.losses(model, batch, 0))
    players = objective.players(model)
    expected = {name: torch.autograd.grad(numbers["loss"], p, retain_graph=True, allow_unused=True) for name, p in players.items()}
    for player, told in objective.losses(model, batch, 0):
        found = torch.autograd.grad(told["loss"], players[player], allow_unused=True)
        for a, b, parameter in zip(expected[player], found, players[player]):
            assert (a is None) == (b is None)
            assert a is None or torch.allclose(a, b, atol=1e-6)
            with torch.no_grad():
                parameter.add_(0.1)  # as the player's optimiser would move it, before the next one's turn


def test_a_killed_run_goes_on_bit_for_bit(digits: Data, tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    def train(folder: str, stop: int = -1) -> Any:
        objective = PartPrototypes()
        follow = objective.after_step

        def after_step(model: nn.Module, step: int) -> None:
            follow(model, step)
            if step == stop:
                raise Stop

        objective.after_step = after_step  # type: ignore[method-assign]
        options: dict[str, Any] = {"max_steps": 5, "batch_size": 8, "checkpoint_every": 2, "loggers": ("csv",), "progress": False}
        return retinue.fit(network(), objective, digits, run_dir=tmp_path / folder, **options).model.state_dict()

    whole = train("whole")
    with pytest.raises(Stop):
        train("stopped", 3)
    again = train("stopped")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_run_is_loaded_with_its_network_rebuilt_around_its_backbone(digits: Data, tmp_path: Path) -> None:
    options = {"prototypes_per_class": 2, "dim": 6}
    run = retinue.fit(backbone(), PartPrototypes(options=options), digits, max_steps=3, run_dir=tmp_path, progress=False)
    found: Any = retinue.load(tmp_path)
    assert isinstance(found, STProtoPNet)
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(found(x), run.model(x))
    assert found.classes == digits.classes
    assert retinue.evaluate(found, digits.test).keys() == {"top1", "top5", "ece", "loss"}


def test_networks_by_name_and_what_a_checkpoint_needs_to_know() -> None:
    made: Any = retinue.create_model("protopnet", backbone="small_convnet", backbone_args={"widths": [8, 16]}, num_classes=3, input_size=16)
    assert list(made.branches) == ["plain"]
    assert made.num_features == 30
    assert made.branches["plain"].prototypes.shape == (30, 128)
    config = retinue.models.config(made)
    assert config is not None
    again = retinue.create_model(config["name"], **config["arguments"])
    again.load_state_dict(made.state_dict())
    made.reset_classifier(4)
    assert made(torch.zeros(1, 3, 16, 16)).shape == (1, 4)
    made.keep({"plain": torch.arange(40) % 10 < 3})
    config = retinue.models.config(made)
    assert config is not None
    again = retinue.create_model(config["name"], **config["arguments"])
    again.load_state_dict(made.state_dict())
    assert again.get_classifier()["plain"].counts() == [3, 3, 3, 3]
    with torch.device("meta"):
        retinue.create_model("st_protopnet", backbone="small_convnet", num_classes=3, input_size=16)


def test_upsampling_and_probabilities() -> None:
    model = network(upsample=2).eval()
    x = torch.randn(2, 1, 8, 8)
    plain = model.backbone.forward_features(x)
    assert torch.equal(model.forward_features(x), F.interpolate(plain, scale_factor=2, mode="bilinear", align_corners=False))
    told = model(x, return_all=True)
    assert torch.allclose(model.probabilities(x), (told["logits_t"].softmax(1) + told["logits_s"].softmax(1)) / 2)
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, 40)


def test_what_the_networks_refuse() -> None:
    with pytest.raises(ArgumentError, match=r"`num_classes` must be at least 2, got 1"):
        ProtoPNet(backbone(), 1, in_chans=1, input_size=8)
    with pytest.raises(ArgumentError, match=r"`dim` and `upsample` must be at least 1, got 0 and 1"):
        network(dim=0)
    with pytest.raises(ArgumentError, match=r'no `similarity` is called "cosin"\. Did you mean cosine\?'):
        network(similarity="cosin")
    with pytest.raises(ArgumentError, match=r'no kind of branch is called "suport"\. Did you mean support\?'):
        network(branches=("suport",))
    with pytest.raises(ArgumentError, match=r"`branches` must name one branch or more, each once, got \['plain', 'plain'\]"):
        network(branches=("plain", "plain"))
    with pytest.raises(ArgumentError, match=r"must be one number of at least 1, or for each of 2 branches a list of 10 such numbers"):
        network(prototypes_per_class=[[2] * 9, [2] * 10])
    with pytest.raises(ArgumentError, match=r"STProtoPNet: class 0 would have no trivial prototype left\. Keep at least one of each class"):
        network().keep({"trivial": torch.arange(20) > 1})
    with pytest.raises(ShapeError, match=r"this network takes 1 channels, got 3"):
        network()(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ShapeError, match=r"leaves no map of images of 2x2 px, of which places could be compared\. Take larger images"):
        network().eval()(torch.zeros(1, 1, 2, 2))
    flat = retinue.create_model("mlp", widths=[8], num_classes=3, in_chans=1, input_size=8)
    with pytest.raises(ShapeError, match=r"gives no map of images of 8x8 px, so there are no parts to compare"):
        ProtoPNet(flat, 3, in_chans=1, input_size=8)


def test_what_the_objective_refuses(digits: Data) -> None:
    with pytest.raises(ArgumentError, match=r'PartPrototypes: no stage is called "warmup"\. Did you mean warm\?'):
        PartPrototypes(stage="warmup")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r'no `kind` is called "protonet"\. Did you mean protopnet'):
        PartPrototypes("protonet")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"`cluster_weight` must be 0 or more, got -0\.8\. Its sign is part of the loss"):
        PartPrototypes(cluster_weight=-0.8)
    with pytest.raises(ArgumentError, match=r'STProtoPNet: no option is called "dims"\. Did you mean dim\?'):
        PartPrototypes(options={"dims": 3}).prepare(backbone(), digits)
    with pytest.raises(ArgumentError, match=r"must be a ProtoPNet or STProtoPNet, got Linear"):
        PartPrototypes().players(nn.Linear(2, 2))
    three = STProtoPNet(backbone(), 3, 2, 6, in_chans=1, input_size=8)
    with pytest.raises(ArgumentError, match=r"the network has 3 classes and digits has 10\. Build it with num_classes=10"):
        PartPrototypes().check(three, digits)
    large = STProtoPNet(backbone(), 10, 2, 6, in_chans=1, input_size=16)
    with pytest.raises(ArgumentError, match=r"built for images of \(16, 16\) px with 1 channels, these are \(8, 8\) px with 1"):
        PartPrototypes().check(large, digits)


def test_between_leaves_out_a_class_with_itself() -> None:
    assert between(torch.tensor([[9.0, 1.0], [3.0, 9.0]])).item() == 2.0


def test_a_fresh_process_knows_the_networks_once_the_room_is_imported() -> None:
    told = python("import retinue; print(retinue.list_models('*protopnet'))").stdout
    assert told.strip() == "['protopnet', 'st_protopnet']"
