"""Published weights of Inception-v4 and Inception-ResNet-v2: timm's and TF-slim's layouts, with random weights instead of a download."""

from typing import Any

import numpy as np
import pytest
import timm
import timm.models._builder
import torch
from support import images
from torch import Tensor, nn

import retinue
from retinue.errors import CheckpointError
from retinue.models import inception_resnet_v2, inception_v4
from retinue.models.inception_weights import from_slim, from_timm, to_timm

BUILDERS: dict[str, Any] = {"inception_v4": inception_v4, "inception_resnet_v2": inception_resnet_v2}


def randomise_norms(model: nn.Module) -> nn.Module:
    """Fresh norms are all alike: two of them swapped would go unnoticed."""
    for name, tensor in model.state_dict().items():
        if "bn." in name and tensor.is_floating_point():
            if name.endswith(("weight", "running_var")):
                tensor.uniform_(0.5, 1.5)
            else:
                tensor.normal_(0, 0.2)
    return model.eval()


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


@pytest.fixture(scope="module", params=list(BUILDERS))
def peer(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    torch.manual_seed(0)
    return request.param, randomise_norms(timm.create_model(request.param))


def test_the_network_with_timms_weights_computes_timms_logits(peer: tuple[str, nn.Module]) -> None:
    name, theirs = peer
    ours = BUILDERS[name]()
    ours.load_state_dict(from_timm(theirs.state_dict(), ours))
    x = images(1, 3, 107, 75)
    expected = logits(theirs, x)
    assert expected.std() > 0.02  # so that 1e-5 is a statement
    torch.testing.assert_close(logits(ours, x), expected, rtol=0, atol=1e-5)
    back = to_timm(ours)
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in theirs.state_dict().items())


