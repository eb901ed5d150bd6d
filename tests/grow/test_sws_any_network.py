"""SWS for any network that repeats residual blocks: how they are found, what is shared, descendants of other depths, twelve networks."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support import images, parameters
from torch import Tensor, nn
from torch.testing import assert_close
from twelve import FITS, NETWORKS, network

from retinue.errors import ArgumentError
from retinue.grow.sws import descend, initialise_descendant, load_learngene, save_learngene, share_stages
from retinue.models import config, create_model
from retinue.models.stage_resizing import Run
from retinue.models.stage_search import find_runs, numbered, trial_images
from retinue.models.stage_sharing import cut

HERE = FITS["sws"]


class Residual(nn.Module):
    """A block as a user would write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x))


class SideBySide(nn.Module):
    """Two equal blocks that see the same."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Residual(3), Residual(3)])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[0](x) + self.blocks[1](x)


class ByHand(nn.Module):
    """Calls its blocks one by one, so that nobody can change how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.block1, self.block2 = Residual(3), Residual(3)
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block2(self.block1(x)).mean((2, 3)))


# --- any network that repeats blocks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_twelve_networks_share_and_descend_or_say_why_not(name: str) -> None:
    model = network(name)
    if HERE[name]:
        began = time.process_time()
        with pytest.raises(ArgumentError, match=f"share_stages: [A-Z][A-Za-z]+ {HERE[name]}.*Take a network whose stages repeat a block"):
            share_stages(model)
        assert time.process_time() - began < 1
        return
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    shared: Any = share_stages(model)
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in before.items())
    assert parameters(shared) < parameters(model)
    x = images(2, 3, 32, 32)
    same = descend(shared).eval()
    assert_close(same(x), shared.eval()(x), atol=1e-5, rtol=1e-5)
    assert parameters(same) == parameters(model)
    deeper = descend(shared, [count + 1 for run in shared.stage_plan for count in run["stages"]]).eval()
    assert parameters(deeper) > parameters(model)
    assert deeper(x).shape == (2, 10)
    if config(model) is not None:
        for made in (shared, deeper):
            found = json.loads(json.dumps(config(made)))
            again = create_model(found["name"], **found["arguments"]).eval()
            again.load_state_dict(made.state_dict())
            assert torch.equal(again(x), made(x))


DEEP = {
    "resnet": ("timm:resnet18", {"layers": [3, 3, 2, 2], "channels": [8, 8, 16, 16]}, [("layer1", 1, [2]), ("layer2", 1, [2])]),
    "regnet": ("timm:regnety_002", {}, [("s3", 1, [3]), ("s4", 1, [3, 3])]),
    "swin": (
        "timm:swin_tiny_patch4_window7_224", {"embed_dim": 8, "depths": (2, 4), "num_heads": (1, 2)},
        [("layers.0.blocks", 0, [2]), ("layers.1.blocks", 0, [4])],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
def test_deeper_networks_of_kinds_that_the_twelve_refuse(name: str) -> None:
    kind, options, runs = DEEP[name]
    torch.manual_seed(0)
    model = create_model(kind, num_classes=10, input_size=64, **options)
    shared: Any = share_stages(model).eval()
    found = [(run["container"], run["first"], run["stages"]) for run in shared.stage_plan]
    assert found == runs
    x = images(2, 3, 64, 64)
    assert_close(descend(shared).eval()(x), shared(x))
    deeper: Any = descend(shared, [count + 1 for run in shared.stage_plan for count in run["stages"]]).eval()
    assert deeper(x).shape == (2, 10)
    if name == "swin":
        assert [max(block.shift_size) > 0 for block in deeper.layers[0].blocks] == [False, True, False]  # windows go on alternating
    if name == "regnet":
        assert [key for key, _ in deeper.s3.named_children()] == ["b1", "b2", "b3", "b4", "b5"]


def test_running_statistics_stay_each_layers_own() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), Residual(4), Residual(4), Residual(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    shared: Any = share_stages(net, input_size=8).train()
    shared(2 + images(8, 1, 8, 8))
    blocks = shared[1:4]
    assert blocks[0].conv.weight is blocks[2].conv.weight
    assert not torch.equal(blocks[0].norm.running_mean, blocks[2].norm.running_mean)
    deeper: Any = descend(shared, 5)
    assert [type(part).__name__ for part in deeper] == ["Conv2d", *["Residual"] * 5, "AdaptiveAvgPool2d", "Flatten", "Linear"]
    assert [key for key, _ in deeper.named_children()] == [str(i) for i in range(9)]
    means = [deeper[1 + i].norm.running_mean for i in range(5)]
    assert torch.equal(means[1], blocks[1].norm.running_mean)
    assert torch.equal(means[2], means[4])
    assert torch.equal(means[2], blocks[2].norm.running_mean)
    assert "1.conv.weight" in shared.state_dict()
    assert "2.conv.weight" not in shared.state_dict()
    assert "2.norm.running_mean" in shared.state_dict()


def test_two_runs_in_one_list_keep_their_places() -> None:
    torch.manual_seed(0)
    parts = [Residual(3), Residual(3), nn.Conv2d(3, 5, 1), Residual(5), Residual(5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)]
    shared: Any = share_stages(nn.Sequential(*parts), input_size=8).eval()
    assert [run["first"] for run in shared.stage_plan] == [0, 3]
    x = images(2, 3, 8, 8)
    deeper: Any = descend(shared, [3, 1]).eval()
    assert [getattr(part, "conv", part).weight.shape[0] for part in deeper[:5]] == [3, 3, 3, 5, 5]
    assert torch.equal(deeper[4].conv.weight, shared[3].conv.weight)
    again: Any = descend(shared, [1, 3]).eval()
    y = again[:5](x)
    assert_close(y, shared[3](shared[3](shared[3](shared[2](shared[0](x))))))


def test_only_residual_blocks_that_follow_one_another_count() -> None:
    plain = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(3)))
    assert find_runs(plain, images(2, 3, 8, 8)) == []
    assert find_runs(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.zeros(2, 4)) == []
    assert find_runs(nn.Sequential(Residual(3), Residual(3)), images(2, 3, 8, 8)) == [("", 0, [2])]
    assert find_runs(ByHand(), images(2, 3, 8, 8)) == [("", 0, [2])]
    assert find_runs(SideBySide(), images(2, 3, 8, 8)) == []
    assert (numbered("b12"), numbered("norm")) == (("b", 12), ("norm", -1))


