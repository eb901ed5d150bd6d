"""Training by NoProp: who moves, order and parallel runs bit for bit, any backbone, memory of one block, resume, and what is refused."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from support import images, same
from torch import Tensor, nn

import retinue
from retinue.data import Batch, Data, from_arrays
from retinue.engine import checkpoint
from retinue.engine.seeds import seed_all
from retinue.errors import ArgumentError, DataError, NonFiniteError, ShapeError
from retinue.models.noprop import NoPropCT, NoPropDT, NoPropFM, NoPropNet
from retinue.models.tiny import KINDS, tiny
from retinue.train import Supervised
from retinue.train.noprop import NoProp, activation_bytes, local_step

SMALL: dict[str, Any] = {"widths": (), "hidden": 16, "label_layers": 1}
SETTINGS: dict[str, Any] = {"batch_size": 12, "lr": 1e-2, "schedule": "constant", "progress": False, "log_every": 1}


@pytest.fixture
def data() -> Data:
    """Seventy-two images of 4 px in three classes: each brightens another row."""
    pixels = torch.randint(0, 120, (72, 4, 4), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(72) % 3
    pixels[torch.arange(72), labels] += 100
    return from_arrays(pixels.byte().numpy(), labels, split=["train"] * 36 + ["val"] * 12 + ["test"] * 24, name="rows")


def network(blocks: int = 3, seed: int = 0, **options: Any) -> NoPropDT:
    torch.manual_seed(seed)
    return NoPropDT(3, 1, 4, blocks, **{**SMALL, **options})


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def optimizers(model: NoPropDT, names: list[str]) -> dict[str, torch.optim.Optimizer]:
    players = NoProp().players(model)
    return {name: torch.optim.AdamW(players[name], lr=1e-2) for name in names}


ALL = ["block_1", "block_2", "block_3", "labels"]


# --- blocks learn alone ----------------------------------------------------------------------------------------------------------------


def test_reversed_order_gives_the_same_weights_bit_for_bit() -> None:
    found = []
    for names in (ALL, ALL[::-1]):
        model = network(drop_rate=0.0).train()
        own = optimizers(model, names)
        for step in range(4):
            torch.manual_seed(step)
            told = local_step(model, own, images(12, 1, 4, 4, seed=step), torch.arange(12) % 3)
        assert list(told) == names
        found.append(weights(model))
    assert same(*found)
    assert not same(found[0], weights(network()))


def test_blocks_trained_in_runs_of_their_own_are_those_of_one_run(data: Data) -> None:
    pixels = data.train.images()[:, 0].numpy()
    data = from_arrays(
        pixels, data.train.labels, split=["train"] * 36, name="rows", val_fraction=0.0
    )  # nothing chooses another step of each run
    whole = retinue.fit(network(), NoProp(), data, max_steps=5, **SETTINGS).model
    for name, prefix in (("block_2", "blocks.1."), ("labels", "readout.")):
        before = weights(network())
        alone = retinue.fit(network(), NoProp(players=[name]), data, max_steps=5, **SETTINGS).model.state_dict()
        for key, value in alone.items():
            assert torch.equal(value, whole.state_dict()[key] if key.startswith(prefix) else before[key]), key


def test_a_players_update_moves_its_own_parameters_alone() -> None:
    for embed in ("onehot", "learned"):
        model = network(embed=embed).train()
        players = NoProp().players(model)
        for name in ALL:
            before = weights(model)
            local_step(model, optimizers(model, [name]), images(12, 1, 4, 4), torch.arange(12) % 3)
            own = {id(parameter) for parameter in players[name]}
            for key, parameter in model.named_parameters():
                assert (not torch.equal(parameter, before[key])) == (id(parameter) in own), (embed, name, key)
    assert len(players["labels"]) == 3  # embedding, and weight and bias of the output layer


def test_each_player_minimises_its_part_of_the_whole_loss() -> None:
    """The same noise: the players' losses are the parts that the page adds up."""
    model = network().eval()
    shown = Batch(images(12, 1, 4, 4), torch.arange(12) % 3, torch.arange(12))
    torch.manual_seed(3)
    found = {name: float(numbers["loss"].detach()) for name, numbers in NoProp().losses(model, shown, 0)}
    assert list(found) == ALL
    parts = model.training_losses(shown.images, shown.labels)
    assert set(parts) == {"ce", "kl", "denoise"}
    total = NoProp()(model, shown)
    assert float(total["loss"].detach()) == pytest.approx(float(total["ce"] + total["kl"] + total["denoise"]), abs=1e-5)


