"""Rendering, colours and pasting of fractals: exact checks, peers, laws, and what is refused."""

import colorsys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.errors import ArgumentError
from retinue.pretrain.fractal_colors import backgrounds, blur, colorize, composite, diamond_square, eightfold, hsv_to_rgb, paste, resize
from retinue.pretrain.fractal_render import compose, draw_patch, render_batch, render_ifs
from retinue.pretrain.fractal_systems import iterate_ifs, probabilities, sample_ifs

SIERPINSKI = np.array([[[0.5, 0, x], [0, 0.5, y]] for x, y in ((0, 0), (0.5, 0), (0.25, 0.5))])
SQUARE = np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 1.0]])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_points_fall_into_the_pixels_of_the_formula() -> None:
    expected = np.zeros((8, 8))
    expected[0, 0], expected[7, 7], expected[0, 7] = 0.5, 1, 0.5  # the first coordinate is the row
    assert np.array_equal(render_ifs(SQUARE, 8), expected)
    assert np.array_equal(render_ifs(SQUARE, 8, binary=True), expected > 0)


def test_points_outside_the_region_are_left_out() -> None:
    grey = render_ifs(np.array([[-0.05, 0.5], [0.5, 0.5], [1.2, 0.5], [0.5, 9.0]]), 9, region=(0, 0, 1, 1))
    assert np.argwhere(grey).tolist() == [[4, 4]]
    assert not render_ifs(SQUARE, 8, region=(5, 5, 6, 6)).any()


def test_a_patch_paints_the_neighbours_of_every_point() -> None:
    patch = np.zeros((3, 3), dtype=bool)
    patch[0, 1] = patch[1, 2] = True  # the pixel above and the one to the right
    grey = render_ifs(np.array([[0.5, 0.5], [0.0, 0.0], [1.0, 1.0]]), 9, patch=patch)
    assert np.argwhere(grey).tolist() == [[0, 1], [3, 4], [4, 5], [7, 8]]


def test_a_drawn_patch_is_never_empty() -> None:
    patches = np.stack([draw_patch(rng(seed)) for seed in range(600)])
    assert patches.any((1, 2)).all()
    np.testing.assert_allclose(patches.mean(0), 0.5, atol=0.08)


@settings(max_examples=20)
@given(st.integers(0, 99), st.floats(-5, 5), st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_pictures_do_not_move_or_grow_with_the_points(seed: int, shift: float, scale: float) -> None:
    points = rng(seed).integers(0, 64, (200, 2)) / 8.0
    grey = render_ifs(points, 16)
    assert grey.max() == 1
    assert np.array_equal(render_ifs(scale * points, 16), grey)
    assert np.array_equal(render_ifs(points + round(shift * 8) / 8, 16), grey)


def test_the_words_of_a_system_keep_its_mean() -> None:
    systems = np.stack([sample_ifs(3, rng=rng(seed)) for seed in range(5)])
    words, shares = compose(systems, 100)
    assert words.shape[1] == shares.shape[1] >= 100
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-12)
    for system, own, share in zip(systems, words, shares):
        weighted = (probabilities(system)[:, None, None] * system).sum(0)
        mean = np.linalg.solve(np.eye(2) - weighted[:, :2], weighted[:, 2])  # of the measure: m = sum p (A m + b)
        np.testing.assert_allclose((share[:, None] * (own[:, :, :2] @ mean + own[:, :, 2])).sum(0), mean, atol=1e-12)


def test_words_are_all_different_and_the_likeliest_have_grown() -> None:
    words, shares = compose(SIERPINSKI[None], 27)
    assert len(np.unique(words[0].reshape(-1, 6).round(12), axis=0)) == words.shape[1]
    depths = np.log(shares[0]) / np.log(1 / 3)
    np.testing.assert_allclose(depths, depths.round(), atol=1e-9)
    assert np.ptp(depths.round()) <= 1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_batch_renderer_shows_what_the_chaos_game_shows(seed: int) -> None:
    system = sample_ifs(3, rng=rng(seed))
    chaos = render_ifs(iterate_ifs(system, 200_000, rng(0)), 16)
    ours = np.mean([render_batch([system], [rng(i)], 16, 20_000, window=False, patch=False)[0] for i in range(10)], axis=0)
    chaos, ours = chaos / chaos.sum(), ours / ours.sum()
    other = render_ifs(iterate_ifs(system, 20_000, rng(1)), 16)
    noise = abs(chaos - other / other.sum()).sum()
    assert abs(chaos - ours).sum() < max(3 * noise, 0.12)  # bytes round up, by half of 1/255 in the mean


