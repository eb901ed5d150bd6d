import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retinue
from retinue.data import Data
from retinue.data.dataset import from_arrays
from retinue.errors import ArgumentError, DataError, ShapeError
from retinue.explain.faithfulness import area, iou
from retinue.explain.st_protopnet_localisation import LogProbabilities, class_heat, content_heat, localisation, outside_inside_ratio
from retinue.explain.st_protopnet_pictures import explain, figures, gallery
from retinue.explain.st_protopnet_push import hot_box, measure_fields, prune, push, table
from retinue.explain.st_protopnet_stages import fit_prototypes, push_epochs, stage_settings
from retinue.models.protopnet import ProtoPNet, STProtoPNet


@pytest.fixture(scope="module")
def digits() -> Data:
    return retinue.data.open("digits", train_images=120, test_images=60, val_fraction=0.0, seed=0)


def network(kind: Any = STProtoPNet, **options: Any) -> Any:
    torch.manual_seed(0)
    inner = retinue.create_model("small_convnet", widths=[8, 16], num_classes=10, in_chans=1, input_size=8)
    return kind(inner, 10, **{"prototypes_per_class": 2, "dim": 6, "in_chans": 1, "input_size": 8, **options})


@pytest.fixture(scope="module")
def pushed(digits: Data) -> Any:
    model = network()
    push(model, digits.train)
    model.classes, model.preprocessing = digits.classes, digits.preprocessing
    return model.eval()


def maps_of(model: Any, branch: Any, data: Data) -> Tensor:
    images = data.preprocessing.normalize(data.train.images())
    with torch.no_grad():
        return branch.embed(model.forward_features(images))


@pytest.mark.parametrize("similarity", ["cosine", "projection", "log"])
def test_after_the_push_every_prototype_is_the_best_patch_of_its_class(digits: Data, similarity: Any) -> None:
    model = network(similarity=similarity).eval()
    before = {kind: branch.nearness(maps_of(model, branch, digits)).detach() for kind, branch in model.branches.items()}
    for row in push(model, digits.train, batch_size=32):
        branch = model.branches[row.branch]
        z = maps_of(model, branch, digits)[row.image, :, row.place[0], row.place[1]]
        z = z if similarity == "log" else F.normalize(z, dim=0)
        assert torch.allclose(branch.prototypes[row.prototype], z, atol=1e-5)
        assert int(digits.train.labels[row.image]) == row.label == int(branch.owner[row.prototype])
        assert row.name == digits.train.name(row.image)
        own = before[row.branch][digits.train.labels == row.label, row.prototype]
        assert own.max().item() == pytest.approx(row.similarity, abs=1e-5)
        pixels = digits.preprocessing.normalize(digits.train.images([row.image]))
        seen = branch(branch.embed(model.forward_features(pixels)))
        assert seen.nearness[0, row.prototype].item() == pytest.approx(0.0 if similarity == "log" else 1.0, abs=1e-5)
        assert hot_box(seen.maps[:, row.prototype], (8, 8))[0].tolist() == list(row.box)
        assert torch.equal(branch.sources().pictures[row.prototype], digits.train.images([row.image])[0])


def test_the_push_is_in_evaluation_mode_and_leaves_modes_and_statistics_alone(digits: Data) -> None:
    model = network().train()
    kept = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    push(model, digits.train)
    assert model.training
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.backbone.state_dict().items())
    first = table(model)
    assert [row[:7] for row in push(model, digits.train)] == [row[:7] for row in first]  # a second push finds the same patches


def test_the_box_is_around_the_hottest_twentieth() -> None:
    heat = torch.zeros(2, 4, 4)
    heat[0, 0, 3] = 1
    assert hot_box(heat, (16, 16))[0].tolist() == [0, 12, 4, 16]
    assert hot_box(heat, (16, 16))[1].tolist() == [0, 0, 16, 16]  # the same everywhere


def test_fields_are_those_of_the_kernels() -> None:
    model = network()
    measure_fields(model)
    assert model.rows.tolist() == model.columns.tolist() == [[0, 3], [0, 5], [2, 7], [4, 8]]  # 3x3, then 3x3 with stride 2
    vit = STProtoPNet(retinue.models.tiny("timm_vit"), 3, 2, 6, input_size=32)
    measure_fields(vit)
    assert set(map(tuple, vit.rows.tolist())) == {(0, 32)}  # attention sees everything


def test_the_table_survives_a_checkpoint(pushed: Any) -> None:
    other = network()
    other.load_state_dict(pushed.state_dict())
    assert table(other) == table(pushed)


