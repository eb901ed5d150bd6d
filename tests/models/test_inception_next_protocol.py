"""InceptionNeXt behind timm's protocol, with timm's weights, under compilers and exporters, and its recipes."""

from typing import Any

import pytest
import timm
import timm.models._builder
import torch
from support import images, reductions
from torch import Tensor, nn

from retinue.cli import recipes
from retinue.errors import ArgumentError, CheckpointError
from retinue.models import create_model
from retinue.models.inception_next_weights import from_timm

TINY: dict[str, Any] = {"num_classes": 5, "depths": [1, 2, 1], "dims": [8, 16, 24], "ls_init_value": 0.5}


def small(**options: Any) -> Any:
    return create_model("inception_next", **{"input_size": 32, **TINY, **options})


def randomised(model: Any) -> Any:
    """Fresh norms are all alike and a fresh gamma hides its block: something swapped would go unnoticed."""
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_var", "gamma")) or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        elif tensor.ndim == 1:
            tensor.normal_(0, 0.2)
    return model.eval()


@pytest.mark.parametrize("variant", ["atto", "tiny", "small", "base"])
def test_every_tensor_is_named_and_shaped_as_in_timm(variant: str) -> None:
    with torch.device("meta"):
        ours, theirs = create_model(f"inception_next_{variant}"), timm.create_model(f"inception_next_{variant}")
    shapes = [[(name, tensor.shape) for name, tensor in model.state_dict().items()] for model in (ours, theirs)]
    assert sorted(shapes[0]) == sorted(shapes[1])
    assert len(shapes[0]) == {"atto": 226, "tiny": 322, "small": 610, "base": 610}[variant]


@pytest.fixture(scope="module", params=["atto", "tiny"])
def peer(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    torch.manual_seed(0)
    return f"inception_next_{request.param}", randomised(timm.create_model(f"inception_next_{request.param}"))


@torch.no_grad()
def test_the_network_with_timms_weights_computes_timms_maps_and_logits(peer: tuple[str, nn.Module]) -> None:
    name, theirs = peer
    ours: Any = create_model(name).eval()
    ours.load_state_dict(from_timm(theirs.state_dict(), ours))
    x = images(1, 3, 96, 64)
    expected = theirs(x)
    assert expected.std() > 0.1  # so that 1e-5 is a statement
    torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        ours.forward_intermediates(x, intermediates_only=True),
        theirs.forward_intermediates(x, intermediates_only=True),
        rtol=1e-4,
        atol=1e-4,
    )