def test_the_batch_renderer_lights_as_many_pixels_as_the_chaos_game() -> None:
    systems = [sample_ifs(rng=rng(seed)) for seed in range(60)]
    ours = (render_batch(systems, [rng(seed) for seed in range(60)], 64, 20_000, window=False, patch=False) > 0).mean((1, 2))
    chaos = np.array([(render_ifs(iterate_ifs(system, 20_000, rng()), 64) > 0).mean() for system in systems])
    assert ours.mean() / chaos.mean() == pytest.approx(1, abs=0.06)
    assert np.corrcoef(ours, chaos)[0, 1] > 0.95


def test_a_picture_does_not_depend_on_the_others_of_its_batch() -> None:
    systems = [sample_ifs(rng=rng(seed)) for seed in range(7)]
    together = render_batch(systems, [rng(seed) for seed in range(7)], 24, 3000)
    assert together.max((1, 2)).tolist() == [255] * 7
    for i in (6, 2):
        assert np.array_equal(render_batch([systems[i]], [rng(i)], 24, 3000)[0], together[i])
    backward = render_batch(systems[::-1], [rng(seed) for seed in range(7)][::-1], 24, 3000)
    assert np.array_equal(backward[::-1], together)


def test_a_window_shows_a_part_and_never_nothing() -> None:
    dot = np.array([[[0.5, 0, 1], [0, 0.25, 0.5]]])
    for place in (1.0, -3.7, 0.123):
        dot[0, :, 2] = place
        assert (render_batch([dot], [rng()], 16, 500, window=False, patch=False)[0] > 0).sum() == 1
    assert all(render_batch([dot], [rng(seed)], 16, 500)[0].max() == 255 for seed in range(5))
    lit = [(render_batch([SIERPINSKI], [rng(seed)], 32, 5000, patch=False)[0] > 0).mean() for seed in range(20)]
    assert np.ptp(lit) > 0.1


def test_hues_are_those_of_the_standard_library() -> None:
    colours = rng().random((3, 50))
    ours = hsv_to_rgb(*colours)
    np.testing.assert_allclose(ours.T, [colorsys.hsv_to_rgb(*colour) for colour in colours.T], atol=1e-12)


def test_black_stays_black_and_all_else_is_coloured() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for seed in range(10):
        colour = colorize(grey, rng(seed))
        assert (colour.any(0) == (grey > 0)).all()
        value = colour.max(0).ravel()[1:]
        assert len(set(value.tolist())) == 1  # the value is one for the picture; the hue changes
        assert value[0] >= 127
        assert len(np.unique(colour.reshape(3, -1), axis=1).T) > 60


def test_outside_the_fractal_the_background_is_untouched() -> None:
    background = backgrounds(32, [rng()])[0]
    grey = render_batch([SIERPINSKI], [rng()], 32, 4000)[0]
    image = composite(colorize(grey, rng()), background)
    assert np.array_equal(image[:, grey == 0], background[:, grey == 0])
    assert (image[:, grey > 0] != background[:, grey > 0]).any()


def test_the_smallest_cloud_by_hand() -> None:
    random = rng(5)
    random.uniform(0.4, 0.8)  # the decay, which the first level does not feel
    noise = random.random((3, 3), dtype=np.float32).astype(np.float64)
    a, b, c, d = noise[[0, 0, 2, 2], [0, 2, 0, 2]]
    m = (a + b + c + d) / 4 + noise[1, 1] - 0.5
    top, left = (a + b + 2 * m) / 4 + noise[0, 1] - 0.5, (a + c + 2 * m) / 4 + noise[1, 0] - 0.5
    bottom, right = (c + d + 2 * m) / 4 + noise[2, 1] - 0.5, (b + d + 2 * m) / 4 + noise[1, 2] - 0.5
    np.testing.assert_allclose(diamond_square(3, rng(5)), [[a, top, b], [left, m, right], [c, bottom, d]], atol=1e-6)


