"""NASNet behind timm's protocol, under compilers and exporters, and timm's weights in it."""

from pathlib import Path
from typing import Any

import pytest
import timm
import timm.models._builder
import torch
from support import images, reductions, same
from timm.models.nasnet import NASNetALarge
from torch import Tensor, nn

import retinue
from retinue.cli import recipes
from retinue.errors import CheckpointError
from retinue.models import nasnet, nasnet_a_large
from retinue.models.nasnet_weights import from_timm, timm_name, to_timm

TINY: dict[str, Any] = {"N": 1, "F": 4, "num_classes": 5}
SHORT = {  # every kind of layer that NASNet-A has, in two blocks
    "normal": [[0, "sep3", 1, "identity", "add"], [1, "avg3", 1, "sep5", "add"]],
    "reduce": [[0, "sep3", 1, "max3", "add"], [2, "identity", 0, "avg3", "add"]],
    "normal_concat": [1, 2, 3],
}
NARROW: dict[str, Any] = {"N": 6, "F": 8, "stem": "imagenet", "skip_reduction_input": True}


def small(**options: Any) -> Any:
    return retinue.create_model("nasnet", **{"input_size": 32, **TINY, **options})


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


@pytest.fixture(scope="module")
def peer() -> NASNetALarge:
    """Timm's network with a twenty-first of its filters; its norms are drawn, since fresh ones are all alike."""
    torch.manual_seed(0)
    theirs = NASNetALarge(num_features=24 * 8, num_classes=10)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.2)  # type: ignore[union-attr]
    return theirs.eval()


def test_every_tensor_of_timms_large_network_has_its_place() -> None:
    with torch.device("meta"):
        theirs, ours = timm.create_model("nasnetalarge"), nasnet_a_large(aux=True, input_size=331, drop_path_keep=0.7)
    renamed = {name: tensor.shape for name, tensor in to_timm(ours).items()}
    assert len(renamed) == 1810
    assert renamed == {name: tensor.shape for name, tensor in theirs.state_dict().items()}


@pytest.mark.parametrize("size", [(96, 96), (97, 97), (90, 107)])
def test_the_network_with_timms_weights_computes_timms_logits(peer: NASNetALarge, size: tuple[int, int]) -> None:
    ours = nasnet(**NARROW, num_classes=10, avg_pool_count_pad=True, aux=True, input_size=size)
    ours.load_state_dict(from_timm(peer.state_dict(), ours))
    x = images(2, 3, *size)
    expected = logits(peer, x)
    assert expected.std() > 0.05
    torch.testing.assert_close(logits(ours, x), expected, rtol=0, atol=1e-5)
    back = to_timm(ours)
    assert all(torch.equal(tensor, back[name]) for name, tensor in peer.state_dict().items())
    ours_maps = ours.forward_intermediates(x, intermediates_only=True)
    assert len(ours_maps) == 5
    for mine, timms in zip(ours_maps, peer.forward_intermediates(x, intermediates_only=True), strict=True):
        torch.testing.assert_close(mine, timms, rtol=0, atol=1e-4)


def test_padding_that_is_not_counted_gives_other_logits(peer: NASNetALarge) -> None:
    ours = nasnet(**NARROW, num_classes=10)
    ours.load_state_dict(from_timm(peer.state_dict(), ours))
    x = images(1, 3, 96, 96)
    assert (logits(ours, x) - logits(peer, x)).abs().max() > 1e-3  # a hundred times the tolerance above


