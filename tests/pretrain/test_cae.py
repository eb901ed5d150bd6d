"""cae: its exact checks, laws on two kinds of transformer, and what it refuses."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import images, parameters, same
from torch import Tensor, nn

import retinue
from retinue.data import Batch, Data
from retinue.engine import checkpoint
from retinue.engine.modes import evaluating, train_mode
from retinue.engine.seeds import seed_all
from retinue.errors import ArgumentError, NonFiniteError, ShapeError
from retinue.models import tiny
from retinue.pretrain.cae import CAE, encode
from retinue.pretrain.cae_regressor import DecoderBlock, Regressor, RegressorBlock, rates

KINDS = ("ours", "timm")


class Codes(nn.Module):
    """A tokenizer whose codes are the places themselves, modulo their number."""

    def __init__(self, codes: int = 8, places: int = 16) -> None:
        super().__init__()
        self.codes, self.places = codes, places

    def forward(self, x: Tensor) -> Tensor:
        return torch.arange(self.places).repeat(len(x), 1) % self.codes


def encoder(kind: str = "ours", **changes: Any) -> Any:
    torch.manual_seed(0)
    options = {"num_classes": 3, "input_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, **changes}
    return retinue.create_model("cae_vit" if kind == "ours" else "timm:vit_tiny_patch16_224", **options)


def objective_of(model: nn.Module, **changes: Any) -> CAE:
    torch.manual_seed(1)
    options: dict[str, Any] = {"tokenizer": Codes(), "mask": "random", "regressor_depth": 2, "decoder_depth": 1}
    return CAE(model, **{**options, **changes})


def digits() -> Data:
    return retinue.data.open("digits", input_size=16, channels=3, train_images=120, test_images=20)


def masks(objective: CAE, count: int = 2, seed: int = 0) -> Tensor:
    return objective.mask(torch.arange(count) + 10 * seed)


def pixels_of(mask: Tensor) -> Tensor:
    return mask.view(-1, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.mark.parametrize(
    ("variant", "width", "beside", "between", "total"),
    [
        ("small", 768, 63_024_128, 297_216, 84_916_736),
        ("base", 768, 63_024_128, 0, 148_681_472),
        ("large", 1024, 109_195_264, 0, 412_320_768),
    ],
)
def test_all_parts_have_the_papers_numbers_of_parameters(variant: str, width: int, beside: int, between: int, total: int) -> None:
    with torch.device("meta"):
        model = retinue.create_model(f"cae_{variant}_patch16_224", num_classes=0)
        objective = CAE(model, tokenizer=Codes(8192, 196), mask="random", decoder_width=width)
    token = width  # which the table of the paper's counts has in the total alone
    assert parameters(objective.regressor) + parameters(objective.decoder) - token == beside
    assert parameters(objective.project) == between
    assert parameters(model) + parameters(objective) == total
    assert objective.regressor.blocks[0].attn.num_heads == width // 64


def test_shapes_of_the_base_network() -> None:
    """98 of 196 patches, 8192 codes; a narrow encoder, since widths of the base network change nothing in them."""
    model = retinue.create_model("cae_vit", num_classes=0, embed_dim=16, depth=1, num_heads=2)
    objective = CAE(model, tokenizer=Codes(8192, 196), decoder_depth=1, regressor_depth=1)
    x = images(2, 3, 224, 224)
    out = objective.loss(model, x, objective.targets(x), masks(objective))
    assert out["logits"].shape == (2 * 98, 8192)
    assert out["latent_pred"].shape == out["latent_target"].shape == (2, 98, 16)


def test_a_head_of_zeros_pays_log_8192() -> None:
    model = encoder()
    objective = objective_of(model, tokenizer=Codes(8192))
    nn.init.zeros_(objective.decoder.head.weight)
    x = images(2, 3, 16, 16)
    assert objective.loss(model, x, objective.targets(x), masks(objective))["loss_main"].item() == pytest.approx(9.01091335, abs=2e-6)


def test_the_loss_is_the_sum_of_its_parts_worked_out_by_hand() -> None:
    model = encoder()
    objective = objective_of(model, align_weight=3.0)
    x = images(2, 3, 16, 16)
    mask = masks(objective)
    out = objective.loss(model, x, objective.targets(x), mask)
    asked = (torch.arange(16).repeat(2, 1) % 8)[mask]
    assert torch.equal(out["asked"], asked)
    main = -out["logits"].log_softmax(-1)[torch.arange(16), asked].mean()
    align = (out["latent_pred"] - out["latent_target"]).square().sum() / (2 * 8 * 16)
    torch.testing.assert_close(out["loss_main"], main)
    torch.testing.assert_close(out["loss_align"], align)
    torch.testing.assert_close(out["loss"], main + 3 * align)


def test_without_weight_the_alignment_is_reported_and_not_learned() -> None:
    model = encoder()
    objective = objective_of(model, align_weight=0.0)
    x = images(2, 3, 16, 16)
    out = objective.loss(model, x, objective.targets(x), masks(objective))
    assert out["loss"].item() == out["loss_main"].item()
    assert out["loss_align"].item() > 0


def test_a_perfect_guess_has_no_alignment_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder()
    objective = objective_of(model)
    x, mask = images(2, 3, 16, 16), masks(objective_of(model))
    truth = objective.loss(model, x, objective.targets(x), mask)["latent_target"]
    monkeypatch.setattr(objective.regressor, "forward", lambda *_: truth)
    assert objective.loss(model, x, objective.targets(x), mask)["loss_align"] == 0


def test_the_target_is_the_encoder_run_on_the_hidden_patches_alone() -> None:
    model = encoder().eval()
    objective = objective_of(model).eval()
    x, mask = images(2, 3, 16, 16), masks(objective_of(model))
    target = objective.loss(model, x, objective.targets(x), mask)["latent_target"]
    with torch.no_grad():
        for i in range(2):
            tokens = model._pos_embed(model.patch_embed(x[i : i + 1]))
            kept = torch.cat([tokens[:, :1], tokens[:, 1:][:, mask[i]]], dim=1)
            by_hand = model.norm(model.blocks(kept))[:, 1:]
            torch.testing.assert_close(target[i : i + 1], by_hand, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_all_patches_in_their_order_give_forward_features(kind: str) -> None:
    model = encoder(kind).eval()
    x = images(2, 3, 16, 16)
    every = torch.arange(16).repeat(2, 1)
    torch.testing.assert_close(encode(model, x, every), model.forward_features(x), rtol=0, atol=1e-6)
    model.set_grad_checkpointing()
    torch.testing.assert_close(encode(model.train(), x, every), model.forward_features(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_pixels_reach_the_target_alone_and_visible_ones_never_do(kind: str) -> None:
    model = encoder(kind).eval()
    objective = objective_of(model).eval()
    x, mask = images(2, 3, 16, 16), masks(objective_of(model))
    noise = images(2, 3, 16, 16, seed=1)
    before = objective.loss(model, x, objective.targets(x), mask)
    for hidden, changes, stays in (
        (mask, ("latent_target",), ("latent_pred", "logits", "loss_main")),
        (~mask, ("latent_pred", "logits"), ("latent_target",)),
    ):
        after = objective.loss(model, torch.where(pixels_of(hidden), noise, x), objective.targets(x), mask)
        assert all(torch.equal(before[name], after[name]) for name in stays)
        assert all(not torch.equal(before[name], after[name]) for name in changes)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
def test_the_order_of_visible_patches_does_not_matter(seed: int) -> None:
    torch.manual_seed(seed)
    regressor = Regressor(16, 2, 2).eval()
    nn.init.normal_(regressor.mask_token)
    visible, places, hidden = torch.randn(2, 6, 16), torch.randn(2, 6, 16), torch.randn(2, 5, 16)
    order = torch.randperm(6)
    torch.testing.assert_close(
        regressor(visible[:, order], places[:, order], hidden), regressor(visible, places, hidden), rtol=0, atol=1e-5
    )


def test_a_regressors_block_by_hand() -> None:
    """norm2 replaces what it normalises, and positions enter queries and keys but not values."""
    block = RegressorBlock(8, 2, init_values=0.5).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    queries, visible, asked, places = images(1, 3, 8), images(1, 4, 8, seed=1), images(1, 3, 8, seed=2), images(1, 7, 8, seed=3)
    context = torch.cat([visible, queries], 1)
    attention = block.attn(block.norm_q(queries + asked), block.norm_k(context + places), block.norm_v(context))
    x = block.norm2(queries + attention * block.ls1.gamma)
    torch.testing.assert_close(block(queries, visible, asked, places), x + block.mlp(x) * block.ls2.gamma)
    # values do not move with the positions: were attention equal everywhere, they would not matter
    nn.init.zeros_(block.attn.q.weight)
    nn.init.zeros_(block.attn.q_bias)
    torch.testing.assert_close(block(queries, visible, asked, places), block(queries, visible, asked, 5 * places))


def test_layer_scale_can_be_left_out() -> None:
    scaled, plain = DecoderBlock(8, 2, init_values=1.0), DecoderBlock(8, 2, init_values=None)
    plain.load_state_dict({name: tensor for name, tensor in scaled.state_dict().items() if "gamma" not in name})
    x = images(1, 3, 8)
    assert torch.equal(scaled(x), plain(x))
    assert parameters(scaled) - parameters(plain) == 16


def test_the_decoder_never_sees_a_visible_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder().eval()
    objective = objective_of(model).eval()
    x, mask = images(2, 3, 16, 16), masks(objective_of(model))
    guess = images(2, 8, 16, seed=5)
    monkeypatch.setattr(objective.regressor, "forward", lambda *_: guess)
    other = torch.where(pixels_of(mask), x, images(2, 3, 16, 16, seed=1))
    logits = [objective.loss(model, shown, objective.targets(x), mask)["logits"] for shown in (x, other)]
    assert torch.equal(*logits)


@pytest.mark.parametrize("target", ["shared", "momentum"])
def test_gradients_reach_what_they_should(target: str) -> None:
    model = encoder(num_classes=0)
    objective = objective_of(model, target=target, decoder_width=32, decoder_heads=2)
    nn.init.normal_(objective.decoder.head.bias)
    x, mask = images(2, 3, 16, 16), masks(objective_of(model))
    out = objective.loss(model, x, objective.targets(x), mask)
    assert not out["latent_target"].requires_grad
    out["loss_align"].backward(retain_graph=True)
    assert all(p.grad is None for p in objective.decoder.parameters())
    assert all(p.grad is not None for p in objective.regressor.parameters())
    for part in (model, objective):
        part.zero_grad(set_to_none=True)
    out["loss_main"].backward()
    learns = {name for part in (model, objective) for name, p in part.named_parameters() if p.requires_grad and p.grad is None}
    assert learns == set()
    if target == "momentum":
        assert all(p.grad is None and not p.requires_grad for p in objective.teacher.parameters())


def test_the_alignments_gradient_is_that_of_a_constant_target() -> None:
    model = encoder(num_classes=0).eval()
    objective = objective_of(model).eval()
    x, mask = images(2, 3, 16, 16), masks(objective_of(model))
    shared = torch.autograd.grad(
        objective.loss(model, x, objective.targets(x), mask)["loss_align"], list(model.parameters()), allow_unused=True
    )
    twin = objective_of(model, target="momentum").eval()  # a copy, whose parameters are others
    twin.regressor.load_state_dict(objective.regressor.state_dict())
    copied = torch.autograd.grad(twin.loss(model, x, twin.targets(x), mask)["loss_align"], list(model.parameters()), allow_unused=True)
    assert same(list(shared), list(copied))


def test_a_copy_without_momentum_is_the_encoder_itself() -> None:
    losses = []
    for target in ("shared", "momentum"):
        model = encoder()
        objective = objective_of(model, target=target, momentum=0.0)
        run = retinue.fit(model, objective, digits(), max_steps=4, batch_size=8, log_every=1, progress=False)
        losses.append([row["train/loss"] for row in run.history if "train/loss" in row])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_the_copy_follows_after_the_update() -> None:
    model = encoder()
    objective = objective_of(model, target="momentum", momentum=0.75)
    old = copy.deepcopy(objective.teacher.state_dict())
    retinue.fit(model, objective, digits(), max_steps=1, batch_size=8, lr=0.01, schedule="constant", progress=False)
    for name, tensor in objective.teacher.state_dict().items():
        torch.testing.assert_close(tensor, 0.75 * old[name] + 0.25 * model.state_dict()[name])
    assert not objective.teacher.training
    assert "head.weight" not in objective.teacher.state_dict()


def test_held_out_images_have_the_same_masks_each_time_and_training_images_others() -> None:
    model = encoder()
    objective = objective_of(model)
    batch = Batch(images(4, 3, 16, 16), torch.zeros(4, dtype=torch.int64), torch.arange(4))

    def loss() -> float:
        return objective(model, batch)["loss_main"].item()

    with evaluating(model, objective):
        assert loss() == loss()
    train_mode(objective)
    assert loss() != loss()


def test_numbers_of_a_batch_are_means_over_its_hidden_patches() -> None:
    model = encoder().eval()
    objective = objective_of(model).eval()
    batch = Batch(images(4, 3, 16, 16), torch.zeros(4, dtype=torch.int64), torch.arange(4))
    numbers = objective(model, batch)
    out = objective.loss(model, batch.images, objective.targets(batch.images), objective.mask(retinue.views.keys(0, 0, batch.indices)))
    assert numbers["token_accuracy"] == (out["logits"].argmax(1) == out["asked"]).float().mean()
    torch.testing.assert_close(numbers["target_variance"], out["latent_target"].reshape(32, 16).var(0, correction=0).mean())


def test_pixels_as_targets_are_normalised_patch_by_patch() -> None:
    model = encoder()
    objective = objective_of(model, tokenizer="pixels")
    x, mask = images(2, 3, 16, 16), masks(objective_of(model))
    out = objective.loss(model, x, objective.targets(x), mask)
    patch = x[0, :, 4:8, 8:12].flatten()  # row 1, column 2
    wanted = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
    torch.testing.assert_close(objective.targets(x)[0, 6], wanted)
    torch.testing.assert_close(out["loss_main"], (out["logits"] - objective.targets(x)[mask]).square().mean())
    assert "token_accuracy" not in objective(model, Batch(x, torch.zeros(2, dtype=torch.int64), torch.arange(2)))


@pytest.mark.parametrize(
    "backbone", ["ours", "timm", "tiny", "test_vit", "vit_tiny_patch16_224:reg_tokens=2,class_token=False,global_pool=avg"]
)
def test_the_objective_pretrains_vision_transformers(backbone: str) -> None:
    side = 32 if backbone in ("tiny", "test_vit") else 16
    data = retinue.data.open("digits", input_size=side, channels=3, train_images=60, test_images=20)
    if backbone in KINDS:
        model = encoder(backbone)
    elif backbone == "tiny":
        model = tiny("timm_vit")
    elif ":" in backbone:
        options = {
            "reg_tokens": 2,
            "class_token": False,
            "global_pool": "avg",
            "embed_dim": 16,
            "depth": 1,
            "num_heads": 2,
            "patch_size": 4,
        }
        model = retinue.create_model("timm:vit_tiny_patch16_224", num_classes=0, input_size=side, **options)
    else:
        model = retinue.create_model(f"timm:{backbone}", num_classes=0, input_size=side)
    keys = list(model.state_dict())
    objective = CAE(model, data, tokenizer_args={"codes": 8}, regressor_depth=1, decoder_depth=1)
    run = retinue.fit(model, objective, data, max_steps=2, batch_size=8, progress=False)
    assert math.isfinite(run.metrics["loss"])
    assert list(run.model.state_dict()) == keys


def trained(target: str, folder: Path, steps: int, **changes: Any) -> retinue.engine.Run:
    model = encoder(drop_path_rate=0.2)
    objective = CAE(model, digits(), tokenizer_args={"codes": 8}, regressor_depth=1, decoder_depth=1, target=target, drop_path_rate=0.1)  # type: ignore[arg-type]
    follow = objective.after_step

    def after_step(model: nn.Module, step: int) -> None:
        follow(model, step)
        if step == steps:
            raise KeyboardInterrupt

    objective.after_step = after_step  # type: ignore[method-assign]
    settings: dict[str, Any] = {"max_steps": 5, "batch_size": 8, "checkpoint_every": 2, "log_every": 1, "progress": False}
    return retinue.fit(model, objective, digits(), run_dir=folder, **{**settings, **changes})


@pytest.mark.parametrize("target", ["shared", "momentum"])
def test_stopped_and_resumed_is_uninterrupted_bit_for_bit(target: str, tmp_path: Path) -> None:
    trained(target, tmp_path / "whole", -1)
    with pytest.raises(KeyboardInterrupt):
        trained(target, tmp_path / "stopped", 3)
    trained(target, tmp_path / "stopped", -1)
    whole, stopped = (checkpoint.read(tmp_path / name / "checkpoints" / "step-000000005") for name in ("whole", "stopped"))
    assert same(whole.tensors, stopped.tensors)
    assert whole.training is not None
    assert stopped.training is not None
    assert same(whole.training["objective"], stopped.training["objective"])
    assert (tmp_path / "whole" / "metrics.csv").read_bytes() == (tmp_path / "stopped" / "metrics.csv").read_bytes()
    assert not any(name.startswith(("teacher", "decoder")) for name in whole.tensors)
    assert isinstance(retinue.load(tmp_path / "whole"), type(encoder()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_moves_its_own_parameters_and_the_seed_rules_the_loss(kind: str) -> None:
    losses = []
    for seed in (0, 0, 1):
        model = encoder(kind)
        objective = objective_of(model, target="momentum")
        before = {id(p): p.detach().clone() for p in (*model.parameters(), *objective.parameters())}
        owned = {id(p) for p in objective.players(model)["model"]}
        run = retinue.fit(
            model, objective, digits(), max_steps=1, batch_size=8, lr=0.01, schedule="constant", log_every=1, seed=seed, progress=False
        )
        moved = {id(p) for p in (*model.parameters(), *objective.parameters()) if not torch.equal(p, before[id(p)])}
        copies = {id(p) for p in objective.teacher.parameters()}
        assert moved - copies <= owned
        assert not copies & owned
        losses.append([row["train/loss"] for row in run.history if "train/loss" in row])
    assert losses[0] == losses[1] != losses[2]


def test_a_small_network_learns_where_its_patches_are() -> None:
    """The tokens are places, which the decoder is told: an exact answer exists."""
    model = encoder(init_values=None)
    objective = objective_of(model, tokenizer=Codes(16), init_values=None)
    batch = Batch(images(8, 3, 16, 16), torch.zeros(8, dtype=torch.int64), torch.arange(8))
    optimizer = torch.optim.Adam([*model.parameters(), *objective.parameters()], lr=3e-3)
    seed_all(0)
    for _ in range(120):
        numbers = objective(model, batch)
        optimizer.zero_grad()
        numbers["loss"].backward()
        optimizer.step()
    assert numbers["token_accuracy"] > 0.9
    assert numbers["loss_align"] < numbers["target_variance"]


@pytest.mark.parametrize("kind", ["ours", "timm_cnn", "bare"])
def test_a_convolutional_backbone_is_refused_with_the_way_out(kind: Any) -> None:
    with pytest.raises(
        ArgumentError, match=r"must be a plain vision transformer, whose hidden patches can be left out, got \w+\. Take one of ours"
    ):
        CAE(tiny(kind), tokenizer="pixels")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"align_weight": -1.0}, r"`align_weight` must be 0 or more, got -1\.0"),
        ({"target": "teacher"}, r'no `target` is called "teacher"\. There is momentum, shared'),
        ({"momentum": 1.5}, r"`momentum` must lie in \[0, 1\], got 1\.5"),
        ({"init": "zeros"}, r'no `init` is called "zeros"'),
        ({"mask": "blocks"}, r'no `mask` is called "blocks"\. Did you mean block'),
        ({"mask": "random", "mask_args": {"min_area": 2}}, r"the masks \"random\" do not take \['min_area'\]"),
        ({"mask": lambda keys: keys, "masked": 3}, r"`masked` and `mask_args` are options of masks that are named"),
        ({"masked": 16}, r"less than all 16 patches, got 16"),
        ({"tokenizer": "kmeans"}, r'no tokenizer is called "kmeans"\. Did you mean patch-kmeans'),
        ({"tokenizer": "patch-kmeans"}, r"is trained on images: give them, CAE\(model, data\)"),
        ({"tokenizer": "pixels", "tokenizer_args": {"codes": 3}}, r"`tokenizer_args` are options of a tokenizer that is trained here"),
        ({"decoder_depth": 0}, r"at least one block each, got 0\. The paper has 4 and 4"),
        ({"drop_path_rate": 1.0}, r"`drop_path_rate` must lie in \[0, 1\), got 1\.0"),
        ({"decoder_width": 18}, r"a multiple of 4, got 18"),
        ({"decoder_width": 20, "decoder_heads": 3}, r"a multiple of the number of heads, got 20 and 3"),
    ],
)
def test_arguments_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        objective_of(encoder(), **options)
    assert rates(0.1, 1) == [0.0]


def test_masks_and_tokens_that_do_not_fit_are_refused() -> None:
    model = encoder()
    objective = objective_of(model)
    x, mask = images(2, 3, 16, 16), masks(objective_of(model))
    tokens = objective.targets(x)
    with pytest.raises(ShapeError, match=r"`mask` must be a boolean tensor of shape \(2, 16\), .* got torch\.float32 of shape \(2, 16\)"):
        objective.loss(model, x, tokens, mask.float())
    with pytest.raises(ShapeError, match=r"of shape \(2, 16\), .* got torch\.bool of shape \(2, 15\)"):
        objective.loss(model, x, tokens, mask[:, 1:])
    for nothing in (mask & False, mask | True):
        with pytest.raises(ArgumentError, match=rf"at least 1 and less than all 16 patches must be hidden, got {int(nothing[0].sum())}"):
            objective.loss(model, x, tokens, nothing)
    uneven = mask.clone()
    uneven[0] = torch.arange(16) < 3
    with pytest.raises(ShapeError, match=r"as many hidden patches, got \d+ to \d+"):
        objective.loss(model, x, tokens, uneven)
    with pytest.raises(ArgumentError, match=r"tokens must be whole numbers from 0 to 7, got torch\.int64 from 1 to 8"):
        objective.loss(model, x, tokens + 1, mask)
    with pytest.raises(ArgumentError, match=r"whole numbers from 0 to 7, got torch\.float32 from 0\.0 to 7\.0"):
        objective.loss(model, x, tokens.float(), mask)
    with pytest.raises(ShapeError, match=r"one token for each of 4x4 patches, got a shape of \(2, 15\)\. Its stride"):
        objective.loss(model, x, tokens[:, 1:], mask)


def test_what_does_not_fit_is_refused_before_training() -> None:
    data = digits()
    model = encoder()
    with pytest.raises(ShapeError, match=r"one token for each of 4x4 patches, got a shape of \(2, 64\)"):
        retinue.fit(model, objective_of(model, tokenizer=Codes(8, 64)), data, max_steps=1, progress=False)
    with pytest.raises(ArgumentError, match=r"the objective was made for 4x4 patches\. Make it anew"):
        retinue.fit(encoder(patch_size=2), objective_of(model), data, max_steps=1, progress=False)
    larger = retinue.data.open("digits", input_size=32, channels=3, train_images=60, test_images=20)
    with pytest.raises(ShapeError, match=r"built for images of 16x16 px, got 32x32\. Build it with input_size=\(32, 32\)"):
        retinue.fit(model, objective_of(model), larger, max_steps=1, progress=False)


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    model = encoder()
    objective = objective_of(model)
    nn.init.constant_(objective.decoder.head.bias, math.nan)
    with pytest.raises(NonFiniteError, match=r"the loss became nan at step 0"):
        retinue.fit(model, objective, digits(), max_steps=1, progress=False)
