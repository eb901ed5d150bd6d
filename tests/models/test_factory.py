"""One door to all networks: names, sizes, options, what a checkpoint can rebuild, and what is refused."""

import inspect
import json
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import images
from torch import nn

import retinue
from retinue.errors import ArgumentError
from retinue.models import config, create_model, factory, list_models, register
from retinue.models.factory import image_size
from retinue.models.protocol import PROTOCOL

OWN = list_models()


def on_meta(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return create_model(name, **options)


@pytest.mark.parametrize("name", OWN)
def test_every_network_of_ours_is_documented_and_known_to_timm(name: str) -> None:
    entry = factory._networks[name]
    assert inspect.getdoc(entry.build)
    assert timm.is_model(f"retinue_{name}")
    assert {"input_size", "mean", "std", "interpolation", "crop_pct", "first_conv", "classifier"} <= set(entry.cfg)
    channels = entry.cfg["input_size"][0]
    assert len(entry.cfg["mean"]) == len(entry.cfg["std"]) == channels
    parameters = inspect.signature(entry.build).parameters.items()
    defaults = {argument: one.default for argument, one in parameters if one.kind is not inspect.Parameter.VAR_KEYWORD}
    assert inspect.Parameter.empty not in defaults.values(), "every option has a default"
    assert defaults["input_size"] is None


@pytest.mark.parametrize("name", ["cifar_resnet", "inception_resnet_v1", "mlp", "resnet20", "small_convnet"])
def test_networks_of_ours_are_built_and_rebuilt_by_both_doors(name: str) -> None:
    model = on_meta(name, num_classes=5, in_chans=1, input_size=32)
    assert all(hasattr(model, part) for part in (*PROTOCOL, "adaptation", "in_chans"))
    assert (model.num_classes, model.in_chans) == (5, 1)
    assert model(torch.empty(2, 1, 32, 32, device="meta")).shape == (2, 5)
    made = json.loads(json.dumps(config(model)))
    again = on_meta(made["name"], **made["arguments"])
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }
    with torch.device("meta"):
        theirs = timm.create_model(f"retinue_{name}", num_classes=5, in_chans=1, input_size=32)
    assert list(theirs.state_dict()) == list(model.state_dict())
    assert theirs.pretrained_cfg["architecture"] == name
    first = model.pretrained_cfg["first_conv"]
    assert first is None or isinstance(model.get_submodule(first), nn.Conv2d)
    assert isinstance(model.get_submodule(model.pretrained_cfg["classifier"]), nn.Linear)
    assert on_meta(name, num_classes=0, in_chans=1, input_size=32).num_classes == 0


def test_both_doors_give_the_same_network() -> None:
    nets: list[Any] = []
    for door in (
        lambda: retinue.create_model("small_convnet", num_classes=3, in_chans=1, widths=[4, 5]),
        lambda: timm.create_model("retinue_small_convnet", num_classes=3, in_chans=1, widths=[4, 5]),
    ):
        torch.manual_seed(0)
        nets.append(door().eval())
    x = images(2, 1, 9, 9)
    assert torch.equal(nets[0](x), nets[1](x))
    assert timm.create_model("retinue_mlp", drop_path_rate=None).num_classes == 10, "timm leaves out options that are None"


def test_timms_data_settings_are_read_from_ours() -> None:
    settings = timm.data.resolve_model_data_config(create_model("cifar_resnet", depth=8))
    assert (settings["input_size"], settings["crop_pct"]) == ((3, 32, 32), 1.0)
    assert settings["mean"] == (0.485, 0.456, 0.406)
    overlaid = timm.create_model("retinue_cifar_resnet", depth=8, pretrained_cfg_overlay={"mean": (0.5, 0.5, 0.5)})
    assert overlaid.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)


def test_names_are_listed_by_pattern() -> None:
    assert {"cifar_resnet", "mlp", "resnet20", "small_convnet"} <= set(list_models())
    assert list_models() == sorted(list_models())
    assert list_models("resnet2*") == ["resnet20"]
    assert list_models("nothing*") == []
    assert "timm:resnet18" in list_models("timm:resnet1*")
    assert not any("retinue" in name for name in list_models("timm:*"))
    assert retinue.list_models is list_models