def test_long_names_keep_their_end() -> None:
    model = network()
    branch = model.branches["trivial"]
    sources = branch.sources()
    sources.names = ["x" * 300 + "/é.png"] * 20
    branch.place(branch.prototypes.detach(), sources)
    assert branch.sources().names[0].endswith("xxx/é.png")


def test_a_class_without_images_is_refused_at_the_push(digits: Data) -> None:
    few = digits.train.subset((digits.train.labels != 3).nonzero()[:, 0])
    with pytest.raises(DataError, match=r"push: there is no training image of 3\. Every prototype becomes a patch of its own class"):
        push(network(), few)
    with pytest.raises(ArgumentError, match=r"are no training patches yet\. Run push\(network, data\.train\) after training"):
        table(network())


class Means(nn.Module):
    """A network whose map is the image itself, so that vectors can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.num_features, self.num_classes, self.feature_info = 3, 0, []

    def forward_features(self, x: Tensor) -> Tensor:
        return x * self.scale

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x.mean((2, 3))

    def get_classifier(self) -> nn.Module:
        return nn.Identity()

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes


def test_pruning_by_hand_keeps_what_its_neighbours_speak_for(caplog: pytest.LogCaptureFixture) -> None:
    colours = {0: [255, 0, 0], 1: [0, 255, 0]}
    labels = [0] * 4 + [1] * 4
    images = torch.tensor([colours[label] for label in labels], dtype=torch.uint8).view(8, 3, 1, 1).repeat(1, 1, 4, 4)
    data = from_arrays(images, labels, val_fraction=0.0, test_fraction=0.0, split=["train"] * 8, mean=(0.0,) * 3, std=(1.0,) * 3)
    model: Any = ProtoPNet(Means(), 2, 2, 3, "cosine", input_size=4)
    branch = model.branches["plain"]
    with torch.no_grad():
        for layer in branch.addon:
            layer.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
        branch.prototypes.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0], [1, 0.1, 0]]))
        branch.last.weight.copy_(torch.arange(8.0).view(2, 4))
    model.retinue_config = {"name": "protopnet", "arguments": {"num_classes": 2}}
    kept = prune(model, data.train, k=3, tau=2)
    assert kept["plain"].tolist() == [True, False, True, False]
    assert branch.prototypes.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert branch.last.weight.tolist() == [[0, 2], [4, 6]]
    assert branch.identity.tolist() == [[True, False], [False, True]]
    assert model.retinue_config["arguments"]["prototypes_per_class"] == [[1, 1]]
    with torch.no_grad():
        branch.prototypes.copy_(torch.tensor([[1.0, 0, 0], [1, 0.1, 0]]))
    with caplog.at_level(logging.WARNING):
        assert prune(model, data.train, k=3, tau=2)["plain"].tolist() == [True, True]
    assert 'no plain prototype of class "1" has 2 of 3 neighbours of its class; the best one, with 0, stays.' in caplog.text
    with pytest.raises(ArgumentError, match=r"prune: `tau` and `k` must fulfil 1 <= tau <= k <= 8 images, got tau=4 and k=3"):
        prune(model, data.train, k=3, tau=4)


def test_when_there_is_a_push_and_how_the_rates_fall() -> None:
    assert push_epochs(120, 10, 100, 10) == [100, 110, 120]
    assert push_epochs(15, 0, 15, 10) == [15]
    assert push_epochs(30, 5, 20, 8) == [20, 28, 30]
    rates = {"backbone": 1e-4, "addon": 3e-3, "prototypes": 3e-3, "last": 1e-4}
    first = stage_settings("joint", rates, 1e-4, (0.2, 20))
    assert first["players"]["prototypes"] == {"lr": 3e-3, "weight_decay": 0.0}
    assert first["players"]["backbone"] == {"lr": 1e-4, "weight_decay": 1e-4}
    assert first["schedule_args"] == {"decay_rate": 0.2, "decay_epochs": 20}
    later = stage_settings("joint", rates, 1e-4, (0.2, 20), done=90)
    assert later["players"]["backbone"]["lr"] == pytest.approx(1e-4 * 0.2**4)
    assert later["schedule_args"]["decay_milestones"][:2] == [10, 30]
    assert set(stage_settings("last", rates, 1e-4, (0.2, 20))["players"]) == {"last"}
    assert stage_settings("warm", rates, 1e-4, (0.2, 20))["schedule"] == "constant"


SHORT: dict[str, Any] = {
    "options": {"prototypes_per_class": 2, "dim": 6}, "epochs": 4, "warm_epochs": 1, "push_start": 2, "push_every": 2, "last_epochs": 1,
    "decay": (0.5, 1), "prune": True, "k": 5, "tau": 1, "progress": False, "batch_size": 40,
}  # fmt: skip


def bare() -> nn.Module:
    torch.manual_seed(0)
    return retinue.create_model("small_convnet", widths=[8, 16], num_classes=10, in_chans=1, input_size=8)


def test_the_stages_give_a_run_that_goes_on_where_it_was_killed(digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = fit_prototypes(bare(), digits, run_dir=tmp_path / "whole", **SHORT)
    assert list(numbers) == ["warm", "joint-1", "push-1", "last-1", "joint-2", "push-2", "last-2", "pruned", "last-pruned"]
    whole: Any = retinue.load(tmp_path / "whole")
    assert sum(sum(branch.counts()) for branch in whole.branches.values()) == numbers["pruned"]["prototypes"]
    assert retinue.evaluate(whole, digits.test) == pytest.approx(numbers["last-pruned"])
    for row in table(whole):  # the last stage left the prototypes where the push had put them
        branch = whole.branches[row.branch]
        z = maps_of(whole, branch, digits)[row.image, :, row.place[0], row.place[1]]
        assert torch.allclose(branch.prototypes[row.prototype], F.normalize(z, dim=0), atol=1e-5)

    from retinue.explain import st_protopnet_stages as stages_module

    real, count = stages_module.fit, []

    class Killed(BaseException):
        pass

    def fit(*arguments: Any, **options: Any) -> Any:
        count.append(1)
        if len(count) == limit:
            raise Killed
        return real(*arguments, **options)

    monkeypatch.setattr(stages_module, "fit", fit)
    for limit in (4, 3):  # before the second joint stage; before the last layers of the pruned network
        count.clear()
        torch.manual_seed(limit)  # what the caller drew before must not matter
        with pytest.raises(Killed):
            fit_prototypes(bare(), digits, run_dir=tmp_path / "killed", **SHORT)
    limit = -1
    assert fit_prototypes(bare(), digits, run_dir=tmp_path / "killed", **SHORT) == numbers
    again = retinue.load(tmp_path / "killed").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.state_dict().items())


def test_what_the_stages_refuse(digits: Data) -> None:
    with pytest.raises(ArgumentError, match=r"0 <= warm_epochs < push_start <= epochs.* got warm_epochs=5, push_start=5, epochs=9"):
        fit_prototypes(bare(), digits, epochs=9, warm_epochs=5, push_start=5)
    with pytest.raises(ArgumentError, match=r'fit_prototypes: no player is called "backbon"\. Did you mean backbone'):
        fit_prototypes(bare(), digits, lr={"backbon": 1.0})
    with pytest.raises(ArgumentError, match=r"`decay` must be a factor in \(0, 1\] and a number of epochs, got \(2, 20\)"):
        fit_prototypes(bare(), digits, decay=(2, 20))
    with pytest.raises(ArgumentError, match=r"`tau` and `k` must fulfil 1 <= tau <= k <= 120 images, got tau=7 and k=6"):
        fit_prototypes(bare(), digits, prune=True, tau=7)


HEAT = torch.tensor([[[1.0, 0.8, 0.2], [0.6, 0.4, 0.0], [0.1, 0.0, 0.0]]])
MASK = torch.tensor([[[True, True, False], [True, True, False], [False, False, False]]])


def test_the_measures_of_the_page() -> None:
    assert content_heat(HEAT, MASK).item() == pytest.approx(0.7)
    assert outside_inside_ratio(HEAT, MASK).item() == pytest.approx(0.0857143, abs=1e-7)
    assert iou(HEAT, MASK).item() == 0.75
    assert area(torch.tensor([[0.9, 0.6, 0.3, 0.1, 0.1]])).item() == pytest.approx(0.375)


def test_empty_masks_are_skipped_and_counted_and_other_sizes_refused(pushed: Any, digits: Data) -> None:
    with pytest.warns(UserWarning, match=r"content_heat: 1 of 2 masks are empty; these images are skipped"):
        told = content_heat(HEAT.repeat(2, 1, 1), torch.cat([MASK, ~MASK & MASK]))
    assert told[0].item() == pytest.approx(0.7)
    assert math.isnan(told[1].item())
    with pytest.raises(ShapeError, match=r"content_heat: `masks` must be of shape \(1, 3, 3\), one for each map.* got \(1, 2, 3\)"):
        content_heat(HEAT, MASK[:, :2])
    x = digits.preprocessing.normalize(digits.test.images([0, 1, 2]))
    labels = digits.test.labels[:3]
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[:2, 2:6, 2:6] = True
    found = localisation(pushed, x, labels, masks, steps=4)
    assert found["skipped"] == 1
    two = localisation(pushed, x[:2], labels[:2], masks[:2], steps=4)
    assert found == pytest.approx({**two, "skipped": 1.0})
    heat = class_heat(pushed, x[:2], labels[:2])
    assert found["CH"] == pytest.approx(heat[:, 2:6, 2:6].mean().item(), abs=1e-6)
    with pytest.raises(ShapeError, match=r"localisation: `masks` must be of shape \(3, 8, 8\).* got \(3, 4, 4\)"):
        localisation(pushed, x, labels, masks[:, ::2, ::2])
    with pytest.raises(ArgumentError, match=r"localisation: there is no image\. Give images with masks"):
        localisation(pushed, x[:0], labels[:0], masks[:0])


def test_the_heat_is_the_mean_of_the_class_and_of_the_branches(pushed: Any, digits: Data) -> None:
    x = digits.preprocessing.normalize(digits.test.images([5]))
    label = digits.test.labels[5:6]
    told = pushed(x, return_all=True)
    own = 2 * int(label) + torch.arange(2)
    mean = (told["maps_t"][0, own].mean(0) + told["maps_s"][0, own].mean(0)) / 2
    large = F.interpolate(mean[None, None], size=(8, 8), mode="bicubic", align_corners=False)[0, 0]
    expected = (large - large.min()) / (large.max() - large.min())
    assert torch.allclose(class_heat(pushed, x, label)[0], expected, atol=1e-5)
    assert torch.allclose(LogProbabilities(pushed)(x).softmax(1), pushed.probabilities(x), atol=1e-6)


def test_contributions_of_all_prototypes_add_up_to_the_logit(pushed: Any, digits: Data) -> None:
    x = digits.preprocessing.normalize(digits.test.images([0, 1]))
    logits = pushed(x)
    for rows, logit in zip(explain(pushed, x, top=40), logits):
        assert sum(part.contribution for part in rows) == pytest.approx(logit.max().item(), abs=1e-4)
        assert [part.contribution for part in rows] == sorted((part.contribution for part in rows), reverse=True)
        assert rows[0].source.label == int(logit.argmax())
        assert rows[0].heat.shape == (8, 8)
    with pytest.raises(ArgumentError, match=r"explain: `top` must be at least 1, got 0"):
        explain(pushed, x, top=0)


def test_a_prototype_sees_itself_whole_in_its_own_image(pushed: Any, digits: Data) -> None:
    row = table(pushed)[0]
    x = digits.preprocessing.normalize(digits.train.images([row.image]))
    found = {(part.source.branch, part.source.prototype): part for part in explain(pushed, x, top=40)[0]}
    part = found[row.branch, row.prototype]
    assert part.similarity == pytest.approx(1.0, abs=1e-5)
    assert part.box == row.box


def test_pictures_need_no_training_data(pushed: Any, digits: Data) -> None:
    other = network().eval()
    other.load_state_dict(pushed.state_dict())
    other.classes, other.preprocessing = pushed.classes, pushed.preprocessing
    drawn = list(figures(other, digits.test.images([0, 1]), ["a.png", "b.png"], top=3))
    assert [name for name, _ in drawn] == ["a.png", "b.png"]
    words = [axis.get_xlabel() for axis in drawn[0][1].axes]
    part = explain(pushed, digits.preprocessing.normalize(digits.test.images([0])), 3)[0][0]
    assert len(words) == 12
    assert words[3] == part.source.name
    assert words[1] == f"similarity {part.similarity:.2f}"
    assert words[2] == f"x weight {part.weight:.2f} = {part.contribution:+.2f}"
    assert "a.png" in drawn[0][1].get_suptitle()


def test_what_pictures_refuse(pushed: Any, digits: Data) -> None:
    images = digits.test.images([0])
    with pytest.raises(ArgumentError, match=r"must be a ProtoPNet or STProtoPNet that knows its classes and preprocessing, got Linear"):
        next(figures(nn.Linear(2, 2), images, ["a"]))
    with pytest.raises(ArgumentError, match=r"there are 1 images and 2 names\. Give one for each"):
        next(figures(pushed, images, ["a", "b"]))
    with pytest.raises(ShapeError, match=r"`images` must be of shape \(1, 1, 8, 8\), got \(1, 1, 4, 4\)"):
        next(figures(pushed, images[:, :, ::2, ::2], ["a"]))


def test_the_gallery_shows_each_prototype_or_some_of_each_class(pushed: Any) -> None:
    axes = [axis for axis in gallery(pushed).axes if axis.images]
    assert len(axes) == 40
    assert {axis.texts[0].get_text().split(",")[0] for axis in axes} == set(pushed.classes)
    few = [axis for axis in gallery(pushed, most=20).axes if axis.images]
    assert len(few) == 20
    assert {axis.texts[0].get_text().split(",")[0] for axis in few} == set(pushed.classes)
    with pytest.raises(ArgumentError):
        gallery(network())