def test_pretrained_fetches_by_timms_name_and_fits_channels_and_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        shapes = timm.create_model("nasnetalarge").state_dict()
    published = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in shapes.items()}
    published["conv0.conv.weight"].normal_()
    published["cell_17.comb_iter_4_left.bn_sep_2.bias"].fill_(7)
    asked: list[Any] = []

    def hub(place: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        asked.append(place)
        return dict(published)

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", hub)
    with torch.device("meta"):
        ours: Any = retinue.create_model("nasnet_a_large", num_classes=3)
    assert ours.default_cfg["mean"] == (0.5, 0.5, 0.5)
    assert ours.default_cfg["crop_pct"] == 0.911
    ours = retinue.create_model("nasnet_a_large", pretrained=True, in_chans=1, num_classes=3)
    assert asked == ["timm/nasnetalarge.tf_in1k"]
    torch.testing.assert_close(ours.stem[0].conv.weight, published["conv0.conv.weight"].sum(1, keepdim=True), rtol=0, atol=1e-6)
    assert ours.stages[3][6].ops[8].bn2.bias.unique().tolist() == [7]
    assert ours.head.fc.weight.shape == (3, 4032)


def test_names_of_tensors_are_timms() -> None:
    assert timm_name("stem.0.bn.bias") == "conv0.bn.bias"
    assert timm_name("stages.0.0.cur.conv.weight") == "cell_stem_0.conv_1x1.conv.weight"
    assert timm_name("stages.1.0.prev.conv2.weight") == "cell_stem_1.path_2.conv.weight"
    assert timm_name("stages.1.1.prev.norm.weight") == "cell_0.final_path_bn.weight"
    assert timm_name("stages.2.0.prev.bn.weight") == "reduction_cell_0.conv_prev_1x1.bn.weight"
    assert timm_name("stages.3.6.ops.8.dw2.weight") == "cell_17.comb_iter_4_left.separable_2.depthwise_conv2d.weight"
    assert timm_name("head.fc.bias") == "last_linear.bias"
    assert timm_name("drop_path.step") is None


def test_weights_of_another_network_are_refused_with_the_tensors_name(peer: NASNetALarge) -> None:
    tensors = peer.state_dict()
    with pytest.raises(
        CheckpointError, match=r'the network lacks the tensor "cell_18\.bias"\. Build nasnet_a_large for images above 64 px\.'
    ):
        from_timm({**tensors, "cell_18.bias": torch.zeros(1)}, nasnet(**NARROW, num_classes=10))
    with pytest.raises(CheckpointError, match=r'the tensor "cell_5\..*" has shape .* Published weights need N=6 and P=4032\.'):
        from_timm(tensors, nasnet(**{**NARROW, "N": 5}))
    fewer = {name: tensor for name, tensor in tensors.items() if not name.startswith("cell_17.")}
    with pytest.raises(CheckpointError, match=r'lacks the tensor "cell_17\..*"\. Build nasnet_a_large for images above 64 px\.'):
        from_timm(fewer, nasnet(**NARROW, num_classes=10))
    with pytest.raises(CheckpointError, match=r'the tensor "cell_stem_0\..*" has shape .* Published weights need N=6 and P=4032\.'):
        from_timm(tensors, nasnet(**{**NARROW, "F": 12}))
    with pytest.raises(CheckpointError, match=r'"conv0\.bn\.weight" has shape \(96,\) in the checkpoint and \(24,\) in the network'):
        from_timm(tensors, nasnet(N=6, F=8, input_size=32))  # the stem of CIFAR


def test_timm_builds_it_by_name() -> None:
    model: Any = timm.create_model("retinue_nasnet", in_chans=1, num_classes=7, drop_rate=0.4, drop_path_rate=0.2, N=1, F=4)
    assert model.head.drop.p == 0.4
    assert model.drop_path.keep == 0.8
    assert model(images(2, 1, 33, 47)).shape == (2, 7)


@pytest.mark.parametrize(("size", "strides"), [(32, [1, 2, 4]), (64, [2, 4, 8]), (96, [2, 4, 8, 16, 32])])
def test_timm_takes_its_pyramid(size: int, strides: list[int]) -> None:
    pyramid: Any = timm.create_model("retinue_nasnet", features_only=True, in_chans=1, aux=True, N=1, F=4, input_size=size)
    assert reductions(pyramid) == strides
    maps = pyramid(images(2, 1, size, size))
    assert [m.shape[1] for m in maps] == pyramid.feature_info.channels()
    assert [m.shape[2] for m in maps][1:] == [-(-size // stride) for stride in strides][1:]
    assert not any(key.startswith("model.aux") for key in pyramid.state_dict())


@pytest.mark.parametrize("kept", [[0], [0, 2], [1]])
def test_a_pyramid_cut_off_early_holds_no_later_cell(kept: list[int]) -> None:
    pyramid: Any = small(features_only=True, out_indices=kept, input_size=96).eval()
    whole = small(input_size=96).eval()
    whole.load_state_dict(pyramid.model.state_dict(), strict=False)
    assert len(pyramid.model.stages) == max(kept)
    x = images(1, 3, 96, 96)
    again = whole.forward_intermediates(x, indices=kept, stop_early=True, intermediates_only=True)
    for ours, other in zip(pyramid(x), again, strict=True):
        assert torch.equal(ours, other)
    features = pyramid.model.forward_features(x)
    assert features.shape[1] == pyramid.model.num_features == pyramid.feature_info.channels()[-1]


def test_the_auxiliary_head_speaks_in_training_only() -> None:
    model = small(aux=True)
    x = images(4, 3, 32, 32)
    first, second = model(x)
    assert first.shape == second.shape == (4, 5)
    _, (tap,) = model.forward_intermediates(x, indices=[1])
    torch.testing.assert_close(second, model.aux(tap))
    assert tap.shape[1:] == (48, 16, 16)  # the map before the second reduction, 6 states of 2 F
    (first.sum() + second.sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.eval()(x).shape == (4, 5)
    model.train().reset_classifier(7)
    assert [out.shape for out in model(x)] == [(4, 7), (4, 7)]
    model.reset_classifier(0)
    assert model(x).shape == (4, model.num_features)


class Stop(BaseException):
    """Ends a training as a kill does."""


def stop_after_two(model: nn.Module, step: int) -> None:
    if step == 2:
        raise Stop


def test_it_resumes_in_the_middle_of_its_schedule_of_drop_path(tmp_path: Path) -> None:
    data = retinue.data.open("digits", train_images=48, test_images=20)

    def fit(folder: str, after_step: Any = None) -> Any:
        torch.manual_seed(0)
        objective: Any = retinue.train.Supervised()
        objective.after_step = after_step or objective.after_step
        model = small(input_size=8, in_chans=1, num_classes=10, drop_path_keep=0.6, drop_path_steps=4)
        run = retinue.fit(
            model, objective, data, max_steps=4, batch_size=16, schedule="constant", run_dir=tmp_path / folder, checkpoint_every=1,
            eval_every=4, loggers=("csv",), progress=False,
        )  # fmt: skip
        return run.model

    with pytest.raises(Stop):
        fit("stopped", stop_after_two)
    whole, resumed = fit("whole"), fit("stopped")
    assert whole.drop_path.step.item() == 4
    assert same(whole.state_dict(), resumed.state_dict())
    assert retinue.load(tmp_path / "stopped").state_dict()["drop_path.step"].item() == 4


@pytest.mark.parametrize("scale", recipes.SCALES)
def test_every_setting_of_the_recipes_fits_what_it_names(scale: str) -> None:
    bound = recipes.bind(recipes.load("nasnet", scale))
    assert bound.target is retinue.train.Supervised


def test_the_paper_recipe_drops_paths_until_its_last_update() -> None:
    recipe = recipes.load("nasnet", "paper")
    assert recipe.model["drop_path_steps"] == recipe.fit["max_steps"] == 250_000
    assert recipe.fit["batch_size"] * recipe.fit["devices"] == 1600


def test_it_compiles_without_a_break_in_training_and_evaluation(unchecked: None) -> None:
    model = small(genotype=SHORT, aux=True, drop_path_keep=0.5, drop_path_steps=1_000_000)
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    x = images(4, 3, 32, 32)
    for result, expected in zip(compiled(x), model(x), strict=True):
        assert result.shape == expected.shape
    assert model.drop_path.step.item() == 2
    model.eval()
    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-6)