@torch.no_grad()
def test_pretrained_fetches_by_timms_name_and_fits_channels_and_classes(
    peer: tuple[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, theirs = peer
    asked: list[Any] = []

    def hub(place: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        asked.append(place)
        return dict(theirs.state_dict())

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", hub)
    ours: Any = create_model(name, pretrained=True, in_chans=1, num_classes=3).eval()
    assert asked == [f"timm/{name}.sail_in1k"]
    assert ours.head.fc2.weight.shape == (3, ours.head_hidden_size)
    torch.testing.assert_close(ours.stem[0].weight, theirs.stem[0].weight.sum(1, keepdim=True), rtol=0, atol=1e-6)  # type: ignore[index,union-attr]
    grey = images(1, 1, 64, 64)
    torch.testing.assert_close(
        ours.forward_head(ours.forward_features(grey), pre_logits=True),
        theirs.forward_head(theirs.forward_features(grey.expand(-1, 3, -1, -1)), pre_logits=True),  # type: ignore[operator]
        rtol=0,
        atol=1e-4,
    )


def test_the_base_network_for_384_px_has_weights_and_settings_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", lambda place, *args, **kwargs: asked.append(place) or {})
    with torch.device("meta"), pytest.raises(CheckpointError, match=r'the checkpoint lacks the tensor "stem\.0\.weight"'):
        create_model("inception_next_base_384", pretrained=True)
    assert asked == ["timm/inception_next_base.sail_in1k_384"]
    with torch.device("meta"):
        assert create_model("inception_next_base_384").default_cfg["crop_pct"] == 1.0  # type: ignore[index,union-attr]
        assert create_model("inception_next_base").default_cfg["crop_pct"] == 0.95  # type: ignore[index,union-attr]


@torch.no_grad()
def test_at_32_px_the_published_weights_see_an_image_as_if_it_were_enlarged_twice(peer: tuple[str, nn.Module]) -> None:
    name, theirs = peer
    ours: Any = create_model(name, input_size=32).eval()
    ours.load_state_dict(from_timm(theirs.state_dict(), ours))
    x = images(1, 3, 32, 32)
    maps = theirs.forward_intermediates(x.repeat_interleave(2, 2).repeat_interleave(2, 3), intermediates_only=True)  # type: ignore[operator]
    torch.testing.assert_close(ours.forward_intermediates(x, intermediates_only=True), maps[:3], rtol=1e-4, atol=1e-4)
    fresh = create_model(name, input_size=32)
    taken = from_timm(theirs.state_dict(), fresh)
    assert torch.equal(taken["head.fc1.weight"], fresh.state_dict()["head.fc1.weight"])  # of the last stage that is there


def test_a_classifier_of_other_classes_keeps_what_it_has_and_the_hidden_layer_does_not() -> None:
    source, ours = randomised(small()), small(num_classes=3)
    before = ours.head.fc2.weight.clone()
    ours.load_state_dict(from_timm(source.state_dict(), ours))
    assert torch.equal(ours.head.fc2.weight, before)
    assert torch.equal(ours.head.fc1.weight, source.head.fc1.weight)
    headless = small(num_classes=0).eval()
    headless.load_state_dict(from_timm(source.state_dict(), headless))
    x = images(1, 3, 32, 32)
    assert torch.equal(headless(x), source.forward_head(source.forward_features(x), pre_logits=True))


def test_weights_of_another_network_are_refused_with_the_tensors_name() -> None:
    tensors = small().state_dict()
    with pytest.raises(
        CheckpointError, match=r"the stem of the checkpoint takes 3 channels and the network has in_chans=1\. Build it with in_chans=3"
    ):
        from_timm(tensors, small(in_chans=1))
    with pytest.raises(
        CheckpointError, match=r'the network lacks the tensor "stages\.1\.blocks\.1\..*"\. It must have the published variant'
    ):
        from_timm(tensors, small(depths=[1, 1, 1]))
    with pytest.raises(CheckpointError, match=r'the checkpoint lacks the tensor "stages\.0\.blocks\.1\.gamma"\. The network must have'):
        from_timm(tensors, small(depths=[2, 2, 1]))
    with pytest.raises(
        CheckpointError,
        match=r'"stem\.0\.weight" has shape \(8, 3, 2, 2\) in the checkpoint and \(8, 3, 3, 3\) in the network\. .* below 28 px',
    ):
        from_timm(tensors, small(input_size=16))
    with pytest.raises(CheckpointError, match=r'"stem\.1\.weight" has shape \(1,\) in the checkpoint and \(8,\) in the network'):
        from_timm({**tensors, "stem.1.weight": torch.ones(1)}, small())


def test_timm_builds_it_by_name() -> None:
    model: Any = timm.create_model("retinue_inception_next_atto", in_chans=1, num_classes=7, drop_rate=0.4, drop_path_rate=0.1)
    assert model.head.drop.p == 0.4
    assert model(images(2, 1, 64, 64)).shape == (2, 7)
    assert (model.default_cfg["classifier"], model.default_cfg["first_conv"]) == ("head.fc2", "stem.0")


def test_timm_takes_its_pyramid() -> None:
    pyramid: Any = timm.create_model("retinue_inception_next_atto", features_only=True, in_chans=1)
    assert reductions(pyramid) == [4, 8, 16, 32]
    maps = pyramid(images(1, 1, 96, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [(40, 24, 16), (80, 12, 8), (160, 6, 4), (320, 3, 2)]
    assert [m.shape[1] for m in maps] == pyramid.feature_info.channels()
    assert not any("head" in key for key in pyramid.state_dict())


@torch.no_grad()
def test_the_classifier_can_be_reset_in_every_way() -> None:
    model, x = small().eval(), images(2, 3, 32, 32)
    features = model.forward_features(x)
    hidden = model.forward_head(features, pre_logits=True)
    model.reset_classifier(0)
    assert (model.num_classes, model.head_hidden_size) == (0, 72)
    assert torch.equal(model(x), hidden)
    before = model.head.fc1.weight
    model.reset_classifier(3, "max")
    assert model.head.fc1.weight is before
    assert model(x).shape == (2, 3)
    assert not torch.equal(model.forward_head(features, pre_logits=True), hidden)
    model.reset_classifier(4, "catavgmax")
    assert model.head.fc1.weight.shape == (72, 48)
    assert model(x).shape == (2, 4)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), features)
    assert model.head_hidden_size == 24
    model.reset_classifier(6)
    assert model(x).shape == (2, 6)
    assert model.forward_head(features, pre_logits=True).shape == (2, 72)
    assert small(num_classes=0).eval()(x).shape == (2, 72)
    with pytest.raises(
        ArgumentError, match=r'the head needs pooled features, got global_pool="" with a classifier\. Take "avg", or num_classes=0'
    ):
        model.reset_classifier(3, "")


def test_parameters_are_sorted_by_depth() -> None:
    from timm.models._manipulate import group_with_matcher

    model = small()
    groups = group_with_matcher(model.named_parameters(), model.group_matcher(), reverse=True)
    assert groups["stem.0.weight"] == 0
    assert (
        groups["stages.0.blocks.0.gamma"] < groups["stages.1.blocks.0.gamma"] < groups["stages.1.blocks.1.gamma"] < groups["head.fc2.bias"]
    )
    assert len(group_with_matcher(model.named_parameters(), model.group_matcher(coarse=True))) == 5


def test_the_paper_recipe_has_the_papers_numbers() -> None:
    recipe = recipes.load("inception-next", "paper")
    fit = recipe.fit
    assert (recipe.model["name"], recipe.model["drop_path_rate"], recipe.data["input_size"]) == ("inception_next_tiny", 0.1, 224)
    assert (fit["epochs"], fit["batch_size"] * fit["devices"], fit["optimizer"], fit["lr"], fit["weight_decay"]) == (
        310,
        4096,
        "adamw",
        4e-3,
        0.05,
    )
    assert (fit["warmup_epochs"], fit["schedule"], recipe.objective["label_smoothing"]) == (20, "cosine", 0.1)
