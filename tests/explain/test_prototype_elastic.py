"""Elastic deformation: SciPy's numbers, laws of views, and what is refused."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

import retinue
from retinue import views
from retinue.errors import ArgumentError
from retinue.explain.prototype_dl import Elastic, PrototypeLoss
from retinue.explain.prototype_elastic import deform, smoothing


def keys(count: int, seed: int = 0) -> torch.Tensor:
    return views.keys(seed, 0, torch.arange(count))


def test_pixels_come_from_where_the_field_says() -> None:
    image = torch.arange(12.0).view(1, 1, 3, 4) / 20
    field = torch.zeros(1, 2, 3, 4)
    field[:, 1] = 1.0  # each pixel from its right neighbour; at the border the picture is reflected
    assert torch.allclose(deform(image, field)[0, 0], image[0, 0][:, [1, 2, 3, 3]], atol=1e-6)
    field[:, 1], field[:, 0] = 0.0, -0.5
    assert torch.allclose(deform(image, field)[0, 0, 1:], (image[0, 0, 1:] + image[0, 0, :-1]) / 2, atol=1e-6)


def test_fields_are_scipys_and_so_are_deformed_images() -> None:
    elastic = Elastic(alpha=20, sigma=4)
    image = torch.rand(1, 1, 28, 30)
    fields = elastic.fields(keys(1), 28, 30)
    noise = views_noise(28, 30)
    expected = np.stack([20 * gaussian_filter(part, 4, mode="constant", truncate=4.0) for part in noise])
    assert np.abs(fields[0].numpy() - expected).max() < 20 * 2e-4  # weights are rounded to multiples of 2^-15
    grid = np.meshgrid(np.arange(28), np.arange(30), indexing="ij")
    place = [grid[i] + fields[0, i].numpy() for i in (0, 1)]
    shown = map_coordinates(image[0, 0].numpy(), place, order=1, mode="reflect")
    assert np.abs(elastic(image, keys(1))[0, 0].numpy() - shown).max() < 1e-4


def views_noise(height: int, width: int) -> np.ndarray:
    from retinue.data.views.draws import uniform

    return (2 * uniform(keys(1), 2 * height * width).double() - 1).view(2, height, width).numpy()


def test_smoothing_keeps_the_mean_and_is_symmetric() -> None:
    matrix = smoothing(60, 4.0, torch.device("cpu")) / 2**15
    assert torch.equal(matrix, matrix.T)
    assert torch.allclose(matrix[20:40].sum(1), torch.ones(20, dtype=torch.float64), atol=1e-3)
    assert matrix[0, 17] == 0


def test_row_i_depends_on_image_i_and_key_i_alone() -> None:
    images, own = torch.randint(0, 256, (7, 3, 20, 24), dtype=torch.uint8), keys(7)
    elastic = Elastic()
    whole = elastic(images, own)
    assert whole.dtype == torch.uint8
    assert torch.equal(torch.cat([elastic(images[i : i + 1], own[i : i + 1]) for i in range(7)]), whole)
    assert not torch.equal(elastic(images, keys(7, seed=1)), whole)
    torch.manual_seed(0)
    drawn = elastic(images)
    torch.manual_seed(0)
    assert torch.equal(elastic(images), drawn)


def test_floats_and_bytes_agree_and_stay_in_range() -> None:
    images = torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8)
    bytes_, floats = Elastic()(images, keys(4)), Elastic()(images.float() / 255, keys(4))
    assert torch.allclose(bytes_.float(), 255 * floats, atol=0.51)
    assert floats.min() >= 0
    assert floats.max() <= 1


def test_the_loss_shows_training_images_deformed() -> None:
    data = retinue.data.open("digits", train_images=60, test_images=20)
    objective = PrototypeLoss(elastic=True)
    assert repr(objective.views) == "(Elastic(alpha=20, sigma=4),)"
    batch = next(data.train.loader(60, views=objective.views).batches())
    assert not torch.equal(batch.images, next(data.train.loader(60).batches()).images)
    model = retinue.create_model("prototype_dl", num_classes=10, in_chans=1, input_size=8)
    assert retinue.fit(model, objective, data, max_steps=2, batch_size=30, progress=False).steps == 2


def test_what_is_refused() -> None:
    with pytest.raises(
        ArgumentError, match=r"^Elastic: `sigma` must be above 0, got 0\. The paper has alpha 20 and sigma 4, both in pixels\.$"
    ):
        Elastic(sigma=0)
