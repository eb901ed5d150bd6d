"""Probes: what they compute on features made by hand, that they leave the backbone alone, and what they refuse."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support import same

import retinue
from retinue.data import Data, few_labels
from retinue.errors import ArgumentError
from retinue.models import LayerProbe, tiny, untrained
from retinue.train import Supervised, knn, linear, probe
from retinue.train.probe import features


@pytest.fixture(scope="module")
def digits() -> Data:
    return retinue.data.open("digits", input_size=16, train_images=200, test_images=60)


def network() -> Any:
    torch.manual_seed(0)
    return retinue.create_model("small_convnet", widths=[8, 8, 16], num_classes=10, in_chans=1, input_size=16)


def test_neighbours_vote_by_their_cosine() -> None:
    train = torch.tensor([[1.0, 0.0], [1.0, 0.2], [0.0, 3.0]])
    labels = torch.tensor([0, 0, 1])
    near, far = torch.tensor([[5.0, 0.1]]), torch.tensor([[0.1, 0.2]])
    assert knn(train, labels, near, 3).tolist() == [0]
    assert knn(train, labels, far, 1).tolist() == [1]
    # one at cosine 0.894 outweighs two at 0.447 and 0.614: exp(0.894 / 0.07) against exp(0.447 / 0.07) + exp(0.614 / 0.07)
    assert knn(train, labels, far, 3).tolist() == [1]
    assert math.exp(0.894 / 0.07) > math.exp(0.447 / 0.07) + math.exp(0.614 / 0.07)


def test_the_linear_probe_finds_the_direction_that_matters() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, generator=generator)
    y = (x[:, 2] > 0).long()
    fitted = linear(x[:100] * 100 + 7, y[:100], x[100:200] * 100 + 7, y[100:200])
    assert fitted.score((x[200:] * 100 + 7).numpy(), y[200:].numpy()) > 0.93


def test_features_are_those_before_the_classifier(digits: Data) -> None:
    model = network()
    found = features(model, digits.test)
    assert found.shape == (60, 16)
    images = digits.preprocessing.normalize(digits.test.images())
    torch.testing.assert_close(model.eval().forward_head(model.forward_features(images), pre_logits=True), found)
    assert model.training is False


def test_few_labels_are_nested_and_as_many_of_each_class(digits: Data) -> None:
    one, ten = (few_labels(digits, per_class=count).train for count in (1, 10))
    assert one.labels.bincount().tolist() == [1] * 10
    assert ten.labels.bincount().tolist() == [10] * 10
    assert set(one.positions.tolist()) < set(ten.positions.tolist())
    shares = few_labels(digits, share=0.5).train.labels.bincount() / digits.train.labels.bincount()
    assert ((shares - 0.5).abs() < 0.05).all()
    assert few_labels(digits, per_class=3, seed=1).train.positions.tolist() != few_labels(digits, per_class=3).train.positions.tolist()


def test_few_labels_that_cannot_be_are_refused(digits: Data) -> None:
    with pytest.raises(ArgumentError, match="`share` or `per_class`, and one of them only"):
        few_labels(digits)
    with pytest.raises(ArgumentError, match=r"`share` must lie in \(0, 1\], got 10"):
        few_labels(digits, share=10)
    with pytest.raises(ArgumentError, match="`per_class` must be at least 1, got 0"):
        few_labels(digits, per_class=0)
    with pytest.raises(ArgumentError, match=r'class "0" has \d+ training images, and 500 are asked for\. Take fewer'):
        few_labels(digits, per_class=500)


def test_a_probe_of_a_trained_network_beats_one_from_scratch(digits: Data, tmp_path: Path) -> None:
    run = retinue.fit(network(), Supervised(), digits, epochs=20, lr=0.01, progress=False)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    settings: dict[str, Any] = {"shares": (0.1, 1.0), "steps": 3, "lrs": (3e-3, 1e-3), "progress": False}
    table = probe(run.model, digits, run_dir=tmp_path, **settings)
    assert list(table) == [f"{method}, {share} %" for method in ("knn", "linear", "finetune") for share in (10, 100)]
    assert [row["images"] for row in table.values()] == [len(few_labels(digits, share=0.1).train), len(digits.train)] * 3
    for name, row in table.items():
        assert row["pre-trained"] > row["from scratch"] + 0.1 or name.startswith("finetune"), name
        assert 0 <= row["from scratch"] <= 1
    assert same(dict(run.model.state_dict()), before)
    again = probe(run.model, digits, run_dir=tmp_path, **settings)  # read back
    assert again == table


def test_without_a_baseline_only_the_network_itself_is_measured(digits: Data) -> None:
    table = probe(network(), digits, methods=("knn",), shares=(1.0,), baseline=False)
    assert list(table["knn, 100 %"]) == ["pre-trained", "images"]


def test_an_untrained_twin_has_other_weights_and_the_same_shape() -> None:
    for kind in ("ours", "bare"):
        model = tiny(kind)
        torch.manual_seed(5)
        twin = untrained(model)
        assert list(twin.state_dict()) == list(model.state_dict())
        weights = [name for name, p in model.named_parameters() if p.ndim > 1]
        assert not any(torch.equal(twin.state_dict()[name], model.state_dict()[name]) for name in weights)


@pytest.mark.parametrize(("kind", "layer"), [("linear", None), ("mlp", "stages.0"), ("conv", "stages.0"), ("linear", "stages.1")])
def test_a_layer_probe_learns_and_leaves_the_backbone_alone(kind: Any, layer: str | None) -> None:
    digits = retinue.data.open("digits", input_size=16, train_images=200, test_images=60, val_fraction=0.0)
    backbone = network()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    model = LayerProbe(backbone, layer, kind, num_classes=10, input_size=16)
    first = retinue.evaluate(model, digits.test)["loss"]
    run = retinue.fit(model, Supervised(), digits, epochs=30, lr=0.01, progress=False)
    assert retinue.evaluate(run.model, digits.test)["loss"] < first
    assert same(dict(backbone.state_dict()), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_parameters_of_the_papers_probes() -> None:
    def learns(model: torch.nn.Module) -> int:
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    net = retinue.create_model("network_in_network", num_classes=4)
    assert learns(LayerProbe(net, "stages.0", "conv", 10)) == 408_586
    assert learns(LayerProbe(net, "stages.0", "mlp", 10)) == 2_500_410
    alex = retinue.create_model("alexnet", num_classes=4, hidden=8)
    sizes = {"stem.2": 12 * 12 * 64, "stages.0": 7 * 7 * 192, "stages.1": 5 * 5 * 384, "stages.2": 6 * 6 * 256, "stages.3": 6 * 6 * 256}
    for layer, inputs in sizes.items():
        assert LayerProbe(alex, layer, "linear", 1000, input_size=224).num_features == inputs


def test_a_layer_probe_is_built_again_by_its_run(digits: Data, tmp_path: Path) -> None:
    model = LayerProbe(network(), "stages.1", "linear", 10, input_size=16)
    run = retinue.fit(model, Supervised(), digits, max_steps=2, run_dir=tmp_path, progress=False)
    loaded = retinue.load(tmp_path)
    images = digits.preprocessing.normalize(digits.test.images(range(4)))
    torch.testing.assert_close(loaded(images), run.model(images))


def test_layers_of_a_transformer_are_tokens() -> None:
    vit = tiny("timm_vit")
    names = [name for name, _ in vit.named_modules() if name.startswith("blocks.") and name.count(".") == 1]
    for kind in ("linear", "conv"):
        assert LayerProbe(vit, names[0], kind, 5, input_size=32)(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


def test_probes_that_cannot_be_are_refused(digits: Data) -> None:
    with pytest.raises(ArgumentError, match=r'no method is called "kn"\. Did you mean knn'):
        probe(network(), digits, methods=("kn",))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r'no layer is called "stage\.0"\. Did you mean stages\.0'):
        LayerProbe(network(), "stage.0")
    with pytest.raises(ArgumentError, match=r'no kind is called "lin"'):
        LayerProbe(network(), None, "lin")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r'kind="conv" needs a layer that gives maps'):
        LayerProbe(network(), None, "conv", input_size=16)
    with pytest.raises(ArgumentError, match="`steps` must be at least 1"):
        probe(network(), digits, steps=0)
    with pytest.raises(ArgumentError, match="`neighbours` must be at least 1, got 0"):
        knn(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), 0)