def test_a_fresh_network_of_a_descendants_kind_repeats_no_weights() -> None:
    shared: Any = share_stages(network("convnext"), [2, 4, 2])
    deeper = descend(shared, [2, 6, 2])
    made = config(deeper)
    assert made is not None
    fresh: Any = create_model(made["name"], **made["arguments"])
    weights = [block.mlp.fc1.weight for block in fresh.stages[2].blocks]
    assert len(weights) == 6
    assert len({float(weight.detach().sum()) for weight in weights}) == 6
    assert float(weights[5].detach().std()) == pytest.approx(float(weights[0].detach().std()), rel=0.2)


def test_runs_are_cut_into_stages_of_about_three_layers() -> None:
    assert cut([Run("blocks", 0, [16])], None)[0].stages == [4, 3, 3, 3, 3]
    assert [run.stages for run in cut([Run("a", 0, [3]), Run("b", 0, [9]), Run("c", 0, [2])], None)] == [[3], [3, 3, 3], [2]]
    with pytest.raises(ArgumentError, match=r"must cut the runs of equal blocks \(6 in blocks\), none across two, got \[2, 3\]"):
        share_stages(network("vit"), [2, 3])
    with pytest.raises(ArgumentError, match=r"none across two, got \[4, 4\]"):
        share_stages(network("convnext"), [4, 4])


def test_a_learngene_of_any_network_by_name_goes_through_a_file(tmp_path: Path) -> None:
    model, x = share_stages(network("convnext")).eval(), images(2, 3, 32, 32)
    save_learngene(model, tmp_path / "learngene.safetensors")
    assert torch.equal(load_learngene(tmp_path / "learngene.safetensors")(x), model(x))
    a, b = (initialise_descendant(one, 9) for one in (tmp_path / "learngene.safetensors", model))
    assert torch.equal(a.eval()(x), b.eval()(x))
    shared = share_stages(nn.Sequential(Residual(3), Residual(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)))
    with pytest.raises(ArgumentError, match="nobody could build your own Sequential from a file"):
        save_learngene(shared, tmp_path / "b.safetensors")


def test_networks_by_name_are_built_on_the_meta_device() -> None:
    with torch.device("meta"):
        model: Any = create_model("stage_shared", backbone="timm:test_convnext", stages=[2, 2, 2, 2], num_classes=4, input_size=32)
        assert [run["stages"] for run in model.stage_plan] == [[2], [2, 2], [2]]
        assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 4)


def test_what_only_transformers_have_and_other_mistakes_are_named() -> None:
    shared = share_stages(network("convnext"), [2, 4, 2])
    with pytest.raises(ArgumentError, match="`input_size` is for vision transformers with a position embedding, and this is a ConvNeXt"):
        initialise_descendant(shared, input_size=64)
    with pytest.raises(ArgumentError, match=r'no option for a ConvNeXt is called "official_pooling"'):
        initialise_descendant(shared, official_pooling=True)
    with pytest.raises(ArgumentError, match=r"stages of different runs differ in shape and must keep their order, got the map \[1, 0, 2\]"):
        descend(shared, layer_map=[1, 0, 2], any_order=True)
    with pytest.raises(ArgumentError, match=r"ByHand does not run its blocks from a list one after the other.*nn.Sequential"):
        descend(share_stages(ByHand()), [3])
    with pytest.raises(ArgumentError, match=r"no trial image passed through Linear .*`input_size`"):
        trial_images(nn.Linear(7, 2))
    with pytest.raises(ArgumentError, match=r"`plan` names more blocks than ConvNeXt has"):
        create_model("stage_shared", backbone="timm:test_convnext", plan=[{"container": "stages.1.blocks", "first": 0, "stages": [9]}])
    with pytest.raises(ArgumentError, match=r"`plan` must be a network's `stage_plan`"):
        create_model("stage_shared", backbone="timm:test_convnext", plan=[{"container": "stages.1.blocks"}])
    with pytest.raises(ArgumentError, match=r"`depths` must be the layers of each of the 3 runs, 0 or more, got \[2, 3\]"):
        create_model("stage_descendant", backbone="timm:test_convnext", depths=[2, 3])