@pytest.mark.parametrize("size", [8, 31, 33, 34])
def test_clouds_have_any_size_and_are_smooth(size: int) -> None:
    clouds = np.stack([diamond_square(size, rng(seed)) for seed in range(30)])
    assert clouds.shape[1:] == (size, size)
    assert clouds.mean() == pytest.approx(0.5, abs=0.1)
    near, far = abs(np.diff(clouds)).mean(), abs(clouds[:, :, 0] - clouds[:, :, -1]).mean()
    assert near < 0.7 * far
    assert clouds.min() > -1
    assert clouds.max() < 2


def test_backgrounds_do_not_depend_on_each_other() -> None:
    together = backgrounds(20, [rng(seed) for seed in range(4)])
    assert np.array_equal(backgrounds(20, [rng(2)])[0], together[2])
    assert together.max((1, 2, 3)).min() >= 0.4 * 255  # the value begins at 0.4 at least


def test_the_blur_is_torchvisions() -> None:
    image = rng().integers(0, 256, (3, 9, 11), dtype=np.uint8)
    for sigma in (0.5, 0.8, 1.0):
        theirs = TF.gaussian_blur(torch.from_numpy(image).float(), [3, 3], [sigma, sigma]).numpy()
        assert abs(blur(image, sigma) - theirs).max() <= 0.5 + 1e-3  # bytes


@pytest.mark.parametrize("side", [1, 5, 16, 23])
def test_resizing_is_torchs_bilinear(side: int) -> None:
    grey = rng().integers(0, 256, (16, 16), dtype=np.uint8)
    theirs = F.interpolate(torch.from_numpy(grey)[None, None].double(), (side, side), mode="bilinear", align_corners=False)[0, 0].numpy()
    ours = resize(grey, side)
    assert ours.shape == (side, side)
    assert ((ours >= theirs - 1e-3) & (ours < theirs + 1 + 1e-3)).all()  # rounded up, so that no lit pixel goes out


def test_the_eight_symmetries_are_all_shown() -> None:
    grey = np.arange(9, dtype=np.uint8).reshape(3, 3)
    shown = {eightfold(grey, rng(seed)).tobytes() for seed in range(100)}
    eight = {np.rot90(base, k).tobytes() for base in (grey, grey.T) for k in range(4)}
    assert shown == eight


def test_pasting_cuts_at_the_border_and_keeps_what_lies_under_black() -> None:
    image = np.full((3, 4, 4), 9, dtype=np.uint8)
    fractal = np.zeros((3, 3, 3), dtype=np.uint8)
    fractal[:, 1, 1], fractal[:, 2, 2] = 50, 80
    paste(image, fractal, -1, 2)
    expected = np.full((4, 4), 9)
    expected[0, 3] = 50
    assert np.array_equal(image, np.stack([expected] * 3))
    for top, left in ((-3, 0), (4, 0), (0, -3), (0, 4)):
        paste(image, fractal, top, left)
    assert np.array_equal(image, np.stack([expected] * 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: render_ifs(SQUARE, 7), r"`size` must be 8 pixels or more, got 7"),
        (
            lambda: render_ifs(SQUARE, 8, region=(0, 0, 0, 1)),
            r"`region` must be \(x0, y0, x1, y1\) with x0 < x1 and y0 < y1, got \(0, 0, 0, 1\)",
        ),
        (lambda: render_ifs(np.full((3, 2), np.inf), 8), r"points that are not finite\. Take a system whose maps contract"),
        (lambda: render_batch([SIERPINSKI], [rng()], 4), r"`size` must be 8 pixels or more, got 4"),
        (
            lambda: render_batch([SIERPINSKI, 2 * SIERPINSKI], [rng(), rng()], 8),
            r"map 0 does not contract: its largest singular value is 1",
        ),
        (lambda: render_batch([SIERPINSKI], [rng()], 8, 0), r"`n_points` must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused(call: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()  # type: ignore[operator]
