"""cae: tokenizers number patches in the order of the encoder's, whatever they are: k-means, a small autoencoder, somebody else's."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import images
from torch import Tensor, nn

import retinue
from retinue.data import Data
from retinue.errors import ArgumentError, ShapeError
from retinue.pretrain.cae import CAE
from retinue.pretrain.cae_dvae import DVAE, DVAETraining, temperature, train_dvae
from retinue.pretrain.cae_released import PluggedTokenizer, lanczos, squeeze_pixels
from retinue.pretrain.cae_tokenizers import PatchKMeans, make_tokenizer, normalised_patches, patches


def digits(**changes: Any) -> Data:
    return retinue.data.open("digits", **{"input_size": 16, "channels": 3, "train_images": 120, "test_images": 20, **changes})


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), height=st.integers(1, 3), width=st.integers(1, 3))
def test_patches_come_in_the_order_of_a_convolution(rows: int, columns: int, height: int, width: int) -> None:
    x = images(2, 3, rows * height, columns * width)
    cut = patches(x, (height, width))
    assert torch.equal(cut, nn.functional.unfold(x, (height, width), stride=(height, width)).transpose(1, 2))


def test_normalised_patches_have_mean_0_and_variance_1() -> None:
    cut = normalised_patches(5 + 3 * images(2, 3, 8, 8), (4, 4))
    torch.testing.assert_close(cut.mean(-1), torch.zeros(2, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(cut.var(-1), torch.ones(2, 4), rtol=0, atol=1e-5)
    assert torch.equal(normalised_patches(torch.full((1, 3, 4, 4), 2.0), (4, 4)), torch.zeros(1, 1, 48))
    assert torch.equal(normalised_patches(images(1, 1, 2, 2), (1, 1)), torch.zeros(1, 4, 1))


def test_the_nearest_centre_is_the_token() -> None:
    tokenizer = PatchKMeans(torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 0.0]]), (2, 2), contrast=False)
    x = torch.tensor([[0.9, 0.9, 0.1, 0.2], [0.9, 0.9, 0.0, 0.1], [0.8, 0.1, 0.4, 0.4], [0.9, 0.0, 0.4, 0.4]]).view(1, 1, 4, 4)
    assert tokenizer(x).tolist() == [[1, 0, 2, 0]]


def test_k_means_finds_patterns_that_are_there_and_repeats_itself() -> None:
    patterns = images(4, 1, 2, 2)
    places = torch.randint(4, (50, 9))
    x = torch.stack([nn.functional.fold(patterns[row].view(9, 4).T[None], (6, 6), (2, 2), stride=2)[0] for row in places])
    tokenizer = PatchKMeans.fit(x, (2, 2), codes=4, contrast=False)
    found = tokenizer(x)
    assert len({(int(a), int(b)) for a, b in zip(found.flatten(), places.flatten())}) == 4  # one number for each pattern
    assert torch.equal(PatchKMeans.fit(x, (2, 2), codes=4, contrast=False).centres, tokenizer.centres)


def test_contrast_and_brightness_change_no_token() -> None:
    x = images(20, 3, 8, 8)
    tokenizer = PatchKMeans.fit(x, (4, 4), codes=8)
    assert (tokenizer(x) == tokenizer(3 + 2 * x)).float().mean() > 0.97  # but for what keeps flat patches flat
    assert (PatchKMeans.fit(x, (4, 4), codes=8, contrast=False)(x) != PatchKMeans.fit(x, (4, 4), codes=8, contrast=False)(3 + 2 * x)).any()


def test_tokens_are_those_of_the_training_images() -> None:
    data = digits()
    tokenizer = make_tokenizer("patch-kmeans", data, (4, 4), {"codes": 8, "contrast": False})
    batch = next(iter(data.train.loader(120).batches()))
    tokens = tokenizer(batch.images)
    assert tokens.shape == (120, 16)
    assert tokens.unique().tolist() == list(range(8))


def test_scores_of_equal_size_are_spread_evenly_and_an_exact_decoder_makes_no_error() -> None:
    model = DVAE(4, (2, 2), 1, hidden=8)
    nn.init.zeros_(model.encoder[-1].weight)
    nn.init.zeros_(model.encoder[-1].bias)  # type: ignore[arg-type]
    objective = DVAETraining(10, kl_weight=1.0).eval()
    x = images(2, 1, 4, 4)
    shares = torch.zeros(2, 4, 2, 2)
    shares[:, 0] = 1
    batch = retinue.data.Batch(x, torch.zeros(2, dtype=torch.int64), torch.arange(2))
    numbers = objective(model, batch)
    assert numbers["kl"].item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(numbers["error"], (model.reconstruct(shares) - x).square().mean())
    with torch.no_grad():
        model.encoder[-1].bias[2] = 50.0  # type: ignore[index]
    assert objective(model, batch)["kl"].item() == pytest.approx(math.log(4), abs=1e-5)
    assert (model(x) == 2).all()


def test_the_temperature_falls_along_a_cosine() -> None:
    assert [temperature(step, 4) for step in (0, 2, 4, 9)] == pytest.approx([1.0, (1 + 1 / 16) / 2, 1 / 16, 1 / 16])


def test_a_trained_autoencoder_reconstructs_and_uses_its_codes() -> None:
    data = digits(train_images=300, input_size=8, channels=1)
    x = next(iter(data.test.loader(20).batches())).images
    model = train_dvae(data, (2, 2), codes=16, hidden=16, steps=150, lr=1e-2)
    tokens = model(x)
    shares = nn.functional.one_hot(tokens, 16).view(-1, 4, 4, 16).permute(0, 3, 1, 2).float()
    error = (model.reconstruct(shares) - x).square().mean() / x.var()
    assert error < 0.5
    assert len(tokens.unique()) > 3
    assert not hasattr(model, "classes")
    twice = [train_dvae(data, (2, 2), codes=16, hidden=16, steps=3).state_dict() for _ in range(2)]
    assert all(torch.equal(tensor, twice[1][name]) for name, tensor in twice[0].items())


def test_the_trained_autoencoder_is_frozen_in_the_objective() -> None:
    model = retinue.create_model("cae_vit", num_classes=0, input_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2)
    objective = CAE(
        model, digits(), tokenizer="dvae", tokenizer_args={"codes": 8, "steps": 2, "hidden": 8}, decoder_depth=1, regressor_depth=1
    )
    before = {name: tensor.clone() for name, tensor in objective.tokenizer.state_dict().items()}
    retinue.fit(model, objective, digits(), max_steps=2, batch_size=8, progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in objective.tokenizer.state_dict().items())
    assert not any(p.requires_grad for p in objective.tokenizer.parameters())
    assert not objective.train().tokenizer.training


class Eighths(nn.Module):
    """Stands for the published encoder: stride 8, and scores that prefer the code of the mean of each cell."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        means = nn.functional.avg_pool2d(x.mean(1, keepdim=True), 8)
        return -(means - torch.linspace(0.1, 0.9, 5).view(1, 5, 1, 1)).square()