def test_learned_embeddings_get_the_denoising_loss_too() -> None:
    model = network(embed="learned", embed_dim=2).train()
    shown = Batch(images(12, 1, 4, 4), torch.arange(12) % 3, torch.arange(12))
    torch.manual_seed(0)
    numbers = dict(NoProp(players=["labels"]).losses(model, shown, 0))["labels"]
    assert float(numbers["loss"].detach()) > float(numbers["ce"] + numbers["kl"])
    numbers["loss"].backward()
    assert model.embedding.weight.grad is not None


def test_continuous_forms_have_one_player(data: Data) -> None:
    for form in (NoPropCT(3, 1, 4, steps=3, **SMALL), NoPropFM(3, 1, 4, steps=3, **SMALL)):
        run = retinue.fit(form, NoProp(), data, max_steps=4, **SETTINGS)
        assert {"train/loss", "train/denoise", "train/ce"} <= set(run.history[0])
        assert list(NoProp().players(form)) == ["model"]


def test_a_step_keeps_what_one_block_needs_whatever_their_number() -> None:
    x, y = images(32, 1, 4, 4), torch.arange(32) % 3
    kept, chain = [], []
    for blocks in (2, 5, 10):
        model = network(blocks).train()
        kept.append({activation_bytes(lambda: model.block_loss(t, x, y), model) for t in range(1, blocks + 1)})  # noqa: B023
        chain.append(activation_bytes(lambda: F.cross_entropy(model(x), y), model))  # noqa: B023
    assert kept[0] == kept[1] == kept[2]
    assert len(kept[0]) == 1
    assert chain[2] > 1.8 * chain[1] > 3 * chain[0] / 2


def test_bytes_by_hand() -> None:
    """x * x keeps x (once), and a linear layer its input and, which does not count, its own weight."""
    x = torch.randn(10, 4, requires_grad=True)
    assert activation_bytes(lambda: (x * x).sum(), nn.Identity()) == 160
    layer = nn.Linear(4, 2)
    assert activation_bytes(lambda: layer(x).sum(), layer) == 160


# --- in the engine ---------------------------------------------------------------------------------------------------------------------


def test_digits_are_learned_and_beat_the_chain_trained_end_to_end() -> None:
    data = retinue.data.open("digits", train_images=600, test_images=300)
    top1 = {}
    for name, objective in (("noprop", NoProp()), ("chain", Supervised())):
        torch.manual_seed(0)
        model = NoPropDT(10, 1, 8, 5, widths=(), hidden=48, label_layers=1)
        run = retinue.fit(model, objective, data, max_steps=120, batch_size=64, lr=4e-3, schedule="constant", progress=False)
        top1[name] = retinue.evaluate(run.model, data.test)["top1"]
    assert top1["noprop"] > 0.85
    assert top1["noprop"] > top1["chain"]