def test_pretrained_fetches_by_timms_name_and_fits_channels_and_classes(
    peer: tuple[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, theirs = peer
    asked: list[Any] = []

    def hub(place: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        asked.append(place)
        return dict(theirs.state_dict())

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", hub)
    ours: Any = retinue.create_model(name, pretrained=True, in_chans=1, num_classes=3, aux=True)
    assert asked == [f"timm/{name}.tf_in1k"]
    first = theirs.state_dict()[timm.models.get_pretrained_cfg(name).first_conv + ".weight"]  # type: ignore[union-attr]
    torch.testing.assert_close(ours.stem[0].conv.weight, first.sum(1, keepdim=True), rtol=0, atol=1e-6)  # grey is the sum over the colours
    assert ours.head.fc.weight.shape == (3, ours.num_features)
    assert torch.equal(
        ours.stem[1].conv.weight, to_timm(ours)["features.1.conv.weight" if name == "inception_v4" else "conv2d_2a.conv.weight"]
    )
    last = "features.21.branch0.bn.bias" if name == "inception_v4" else "conv2d_7b.bn.bias"
    assert torch.equal(to_timm(ours)[last], theirs.state_dict()[last])
    assert ours.default_cfg["hf_hub_id"] == f"timm/{name}.tf_in1k"


def test_small_images_take_the_same_weights(peer: tuple[str, nn.Module]) -> None:
    name, theirs = peer
    ours = retinue.create_model(name, input_size=32)
    ours.load_state_dict(from_timm(theirs.state_dict(), ours))
    assert logits(ours, images(1, 3, 32, 32)).isfinite().all()


def test_a_classifier_of_other_classes_keeps_what_it_has(peer: tuple[str, nn.Module]) -> None:
    name, theirs = peer
    ours = BUILDERS[name](num_classes=3)
    before = ours.head.fc.weight.clone()
    ours.load_state_dict(from_timm(theirs.state_dict(), ours))
    assert torch.equal(ours.head.fc.weight, before)
    headless = BUILDERS[name](num_classes=0)
    headless.load_state_dict(from_timm(theirs.state_dict(), headless))


NARROW: dict[str, Any] = {"width_mult": 0.1, "input_size": 299}

# names of the official code, written out once more, scope by scope: (scope, our block, [(their unit, our unit)])
A_V4 = ["0/Conv2d_0a_1x1 0", "1/Conv2d_0a_1x1 1.0", "1/Conv2d_0b_3x3 1.1", "2/Conv2d_0a_1x1 2.0", "2/Conv2d_0b_3x3 2.1",
        "2/Conv2d_0c_3x3 2.2", "3/Conv2d_0b_1x1 3.1"]  # fmt: skip
B_V4 = ["0/Conv2d_0a_1x1 0", "1/Conv2d_0a_1x1 1.0", "1/Conv2d_0b_1x7 1.1", "1/Conv2d_0c_7x1 1.2", "2/Conv2d_0a_1x1 2.0",
        "2/Conv2d_0b_7x1 2.1", "2/Conv2d_0c_1x7 2.2", "2/Conv2d_0d_7x1 2.3", "2/Conv2d_0e_1x7 2.4", "3/Conv2d_0b_1x1 3.1"]  # fmt: skip
C_V4 = ["0/Conv2d_0a_1x1 0", "1/Conv2d_0a_1x1 1.0", "1/Conv2d_0b_1x3 1.1.branch0", "1/Conv2d_0c_3x1 1.1.branch1", "2/Conv2d_0a_1x1 2.0",
        "2/Conv2d_0b_3x1 2.1", "2/Conv2d_0c_1x3 2.2", "2/Conv2d_0d_1x3 2.3.branch0", "2/Conv2d_0e_3x1 2.3.branch1",
        "3/Conv2d_0b_1x1 3.1"]  # fmt: skip
STEM = [("Conv2d_1a_3x3", "stem.0", []), ("Conv2d_2a_3x3", "stem.1", []), ("Conv2d_2b_3x3", "stem.2", [])]
SLIM_V4 = [
    *STEM,
    ("Mixed_3a", "stem.3", ["1/Conv2d_0a_3x3 1"]),
    ("Mixed_4a", "stem.4", ["0/Conv2d_0a_1x1 0.0", "0/Conv2d_1a_3x3 0.1", "1/Conv2d_0a_1x1 1.0", "1/Conv2d_0b_1x7 1.1",
                            "1/Conv2d_0c_7x1 1.2", "1/Conv2d_1a_3x3 1.3"]),
    ("Mixed_5a", "stem.5", ["0/Conv2d_1a_3x3 0"]),
    *[(f"Mixed_5{letter}", f"stages.0.{i}", A_V4) for i, letter in enumerate("bcde")],
    ("Mixed_6a", "stages.1.0", ["0/Conv2d_1a_3x3 0", "1/Conv2d_0a_1x1 1.0", "1/Conv2d_0b_3x3 1.1", "1/Conv2d_1a_3x3 1.2"]),
    *[(f"Mixed_6{letter}", f"stages.1.{i}", B_V4) for i, letter in enumerate("bcdefgh", start=1)],
    ("Mixed_7a", "stages.2.0", ["0/Conv2d_0a_1x1 0.0", "0/Conv2d_1a_3x3 0.1", "1/Conv2d_0a_1x1 1.0", "1/Conv2d_0b_1x7 1.1",
                                "1/Conv2d_0c_7x1 1.2", "1/Conv2d_1a_3x3 1.3"]),
    *[(f"Mixed_7{letter}", f"stages.2.{i}", C_V4) for i, letter in enumerate("bcd", start=1)],
]  # fmt: skip
A_RESNET = [
    "0/Conv2d_1x1 0",
    "1/Conv2d_0a_1x1 1.0",
    "1/Conv2d_0b_3x3 1.1",
    "2/Conv2d_0a_1x1 2.0",
    "2/Conv2d_0b_3x3 2.1",
    "2/Conv2d_0c_3x3 2.2",
]
B_RESNET = ["0/Conv2d_1x1 0", "1/Conv2d_0a_1x1 1.0", "1/Conv2d_0b_1x7 1.1", "1/Conv2d_0c_7x1 1.2"]
C_RESNET = ["0/Conv2d_1x1 0", "1/Conv2d_0a_1x1 1.0", "1/Conv2d_0b_1x3 1.1", "1/Conv2d_0c_3x1 1.2"]
SLIM_RESNET_V2 = [
    *STEM,
    ("Conv2d_3b_1x1", "stem.4", []),
    ("Conv2d_4a_3x3", "stem.5", []),
    ("Mixed_5b", "stages.0.0", ["0/Conv2d_1x1 0", "1/Conv2d_0a_1x1 1.0", "1/Conv2d_0b_5x5 1.1", "2/Conv2d_0a_1x1 2.0",
                                "2/Conv2d_0b_3x3 2.1", "2/Conv2d_0c_3x3 2.2", "3/Conv2d_0b_1x1 3.1"]),
    *[(f"Repeat/block35_{i}", f"stages.0.{i}.branches", A_RESNET) for i in range(1, 11)],
    ("Mixed_6a", "stages.1.0", ["0/Conv2d_1a_3x3 0", "1/Conv2d_0a_1x1 1.0", "1/Conv2d_0b_3x3 1.1", "1/Conv2d_1a_3x3 1.2"]),
    *[(f"Repeat_1/block17_{i}", f"stages.1.{i}.branches", B_RESNET) for i in range(1, 21)],
    ("Mixed_7a", "stages.2.0", ["0/Conv2d_0a_1x1 0.0", "0/Conv2d_1a_3x3 0.1", "1/Conv2d_0a_1x1 1.0", "1/Conv2d_1a_3x3 1.1",
                                "2/Conv2d_0a_1x1 2.0", "2/Conv2d_0b_3x3 2.1", "2/Conv2d_1a_3x3 2.2"]),
    *[(f"Repeat_2/block8_{i}", f"stages.2.{i}.branches", C_RESNET) for i in range(1, 10)],
    ("Block8", "stages.2.10.branches", C_RESNET),
    ("Conv2d_7b_1x1", "tail", []),
]  # fmt: skip
SLIM = {"inception_v4": ("InceptionV4", SLIM_V4), "inception_resnet_v2": ("InceptionResnetV2", SLIM_RESNET_V2)}


def slim_variables(name: str, model: nn.Module, background: bool) -> dict[str, np.ndarray]:
    """Write a network of ours as the official code would have saved it."""
    root, scopes = SLIM[name]
    own = model.state_dict()
    variables: dict[str, np.ndarray] = {"global_step": np.array(7)}

    def put_unit(scope: str, unit: str) -> None:
        variables[f"{root}/{scope}/weights"] = own[f"{unit}.conv.weight"].permute(2, 3, 1, 0).numpy()
        variables[f"{root}/{scope}/weights/RMSProp"] = np.zeros(1)
        for theirs, ours in (("beta", "bias"), ("moving_mean", "running_mean"), ("moving_variance", "running_var")):
            variables[f"{root}/{scope}/BatchNorm/{theirs}"] = own[f"{unit}.bn.{ours}"].numpy()

    def put_linear(scope: str, layer: str) -> None:
        weight, bias = own[f"{layer}.weight"], own[f"{layer}.bias"]
        if background:
            weight, bias = torch.cat([torch.full_like(weight[:1], 9), weight]), torch.cat([torch.full_like(bias[:1], 9), bias])
        variables[f"{root}/{scope}/weights"], variables[f"{root}/{scope}/biases"] = weight.t().numpy(), bias.numpy()

    for scope, block, units in scopes:
        if not units:
            put_unit(scope, block)
        for pair in units:
            theirs, ours = pair.split()
            put_unit(f"{scope}/Branch_{theirs}", f"{block}.branch{ours}")
        if block.endswith(".branches"):
            up = block.replace("branches", "up")
            variables[f"{root}/{scope}/Conv2d_1x1/weights"] = own[f"{up}.weight"].permute(2, 3, 1, 0).numpy()
            variables[f"{root}/{scope}/Conv2d_1x1/biases"] = own[f"{up}.bias"].numpy()
    put_linear("Logits/Logits", "head.fc")
    if any(key.startswith("aux.") for key in own):
        put_unit("AuxLogits/Conv2d_1b_1x1", "aux.conv1")
        put_unit("AuxLogits/Conv2d_2a" + ("" if name == "inception_v4" else "_5x5"), "aux.conv2")
        put_linear("AuxLogits/" + ("Aux_logits" if name == "inception_v4" else "Logits"), "aux.fc")
    return dict(sorted(variables.items(), key=lambda item: item[0][::-1]))  # a checkpoint promises no order


def slim_source(name: str, **options: Any) -> Any:
    model = randomise_norms(BUILDERS[name](**NARROW, **options))
    for key, tensor in model.state_dict().items():
        if key.endswith("bn.weight"):
            tensor.fill_(1)
    return model


@pytest.mark.parametrize("name", list(BUILDERS))
@pytest.mark.parametrize("aux", [False, True])
def test_a_slim_checkpoint_gives_the_network_back(name: str, aux: bool) -> None:
    source = slim_source(name, aux=aux)
    model = randomise_norms(BUILDERS[name](**NARROW, aux=aux))
    model.load_state_dict(from_slim(slim_variables(name, source, background=True), model, drop_background=True))
    taken = model.state_dict()
    for key, tensor in source.state_dict().items():
        assert torch.equal(taken[key], tensor), key
    assert torch.equal(logits(model, images(1, 3, 75, 75)), logits(source, images(1, 3, 75, 75)))


def test_an_auxiliary_head_on_one_side_only_is_no_hindrance() -> None:
    source = slim_source("inception_v4", aux=True)
    model = inception_v4(**NARROW)
    model.load_state_dict(from_slim(slim_variables("inception_v4", source, background=False), model))
    with_head = inception_v4(**NARROW, aux=True)
    before = with_head.state_dict()["aux.conv1.conv.weight"].clone()
    with_head.load_state_dict(from_slim(slim_variables("inception_v4", slim_source("inception_v4"), background=False), with_head))
    assert torch.equal(with_head.state_dict()["aux.conv1.conv.weight"], before)


def test_a_slim_checkpoint_fills_a_network_without_classifier() -> None:
    source = slim_source("inception_v4")
    headless = inception_v4(num_classes=0, **NARROW)
    headless.load_state_dict(from_slim(slim_variables("inception_v4", source, background=True), headless, drop_background=True))
    x = images(1, 3, 75, 75)
    assert torch.equal(logits(headless, x), source.forward_head(source.forward_features(x), pre_logits=True))


def test_names_without_the_networks_scope_and_with_gamma_are_taken_too() -> None:
    source = slim_source("inception_v4")
    variables = {key.removeprefix("InceptionV4/"): value for key, value in slim_variables("inception_v4", source, background=False).items()}
    variables["Conv2d_1a_3x3/BatchNorm/gamma"] = np.full(8, 3, np.float32)
    taken = from_slim(variables, source)
    assert torch.equal(taken["stem.0.bn.weight"], torch.full((8,), 3.0))
    assert torch.equal(taken["stem.1.bn.weight"], torch.ones(8))


@pytest.mark.parametrize(("classes", "given"), [(1000, False), (10, False), (1001, True)])
def test_the_background_class_is_dropped_only_when_asked(classes: int, given: bool) -> None:
    source = slim_source("inception_v4")
    variables = slim_variables("inception_v4", source, background=True)
    model = inception_v4(num_classes=classes, **NARROW)
    said = r"leaves out the first of 1001 classes; the checkpoint has 1001 and the network 1001\. Leave it out\."
    if not given:
        said = rf'has 1001 classes, of which the first is "background", and the network has {classes}\. Load it with drop_background=True'
    with pytest.raises(CheckpointError, match=said):
        from_slim(variables, model, drop_background=given)


def test_all_1001_classes_can_be_kept_and_1000_have_no_background() -> None:
    source = slim_source("inception_v4")
    model = inception_v4(num_classes=1001, **NARROW)
    taken = from_slim(slim_variables("inception_v4", source, background=True), model)
    assert torch.equal(taken["head.fc.weight"][1:], source.head.fc.weight)
    with pytest.raises(CheckpointError, match=r"`drop_background` leaves out the first of 1001 classes; the checkpoint has 1000"):
        from_timm(to_timm(source), source, drop_background=True)
    timms = {**to_timm(source), "last_linear.weight": torch.zeros(1001, source.num_features), "last_linear.bias": torch.zeros(1001)}
    assert len(from_timm(timms, source, drop_background=True)["head.fc.bias"]) == 1000
    with pytest.raises(CheckpointError, match="1001 classes"):
        from_timm(timms, source)


def test_weights_of_another_network_are_refused_with_the_tensors_name() -> None:
    model = inception_v4(**NARROW)
    tensors = to_timm(model)
    with pytest.raises(CheckpointError, match=r'"stages\.1\.20\.up\.weight" is no tensor of inception_v4|is no tensor of inception_v4'):
        to_timm(inception_resnet_v2(variant="paper", **NARROW))
    with pytest.raises(CheckpointError, match=r'"fc\.weight" is no tensor of inception_v4 or of the released inception_resnet_v2\.'):
        from_timm({"fc.weight": torch.zeros(1)}, model)
    with pytest.raises(
        CheckpointError, match=r'the network lacks the tensor "stages\..*"\. The network must have the published variant and `depths`'
    ):
        from_timm(tensors, inception_v4(depths=(4, 7, 2), **NARROW))
    del tensors["features.0.conv.weight"]
    with pytest.raises(CheckpointError, match=r'the checkpoint lacks the tensor "stem\.0\.conv\.weight"'):
        from_timm(tensors, model)
    with pytest.raises(
        CheckpointError, match=r'the tensor "stem\.0\.bn\.weight" has shape \(8,\) in the checkpoint and \(16,\) in the network'
    ):
        from_timm(to_timm(model), inception_v4(width_mult=0.5))
    variables = slim_variables("inception_v4", model, background=False)
    with pytest.raises(CheckpointError, match=r"the checkpoint has 149 convolutions, the network has 244"):
        from_slim(variables, inception_resnet_v2(**NARROW))
    del variables["InceptionV4/Mixed_5b/Branch_0/Conv2d_0a_1x1/BatchNorm/moving_mean"]
    with pytest.raises(CheckpointError, match=r'the checkpoint lacks the tensor "stages\.0\.0\.branch0\.bn\.running_mean"'):
        from_slim(variables, model)