def test_the_sizes_that_a_side_a_pair_and_a_list_mean() -> None:
    assert image_size(None) is None
    assert image_size(32) == image_size((32, 32)) == image_size([32, 32]) == (32, 32)
    assert image_size((3, 5)) == (3, 5)
    assert create_model("mlp", input_size=[4, 6], in_chans=1).shape == (1, 4, 6)


@given(
    st.integers(max_value=0)
    | st.booleans()
    | st.floats()
    | st.text(max_size=3)
    | st.lists(st.integers(1), max_size=4).filter(lambda pair: len(pair) != 2)
    | st.tuples(st.integers(1), st.integers(max_value=0) | st.floats() | st.none())
)
def test_anything_else_is_no_size(size: Any) -> None:
    with pytest.raises(
        ArgumentError, match=r"^`input_size` must be a positive side or a pair \(height, width\), got (.|\n)*\. Channels are `in_chans`\.$"
    ):
        image_size(size)


def test_wrong_names_are_answered_with_their_neighbours() -> None:
    with pytest.raises(
        ArgumentError,
        match=r'^create_model: no network is called "cifar_resnt"\. Did you mean cifar_resnet.*All names: retinue\.list_models\(\)\.$',
    ):
        create_model("cifar_resnt")
    with pytest.raises(ArgumentError, match=r'^create_model: "resnet18" is a network of timm, not ours\. Write "timm:resnet18"\.$'):
        create_model("resnet18")
    with pytest.raises(ArgumentError, match=r'^create_model: no network of timm is called "mlp"\.'):
        create_model("timm:mlp")


def test_wrong_numbers_are_refused() -> None:
    for value in (-1, 2.5, "10", True, None):
        with pytest.raises(ArgumentError, match=rf"^create_model: `num_classes` must be a whole number of at least 0, got {value!r}\.$"):
            create_model("mlp", num_classes=value)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"^create_model: `in_chans` must be a whole number of at least 1, got 0\.$"):
        create_model("mlp", in_chans=0)


def test_wrong_options_are_refused() -> None:
    for door in (create_model, lambda name, **options: timm.create_model(f"retinue_{name}", **options)):
        with pytest.raises(ArgumentError, match=r'^small_convnet: no option is called "width"\. Did you mean widths\?$'):
            door("small_convnet", width=3)
    with pytest.raises(
        ArgumentError, match=r"^create_model: small_convnet cannot be built with .*widths=5: 'int' object is not iterable\.$"
    ):
        create_model("small_convnet", widths=5)
    with pytest.raises(
        ArgumentError, match=r'^create_model: `act_layer` must be a JSON value \(timm takes layers by name, such as "gelu"\), got <class'
    ):
        create_model("timm:resnet18", act_layer=nn.GELU)
    named: Any = create_model("timm:resnet18", act_layer="gelu", input_size=32, layers=[1, 1, 1, 1], channels=[4, 4, 4, 4], stem_width=4)
    assert type(named.act1).__name__ == "GELU", "as the message says"


def test_weights_that_nobody_published_are_not_there() -> None:
    with pytest.raises(
        ArgumentError, match=r"^create_model: no weights were published for small_convnet\. Use pretrained=False; weights exist for"
    ):
        create_model("small_convnet", pretrained=True)


def test_registering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory, "_networks", dict(factory._networks))

    def forgetful(num_classes: int) -> nn.Module:
        return nn.Identity()

    with pytest.raises(TypeError, match=r"^register: forgetful must take in_chans, input_size$"):
        register(forgetful)

    @register(cfg={"input_size": (3, 8, 8)})
    def dotted_paper_net(*, num_classes: int = 2, in_chans: int = 3, input_size: Any = None, **options: Any) -> nn.Module:
        """Build a network for this test."""
        net: Any = create_model("small_convnet", num_classes=num_classes, in_chans=in_chans, widths=[options.get("any", 4)])
        return net

    model = create_model("dotted_paper_net", any=7, input_size=8)
    assert model.num_features == 7
    assert model.retinue_config["name"] == "dotted_paper_net"
    assert model.default_cfg["input_size"] == (3, 8, 8)
    assert timm.create_model("retinue_dotted_paper_net").num_classes == 2
    assert dotted_paper_net.__doc__ == "Build a network for this test."
    assert "dotted_paper_net" in list_models()