def test_a_plugged_tokenizer_sees_half_the_side_and_squeezed_pixels() -> None:
    data = digits(input_size=32)
    network = Eighths()
    tokenizer = PluggedTokenizer(network, 5, data, input_size=16)
    x = data.preprocessing.normalize(torch.ones(2, 3, 32, 32) * torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
    assert tokenizer(x).tolist() == [[0] * 4, [4] * 4]
    torch.testing.assert_close(network.seen[:, 0, 0, 0], torch.tensor([0.1, 0.9]))
    assert network.seen.shape == (2, 3, 16, 16)
    model = retinue.create_model("cae_vit", num_classes=0, input_size=32, patch_size=16, embed_dim=16, depth=1, num_heads=2)
    objective = CAE(model, data, tokenizer=tokenizer, mask="random", decoder_depth=1, regressor_depth=1)
    assert math.isfinite(retinue.fit(model, objective, data, max_steps=1, batch_size=8, progress=False).metrics["loss"])


def test_plugged_networks_may_return_codes() -> None:
    class Codes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(len(x), 2, 2, dtype=torch.int64)

    assert PluggedTokenizer(Codes(), 2, digits(), input_size=None)(images(3, 3, 16, 16)).tolist() == [[1] * 4] * 3


@settings(max_examples=20, deadline=None)
@given(old=st.integers(5, 40), new=st.integers(2, 40), seed=st.integers(0, 99))
def test_lanczos_is_pillows(old: int, new: int, seed: int) -> None:
    x = images(1, 1, old, 7, seed=seed)
    theirs = np.asarray(Image.fromarray(x[0, 0].numpy(), mode=None).resize((5, new), Image.Resampling.LANCZOS))
    torch.testing.assert_close(lanczos(x, (new, 5))[0, 0], torch.from_numpy(theirs.copy()), rtol=0, atol=2e-5)
    torch.testing.assert_close(lanczos(torch.ones(1, 1, old, old), (new, new)), torch.ones(1, 1, new, new), rtol=0, atol=1e-5)


def test_pixels_are_squeezed_into_the_middle() -> None:
    assert squeeze_pixels(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)).flatten().tolist() == pytest.approx([0.1, 0.9])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("patch-kmeans", {"codes": 1}, r"`codes` must lie between 2 and the number of patches, 1920, got 1"),
        ("patch-kmeans", {"codes": 5000}, r"the number of patches, 1920, got 5000"),
        ("patch-kmeans", {"code": 5}, r"the tokenizer \"patch-kmeans\" does not take \['code'\]"),
        ("dvae", {"codes": 1}, r"dvae: `codes` must be at least 2, got 1"),
        ("dvae", {"kl_weight": -1.0}, r"`steps` must be at least 1 and `kl_weight` 0 or more, got 300 and -1\.0"),
        ("dvae", {"contrast": True}, r"the tokenizer \"dvae\" does not take \['contrast'\]"),
    ],
)
def test_options_that_cannot_be_are_refused(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make_tokenizer(kind, digits(val_fraction=0.0), (4, 4), options)


def test_images_that_do_not_fall_into_patches_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"images of 6x8 px cannot be cut into patches of 4x4\. Choose sides that divide"):
        patches(torch.zeros(1, 3, 6, 8), (4, 4))
    with pytest.raises(ShapeError, match=r"dvae: images of 6x8 px cannot be cut into patches of 4x4"):
        DVAE(4, (4, 4))(torch.zeros(1, 3, 6, 8))
    with pytest.raises(
        ShapeError, match=r"must return scores \(batch, 7, rows, columns\) or whole numbers \(batch, places\), got torch\.float32"
    ):
        PluggedTokenizer(Eighths(), 7, digits(), input_size=None)(images(2, 3, 16, 16))