def test_the_spread_over_draws_is_reported(data: Data) -> None:
    model = network()
    found = NoProp().evaluate(model, data.test.loader(10))
    assert {"top1", "loss", "ece", "top1_draw", "top1_spread"} <= set(found)
    states = model.eval().forward_features(data.preprocessing.normalize(data.test.images()))
    each = model.readout(states.flatten(0, 1), model.embedding.weight).unflatten(0, (24, 8)).argmax(-1)
    single = (each == data.test.labels[:, None]).float().mean(0)
    assert found["top1_draw"] == pytest.approx(float(single.mean()))
    assert found["top1_spread"] == pytest.approx(float(single.std()))
    assert NoProp().evaluate(network(samples=1), data.test.loader(10))["top1_spread"] == 0
    assert found["top1"] == retinue.evaluate(model, data.test)["top1"]


@pytest.mark.parametrize("form", ["dt", "ct", "fm"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_backbone_is_trained_stopped_and_resumed_bit_for_bit(kind: Any, form: Any, tmp_path: Path) -> None:
    data = retinue.data.open("digits", input_size=32, channels=3, train_images=24, test_images=8)
    options: dict[str, Any] = {"hidden": 12, "samples": 2, **({"num_blocks": 2} if form == "dt" else {"steps": 2})}

    def train(folder: str, steps: int) -> Any:
        torch.manual_seed(0)
        objective = NoProp(form, {**options, "embed": "learned", "embed_dim": 4})
        if steps < 3:
            follow = objective.after_step

            def stop(model: nn.Module, step: int) -> None:
                follow(model, step)
                if step == steps:
                    raise KeyboardInterrupt

            objective.after_step = stop  # type: ignore[method-assign]
        settings = {**SETTINGS, "batch_size": 6, "checkpoint_every": 1, "loggers": ("csv",), "max_steps": 3}
        return retinue.fit(tiny(kind), objective, data, run_dir=tmp_path / folder, **settings)

    train("whole", 3)
    with pytest.raises(KeyboardInterrupt):
        train("stopped", 2)
    run = train("stopped", 3)
    whole, stopped = (checkpoint.read(tmp_path / name / "checkpoints" / "step-000000003") for name in ("whole", "stopped"))
    assert same(whole.tensors, stopped.tensors)
    if kind == "bare":
        return  # a module of the user's own cannot be rebuilt from its name
    again = retinue.load(tmp_path / "whole")
    assert isinstance(again, NoPropNet)
    x = data.preprocessing.normalize(data.test.images())
    assert torch.equal(again.eval()(x), run.model.eval()(x))


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_timms_networks_see_the_image(name: str) -> None:
    small: dict[str, dict[str, Any]] = {
        "resnet18": {"layers": [1, 1, 1, 1], "channels": [4, 8, 8, 8], "stem_width": 4},
        "convnext_atto": {"dims": [4, 8, 8, 8]},
        "vit_tiny_patch16_224": {"img_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2},
    }
    data = retinue.data.open("digits", input_size=32, channels=3, train_images=24, test_images=8)
    backbone = timm.create_model(name, pretrained=False, num_classes=10, **small[name])
    before = copy.deepcopy(backbone.state_dict())
    run = retinue.fit(backbone, NoProp(options={"num_blocks": 2, "hidden": 8}), data, max_steps=1, **SETTINGS)
    moved = run.model.blocks[0].image.backbone.state_dict()
    assert all(key in before for key in moved)
    assert any(not torch.equal(moved[key], before[key]) for key in moved)


def test_soft_labels_are_learned_from() -> None:
    shown = Batch(images(6, 1, 4, 4), torch.arange(6) % 3, torch.arange(6))
    mixed = Batch(shown.images, shown.labels, shown.indices, targets=torch.full((6, 3), 1 / 3))
    model = network().eval()
    found = []
    for one in (shown, mixed):
        torch.manual_seed(0)
        found.append([float(numbers["loss"].detach()) for _, numbers in NoProp().losses(model, one, 0)])
    assert found[0] != found[1]
    torch.manual_seed(0)
    by_hand = torch.full((6, 3), 1 / 3) @ model.embedding.weight
    assert torch.allclose(model.embedding(torch.full((6, 3), 1 / 3)), by_hand)


def test_prototypes_are_chosen_among_the_training_images(data: Data) -> None:
    run = retinue.fit(network(embed="prototype", widths=(2,)), NoProp(), data, max_steps=1, **{**SETTINGS, "lr": 0.0})
    shown = data.preprocessing.normalize(data.train.images()).flatten(1)
    for number, row in enumerate(run.model.embedding.weight):
        own = shown[data.train.labels == number]
        assert (own - row).abs().amax(1).min() < 1e-6
    fewer = from_arrays(data.train.images().numpy()[:, 0], torch.arange(36) % 2, split=["train"] * 36, classes=["a", "b", "c"], name="two")
    with pytest.raises(DataError, match="class 2 has no training image, so it has no prototype"):
        retinue.fit(network(embed="prototype", widths=(2,)), NoProp(), fewer, max_steps=1, **SETTINGS)


def test_an_overflow_stops_the_training_before_it_moves_anything(data: Data) -> None:
    model = NoPropCT(3, 1, 4, steps=2, **SMALL)
    with torch.no_grad():
        model.schedule.g0.fill_(-200.0)
    before = weights(model)
    with pytest.raises(NonFiniteError, match=r"the loss became (inf|nan) at step 0, before its update"):
        retinue.fit(model, NoProp(), data, max_steps=1, **SETTINGS)
    assert same(before, weights(model))


def test_what_cannot_be_is_refused(data: Data) -> None:
    with pytest.raises(ArgumentError, match=r'^NoProp: no `form` is called "dd"\. Did you mean dt\?$'):
        NoProp("dd")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r'^NoProp: `players` is empty\. Name what is trained, such as \["block_1", "labels"\], or'):
        NoProp(players=[])
    with pytest.raises(ArgumentError, match=r'^NoProp: no player is called "block_4"\. Did you mean block_3'):
        retinue.fit(network(), NoProp(players=["block_4"]), data, max_steps=1, **SETTINGS)
    with pytest.raises(ArgumentError, match=r"^NoProp: `players` is of discrete time, whose blocks learn alone\. Leave it out\.$"):
        retinue.fit(NoPropFM(3, 1, 4, **SMALL), NoProp(players=["block_1"]), data, max_steps=1, **SETTINGS)
    with pytest.raises(ArgumentError, match=r"the network has 5 classes and rows has 3\. Build it with num_classes=3\."):
        retinue.fit(NoPropDT(5, 1, 4, 2, **SMALL), NoProp(), data, max_steps=1, **SETTINGS)
    with pytest.raises(
        ShapeError, match=r"images must be of shape \(1, 8, 8\), got \(1, 4, 4\)\. Build the network with this `input_size`"
    ):
        retinue.fit(NoPropDT(3, 1, 8, 2, **SMALL), NoProp(), data, max_steps=1, **SETTINGS)
    shown = Batch(images(2, 1, 4, 4), torch.tensor([0, 1]), torch.arange(2))
    with pytest.raises(
        ArgumentError, match=r"the model must be a NoProp network, got Sequential\. retinue\.fit builds one around any backb"
    ):
        NoProp()(nn.Sequential(nn.Flatten()), shown)
    with pytest.raises(ArgumentError, match='no player is called "block_9"'):
        local_step(network(), {"block_9": torch.optim.SGD(network().parameters())}, shown.images, shown.labels)


def test_the_same_seed_gives_the_same_losses_and_another_others() -> None:
    shown = Batch(images(12, 1, 4, 4), torch.arange(12) % 3, torch.arange(12))

    def losses(seed: int) -> list[float]:
        model = network(drop_rate=0.5, widths=(4,)).train()
        seed_all(seed, 0)
        return [float(numbers["loss"].detach()) for _, numbers in NoProp().losses(model, shown, 0)]

    assert losses(0) == losses(0)
    assert all(a != b for a, b in zip(losses(0), losses(1)))
    assert all(math.isfinite(value) for value in losses(0))
