"""Views that mix images and labels, views made of views, and their text."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retinue import views
from retinue.data.views.base import registered
from retinue.data.views.draws import beta, uniform
from retinue.errors import ArgumentError


def flat(count: int, value: int, side: int = 8) -> Tensor:
    return torch.full((count, 3, side, side), value, dtype=torch.uint8)


def keys(count: int, seed: int = 0) -> Tensor:
    return views.keys(seed, 0, torch.arange(count))


def test_mixup_is_the_mean_with_the_share_it_returns() -> None:
    own, other = flat(500, 1).float(), flat(500, 0).float()
    mixed, share = views.Mixup(0.4)(own, keys(500), partners=other)
    assert torch.equal(mixed, share[:, None, None, None].expand_as(mixed))
    whole, _ = views.Mixup(0.4)(flat(500, 200), keys(500), partners=flat(500, 100))
    assert torch.equal(whole[:, 0, 0, 0], (share * 200 / 255 + (1 - share) * 100 / 255).mul(255).round().to(torch.uint8))
    assert len(share.unique()) > 400
    assert abs(share.mean() - 0.5) < 0.06


def test_cutmix_pastes_a_box_and_counts_its_pixels() -> None:
    mixed, share = views.CutMix()(flat(400, 9, 20), keys(400), partners=flat(400, 4, 20))
    theirs = mixed[:, 0] == 4
    assert torch.equal(mixed[:, 0], mixed[:, 2])
    assert torch.equal(share, (1 - theirs.flatten(1).sum(1).double() / 400).float())  # the exact share of pixels left
    tall, wide = theirs.any(2).sum(1), theirs.any(1).sum(1)
    assert torch.equal(tall * wide, theirs.flatten(1).sum(1))  # one full box
    assert len({(int(t), int(w)) for t, w in zip(tall, wide)}) > 100
    inside = theirs[:, 1:-1, 1:-1]  # boxes that touch no border have the image's aspect
    untouched = inside.flatten(1).sum(1) == theirs.flatten(1).sum(1)
    assert (tall == wide)[untouched].all()
    assert untouched.any()


def test_the_box_of_cutmix_is_the_papers() -> None:
    height, width, own = 14, 30, keys(60, 3)
    mixed, _ = views.CutMix(0.7)(torch.zeros(60, 1, height, width), own, partners=torch.ones(60, 1, height, width))
    draws = uniform(own, 4)
    for row, rest in enumerate(beta(draws[:, 1], 0.7).tolist()):
        tall, wide = int(height * (1 - rest) ** 0.5), int(width * (1 - rest) ** 0.5)
        top, left = int(draws[row, 2] * height) - tall // 2, int(draws[row, 3] * width) - wide // 2  # the centre is uniform
        expected = torch.zeros(height, width)
        expected[max(0, top) : max(0, top + tall), max(0, left) : max(0, left + wide)] = 1
        assert torch.equal(mixed[row, 0], expected)


def test_cutmix_of_one_image_with_itself_changes_nothing() -> None:
    images = torch.randint(0, 256, (9, 3, 7, 11), dtype=torch.uint8)
    assert torch.equal(views.CutMix()(images, keys(9), partners=images)[0], images)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_p_leaves_the_rest_alone(name: str) -> None:
    view = registered[name](alpha=1.0, p=0.3)  # type: ignore[call-arg]
    mixed, share = view(flat(2000, 200), keys(2000), partners=flat(2000, 100))
    alone = share == 1
    assert abs(alone.double().mean() - 0.7) < 0.06
    assert (mixed[alone] == 200).all()


def test_a_view_that_does_not_mix_keeps_the_whole_label() -> None:
    images = flat(3, 5)
    _, share = views.Flip()(images, keys(3), partners=images)
    assert share.tolist() == [1.0] * 3
    assert not views.Flip().mixes
    assert not views.parse("crop(4), flip").mixes
    assert views.parse("crop(4), mixup").mixes
    assert views.parse("choose([flip, cutmix])").mixes


def test_views_in_a_row_draw_with_keys_of_their_own() -> None:
    images = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    first, second = views.Crop(2), views.Erase(0.7)
    expected = second(first(images, views.derive(keys(16), 0)), views.derive(keys(16), 1))
    assert torch.equal(views.Compose([first, second])(images, keys(16)), expected)
    twice = views.parse("flip, flip")(images, keys(16))
    assert not torch.equal(twice, images)  # the two flips do not draw alike


def test_partners_go_through_the_views_before_the_mixing_one_and_no_others() -> None:
    own, other = flat(6, 10), flat(6, 200)
    half = views.ColorJitter(brightness=(0.5, 0.5))
    mixed, share = views.Compose([half, views.CutMix()])(own, keys(6), partners=other)
    assert set(mixed.unique().tolist()) <= {5, 100}
    mixed, share = views.Compose([views.CutMix(), half])(own, keys(6), partners=other)
    assert set(mixed.unique().tolist()) <= {5, 100}
    alone = views.CutMix()(own, views.derive(keys(6), 0), partners=other)
    assert torch.equal(share, alone[1])
    assert torch.equal(mixed == 100, alone[0] == 200)


def test_partners_draw_with_other_keys_than_the_images() -> None:
    images = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8)
    mixed, _ = views.parse("flip, mixup(1.0)")(images, keys(64), partners=images)
    straight = views.Flip()(images, views.derive(keys(64), 0))
    differs = (mixed.int() - straight.int()).abs().flatten(1).amax(1) > 1  # mixed with itself, unless one of the two was flipped
    assert abs(differs.double().mean() - 0.5) < 0.25


def test_shares_of_two_mixing_views_multiply() -> None:
    own, other = flat(50, 255).float() / 255, flat(50, 0).float()
    mixed, share = views.parse("mixup(1.0), cutmix(1.0)")(own, keys(50), partners=other)
    assert torch.allclose(mixed.mean((1, 2, 3)), share, atol=1e-6)  # what is left of the own image is its label's share


def test_a_mixed_row_depends_on_its_own_key_alone_with_partners_from_all_the_data() -> None:
    data = torch.randint(0, 256, (200, 3, 8, 8), dtype=torch.uint8)
    view = views.parse("crop(1), choose([mixup(0.8), cutmix(1.0)]), flip")

    def row(indices: Tensor) -> Tensor:
        own = views.keys(4, 2, indices)
        return view(data[indices], own, partners=data[views.partner_indices(own, 200)])[0]

    assert torch.equal(row(torch.arange(30, 60))[7:8], row(torch.tensor([37])))


def test_choice_follows_the_weights_and_keeps_rows_in_place() -> None:
    images = torch.arange(8000, dtype=torch.float32).div(8000).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    view = views.Choose([views.Solarize(0.0, p=1.0), views.Flip(0.0)], weights=[1, 3])
    shown = view(images, keys(8000))[:, 0, 0, 0]
    turned = shown != images[:, 0, 0, 0]
    assert torch.equal(torch.where(turned, 1 - shown, shown).mul(8000).round(), torch.arange(8000.0))
    assert abs(turned.double().mean() - 0.25) < 0.02
    never = views.Choose([views.Solarize(0.0, p=1.0), views.Flip(0.0)], weights=[0, 1])
    assert torch.equal(never(images), images)


def test_no_views_show_the_image() -> None:
    assert torch.equal(views.Compose([])(flat(2, 3)), flat(2, 3))
    assert torch.equal(views.parse("")(flat(2, 3)), flat(2, 3))
    assert repr(views.parse("  \n ")) == ""


# ---------------------------------------------------------------------------------------------------------------------------------- text


def test_text_by_hand() -> None:
    found = views.parse("crop(4), flip, ColorJitter(0.4, 0.4, hue=0.1),\n randaugment(2, 9), rand_augment, erase(0.25), mixup(0.2)")
    assert found == views.Compose(
        [
            views.Crop(4), views.Flip(), views.ColorJitter(0.4, 0.4, hue=0.1), views.RandAugment(2, 9), views.RandAugment(),
            views.Erase(0.25), views.Mixup(0.2),
        ]
    )  # fmt: skip
    assert repr(found) == (
        "crop(4), flip(), color_jitter(brightness=0.4, contrast=0.4, hue=0.1), randaugment(), randaugment(), erase(p=0.25), mixup()"
    )
    assert views.parse("random_resized_crop(8, ratio=(3/4, 4/3)), rotate((-5, 5))").views == (
        views.RandomResizedCrop(8),
        views.Rotate((-5, 5)),
    )
    assert views.parse("crop(4, None, 'edge')").views == (views.Crop(4, mode="edge"),)


def made(kind: Callable[..., views.View], *arguments: st.SearchStrategy) -> st.SearchStrategy:
    return st.tuples(st.just(kind), *arguments)


SHARES = st.floats(0, 1)
SIZES = st.none() | st.integers(1, 40) | st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(
    st.lists(
        st.one_of(
            made(views.Crop, st.integers(0, 9), SIZES, st.sampled_from(["zeros", "reflect", "edge"])),
            made(views.Flip, SHARES),
            made(views.ColorJitter, st.floats(0, 9), st.tuples(SHARES, st.floats(1, 2)), SHARES, st.floats(0, 0.5), SHARES),
            made(views.Mixup, st.floats(0, 99, exclude_min=True)),
            made(lambda a, b: views.Choose([views.Mixup(), views.Compose([views.Flip(a)])], weights=(1.0, b)), SHARES, st.floats(0, 9)),
            made(lambda a: views.Normalize((a, 0.5), (0.1,)), st.floats(-5, 5)),
        ),
        max_size=5,
    )
)
def test_text_comes_back(parts: list[tuple]) -> None:
    whole = views.Compose([kind(*arguments) for kind, *arguments in parts])
    assert views.parse(repr(whole)) == whole
    assert repr(views.parse(repr(whole))) == repr(whole)
    assert views.parse(whole.nested()).views == (whole,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crop(4), flipp", r'views: no view is called "flipp"\. Did you mean flip'),
        ("colour_jitter(0.4)", r"Did you mean color_jitter"),
        ("crop(pading=4)", r'views: crop: no argument is called "pading"\. Did you mean padding'),
        ("crop(1, 2, 'edge', 4)", r"views: crop takes 3 arguments at most, got 4\. They are padding, size, mode\."),
        ("crop", r'views: crop in "crop" needs `padding`\. Its arguments are padding, size, mode\.'),
        ("crop(4, padding=4)", r'views: crop in "crop\(4, padding=4\)" is given `padding` twice\. Leave one out\.'),
        ("crop(4", r'views: "crop\(4" cannot be read \(.+\)\. Write views as in "crop\(4\), flip'),
        ("flip], [flip", r'views: "flip\], \[flip" is more than one list of views'),
        ("4", r'views: "4" in "4" is not a view'),
        ("os.system('x')", r"views: \"os\.system\('x'\)\" in .+ is not a view"),
        ("flip(__import__('os'))", r'views: no view is called "__import__"'),
        ("crop(2 ** 99999)", r'views: the value "2 \*\* 99999" in .+ cannot be read\. Write a number, a string, a list or a view\.'),
        ("crop(1 / 0)", r'the value "1 / 0"'),
        ("crop(True)", r"crop: `padding` must be a whole number of at least 0, got True"),
        ("flip(**{})", r'views: flip: no argument is called "\*\*"'),
        ("flip(*[1])", r'the value "\*\[1\]"'),
        ("\x00", r"cannot be read"),
        ("(" * 500 + ")" * 500, r"cannot be read"),
        ("choose([])", r"choose: `views` is empty\. Give the views to choose from: choose\(\[mixup\(0\.8\), cutmix\(1\.0\)\]\)\."),
        ("choose(flip)", r"choose: `views` must be a list of views, got flip\(\)\. Such as choose\(\[crop\(4\), flip\(\)\]\)\."),
        (
            "choose([flip, normalize(0.5, 1)])",
            r"choose: normalize changes the type of the images, so it cannot be one choice among others\.",
        ),
        ("choose([flip], weights=(1, 2))", r"choose: `weights` must be 1 numbers of at least 0, one a view and not all 0, got \(1, 2\)\."),
        ("choose([flip], weights=(0,))", r"choose: `weights` must be 1 numbers"),
        ("compose([4])", r"compose: `views` must be a list of views"),
        (
            "mixup(0)",
            r"mixup: `alpha` must be a number above 0, got 0\. It shapes Beta\(alpha, alpha\), from which the share is drawn; 1 is",
        ),
        ("cutmix(-1)", r"cutmix: `alpha` must be a number above 0, got -1"),
        ("cutmix(p=2)", r"cutmix: `p` must be a number in \[0, 1\], got 2"),
    ],
)
def test_text_that_cannot_work_is_refused(text: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        views.parse(text)
