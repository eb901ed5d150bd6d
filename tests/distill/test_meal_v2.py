"""MEAL V2: the page's numbers, which way gradients flow, teachers that stay as they are, any student and teacher, and what is refused."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import images, parameters, same
from torch import Tensor, nn
from torch.testing import assert_close

import retinue
from retinue.data import Batch, Data, Preprocessing, from_arrays
from retinue.distill.ensemble import EnsembleTeacher, combined
from retinue.distill.meal_v2 import LogitDiscriminator, MEALv2, adversarial_loss, pasted, reverse, similarity_loss
from retinue.engine import checkpoint, train_mode
from retinue.engine.seeds import seed_all
from retinue.errors import ArgumentError, ShapeError
from retinue.losses import distillation_kl
from retinue.models import adapt, create_model, tiny
from retinue.models.tiny import KINDS

T1, T2 = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[0.0, 3.0, 1.0]])
SETTINGS: dict[str, Any] = {"batch_size": 8, "optimizer": "sgd", "lr": 0.05, "weight_decay": 0.0, "schedule": "constant", "progress": False}


class Says(nn.Module):
    """Answers every image with the same logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.num_classes = logits.shape[1]
        self.logits = nn.Parameter(logits.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def net(seed: int = 0, outputs: int = 3, side: int = 4) -> Any:
    torch.manual_seed(seed)
    return create_model("mlp", widths=[8], num_classes=outputs, in_chans=1, input_size=side)


def batch(count: int = 8, classes: int = 3) -> Batch:
    shown = images(count, 1, 4, 4)
    return Batch(shown, torch.arange(count) % classes, torch.arange(count), (shown,))


@pytest.fixture
def data() -> Data:
    """Forty-eight images of 4 px in three classes: each brightens another row."""
    pixels = torch.randint(0, 120, (48, 4, 4), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(48) % 3
    pixels[torch.arange(48), labels] += 100
    return from_arrays(pixels.byte().numpy(), labels, split=["train"] * 24 + ["val"] * 12 + ["test"] * 12, name="rows")


# --- the page's numbers ----------------------------------------------------------------------------------------------------------------


def test_the_soft_label_is_the_mean_of_probabilities_not_the_softmax_of_mean_logits() -> None:
    shares, logits = EnsembleTeacher([Says(T1), Says(T2)])(torch.zeros(2, 1, 4, 4))
    assert shares[1].tolist() == pytest.approx([0.3536, 0.4669, 0.1795], abs=5e-5)
    assert logits[1].tolist() == [1, 1.5, 1]
    assert logits[1].softmax(0).tolist() == pytest.approx([0.2741, 0.4519, 0.2741], abs=5e-5)


def test_the_similarity_loss_is_divergence_and_entropy() -> None:
    shares, _ = combined(torch.stack([T1, T2]))
    student = torch.tensor([[1.0, 2.0, 3.0]])
    loss = similarity_loss(student, shares)
    entropy = -(shares * shares.log()).sum()
    assert float(loss) == pytest.approx(1.5818, abs=5e-5)
    assert float(entropy) == pytest.approx(1.0315, abs=5e-5)
    assert float(loss - entropy) == pytest.approx(0.5503, abs=5e-5)
    assert float(distillation_kl(student, shares.log())) == pytest.approx(0.5503, abs=5e-5)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 6), classes=st.integers(2, 9), seed=st.integers(0, 99))
def test_the_gradient_is_the_difference_of_probabilities(count: int, classes: int, seed: int) -> None:
    student = images(count, classes, seed=seed).double().requires_grad_()
    shares = images(count, classes, seed=seed + 100).double().softmax(1)
    (found,) = torch.autograd.grad(similarity_loss(student, shares), student)
    assert_close(found, (student.softmax(1) - shares).detach() / count, rtol=0, atol=1e-14)
    same_as = shares.log().requires_grad_()
    (none,) = torch.autograd.grad(similarity_loss(same_as, shares), same_as)
    assert_close(none, torch.zeros_like(none), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("classes", "reduction", "sizes", "count"),
    [(1000, 8, [1000, 125, 15, 2], 127_047), (100, 8, [100, 12, 1, 2], 1_229), (10, 2, [10, 5, 2, 2], 73)],
)
def test_the_discriminators_sizes(classes: int, reduction: int, sizes: list[int], count: int) -> None:
    for model in (LogitDiscriminator(classes, reduction), LogitDiscriminator(classes)):
        assert [layer.in_features for layer in model.layers[::2]] + [2] == sizes
        assert parameters(model) == count
        assert [type(layer) for layer in model.layers] == [nn.Linear, nn.ReLU] * 3
    assert (LogitDiscriminator(classes)(images(50, classes)) >= 0).all()
    assert [layer.out_features for layer in LogitDiscriminator(2).layers[::2]] == [1, 1, 2]


def test_the_papers_students_have_the_pages_parameters() -> None:
    counts = {
        "resnet18": 11_689_512, "resnet50": 25_557_032, "tf_mobilenetv3_small_075": 2_041_872, "tf_mobilenetv3_small_100": 2_542_856,
        "tf_mobilenetv3_large_100": 5_483_032, "tf_efficientnet_b0": 5_288_548,
    }  # fmt: skip
    with torch.device("meta"):
        assert {name: parameters(timm.create_model(name)) for name in counts} == counts


@settings(max_examples=10, deadline=None)
@given(count=st.integers(1, 20), seed=st.integers(0, 99))
def test_scores_of_zero_cost_ln_2_for_any_batch(count: int, seed: int) -> None:
    dead = LogitDiscriminator(10)
    with torch.no_grad():
        dead.layers[4].bias.fill_(-1e6)
    loss, zeros = adversarial_loss(dead, images(count, 10, seed=seed), images(count, 10, seed=seed + 1))
    assert float(loss.detach()) == pytest.approx(math.log(2), abs=1e-6)
    assert float(zeros) == 1


def test_student_rows_are_the_first_column_and_teacher_rows_the_second() -> None:
    seen: list[Tensor] = []

    class Scores(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            seen.append(rows)
            return torch.tensor([[3.0, 0.0], [1.0, 2.0]])

    student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, 6.0]])
    loss, zeros = adversarial_loss(Scores(), student, teacher)
    assert torch.equal(seen[0], torch.cat([student, teacher]))
    by_hand = [math.log1p(math.exp(-3)), math.log(2), math.log1p(math.exp(1)), math.log1p(math.exp(-2))]
    assert float(loss) == pytest.approx(sum(by_hand) / 4, abs=1e-6)  # over 2B x 2 entries
    assert float(zeros) == 0.25


# --- which way gradients flow ----------------------------------------------------------------------------------------------------------


def with_alive_discriminator(adversarial: Any, **options: Any) -> MEALv2:
    discriminator = LogitDiscriminator(3)
    with torch.no_grad():
        for layer, value in zip(discriminator.layers[::2], (0.3, 0.5, 0.7)):
            layer.weight.fill_(value)
            layer.weight[0] += 0.2
            layer.bias.fill_(2.0)
    return MEALv2([net(1), net(2)], adversarial=adversarial, discriminator=None if adversarial is None else discriminator, **options)


def gradients(objective: MEALv2, model: nn.Module, shown: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """Of the student and of the discriminator, one backward pass each as in an update."""
    found = []
    for player, numbers in objective.losses(model, shown, 0):
        own = objective.players(model)[player]
        found.append(list(torch.autograd.grad(numbers["loss"], own)))
    return found[0], found[1] if len(found) > 1 else []


def test_reversal_turns_the_students_gradient_and_leaves_the_discriminators() -> None:
    student, shown = net(), batch()
    turned, of_reverse = gradients(with_alive_discriminator("reverse"), student, shown)
    straight, of_joint = gradients(with_alive_discriminator("joint"), student, shown)
    alone, none = gradients(with_alive_discriminator(None), student, shown)
    assert not none
    for minus, plus, middle in zip(turned, straight, alone):
        assert_close(minus - middle, -(plus - middle), rtol=1e-4, atol=1e-7)
    assert max(float((plus - middle).abs().max()) for plus, middle in zip(straight, alone)) > 1e-3
    assert all(torch.equal(a, b) for a, b in zip(of_reverse, of_joint))
    assert max(float(g.abs().max()) for g in of_joint) > 1e-3


@pytest.mark.parametrize("adversarial", ["reverse", "joint"])
def test_one_backward_pass_of_the_whole_is_right_for_both(adversarial: str) -> None:
    objective, student, shown = with_alive_discriminator(adversarial), net(), batch()
    ours, theirs = gradients(objective, student, shown)
    numbers = objective(student, shown)
    both = objective.players(student)
    found = torch.autograd.grad(numbers["loss"], [*both["model"], *both["discriminator"]])
    for a, b in zip(found, [*ours, *theirs]):
        assert_close(a, b)
    assert float(numbers["loss"].detach()) == pytest.approx(float(numbers["similarity"] + numbers["discriminator"]), abs=1e-6)


def test_reverse_is_the_identity_with_minus_its_gradient() -> None:
    x = images(3, 2).requires_grad_()
    assert torch.equal(reverse(x), x)
    (found,) = torch.autograd.grad((reverse(x) * 3).sum(), x)
    assert torch.equal(found, torch.full((3, 2), -3.0))


def test_the_loss_by_hand_with_hard_labels_and_an_auxiliary_head() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = net(3), net(4)

        def forward(self, x: Tensor) -> Any:
            return self.first(x), self.second(x)

    model, shown, teachers = Two(), batch(), [net(1), net(2)]
    shares, mean_logits = EnsembleTeacher(copy.deepcopy(teachers))(shown.images)
    objective = MEALv2(teachers, hard_label_weight=0.5, aux_weight=0.25)
    numbers = objective(model, shown)
    logits, auxiliary = model(shown.images)
    told, _ = adversarial_loss(objective.discriminator, logits, mean_logits)  # type: ignore[arg-type]
    soft = [-(shares * out.log_softmax(1)).sum(1).mean() for out in (logits, auxiliary)]
    expected = soft[0] + 0.25 * soft[1] + 0.5 * F.cross_entropy(logits, shown.labels) + told
    assert_close(numbers["loss"], expected)
    assert_close(numbers["similarity"], soft[0].detach())
    assert not objective.teacher.models[0].head.weight.requires_grad


def test_labels_do_not_matter_without_their_weight() -> None:
    shown = batch()
    other = Batch(shown.images, (shown.labels + 1) % 3, shown.indices, shown.views, torch.full((8, 3), 1 / 3))
    objective = MEALv2([net(1)])
    assert torch.equal(objective(net(), shown)["loss"], objective(net(), other)["loss"])


# --- CutMix ----------------------------------------------------------------------------------------------------------------------------


def test_boxes_are_pasted_before_teachers_and_student_see_the_image() -> None:
    seen: dict[str, Tensor] = {}

    class Watched(Says):
        def __init__(self, name: str) -> None:
            super().__init__(T1)
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            seen[self.name] = x
            return super().forward(x)

    shown = batch(16)
    for adversarial in ("reverse", None):
        objective, student = MEALv2([Watched("teacher")], adversarial=adversarial, cutmix=True), Watched("student").train()  # type: ignore[arg-type]
        train_mode(objective)
        objective(student, shown)
        assert torch.equal(seen["teacher"], seen["student"])
        assert not torch.equal(seen["student"], shown.images)
        objective(student.eval(), shown)
        assert torch.equal(seen["student"], shown.images)


def test_every_pixel_is_of_the_image_or_of_its_one_partner() -> None:
    x = (torch.arange(64.0)[:, None, None, None] - 30).expand(64, 2, 8, 8)
    found = pasted(x)
    for own, row in zip(x, found):
        others = row[row != own].unique()
        assert len(others) <= 1
        inside = (row != own).all(0)
        if inside.any():
            rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
            assert inside.sum() == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)  # a box
    assert 0.2 < float((found != x).float().mean()) < 0.6  # half of the area, less what juts out


# --- in the engine ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_any_student_learns_from_teachers_of_other_families_which_stay_as_they_are(kind: Any, tmp_path: Path) -> None:
    data = retinue.data.open("digits", input_size=32, channels=3, train_images=24, test_images=8)
    torch.manual_seed(1)
    teachers = [tiny("timm_cnn"), tiny("timm_vit"), tiny("bare")]
    before = [copy.deepcopy(one.state_dict()) for one in teachers]

    def train(folder: str, stop_at: int = -1) -> Any:
        torch.manual_seed(0)
        objective = MEALv2(teachers, data, combine="random", cutmix=True)

        def stop(model: nn.Module, step: int) -> None:
            if step == stop_at:
                raise KeyboardInterrupt

        objective.after_step = stop  # type: ignore[method-assign]
        options = {**SETTINGS, "checkpoint_every": 1, "log_every": 1, "loggers": ("csv",), "max_steps": 3, "run_dir": tmp_path / folder}
        return retinue.fit(tiny(kind), objective, data, players={"discriminator": {"lr": 1e-4}}, **options)

    run = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("stopped", 2)
    train("stopped")
    whole, stopped = (checkpoint.read(tmp_path / name / "checkpoints" / "step-000000003") for name in ("whole", "stopped"))
    assert same(whole.tensors, stopped.tensors)
    assert (tmp_path / "whole" / "metrics.csv").read_bytes() == (tmp_path / "stopped" / "metrics.csv").read_bytes()
    for one, then in zip(teachers, before):
        assert same(dict(one.state_dict()), dict(then)), "weights and statistics of batch norms"
        assert not one.training
    assert set(run.model.state_dict()) == set(adapt(tiny(kind), input_size=32).state_dict()), "the student alone is saved"
    assert {"train/model/similarity", "train/model/zeros", "train/discriminator/loss"} <= set(run.history[0])


def test_both_players_move_and_nobody_else(data: Data) -> None:
    objective, student = with_alive_discriminator("reverse"), net()
    before = copy.deepcopy((student.state_dict(), objective.state_dict()))
    retinue.fit(student, objective, data, max_steps=1, **SETTINGS)
    assert all(not torch.equal(value, before[0][name]) for name, value in student.named_parameters())
    for name, value in objective.state_dict().items():
        assert torch.equal(value, before[1][name]) == name.startswith("teacher."), name


def test_the_discriminator_reads_the_logits_of_before_the_students_step(data: Data) -> None:
    """Both move as if at once: the discriminator's loss is the one that the student's step was made of."""
    run = retinue.fit(net(), with_alive_discriminator("joint"), data, max_steps=1, log_every=1, **SETTINGS)
    assert run.history[0]["train/discriminator/loss"] == pytest.approx(run.history[0]["train/model/discriminator"], abs=1e-6)


def test_a_student_comes_to_answer_as_its_teachers(data: Data) -> None:
    teachers = [retinue.fit(net(seed), MEALv2([Says(torch.zeros(1, 3))], hard_label_weight=5.0, adversarial=None), data, max_steps=80,
                            **SETTINGS).model for seed in (1, 2)]  # fmt: skip
    assert min(retinue.evaluate(teacher, data.test)["top1"] for teacher in teachers) > 0.9
    student = net(5)
    run = retinue.fit(student, MEALv2(teachers), data, max_steps=150, players={"discriminator": {"lr": 1e-3}}, **SETTINGS)
    x = data.preprocessing.normalize(data.test.images())
    shares, _ = EnsembleTeacher(teachers)(x)
    assert retinue.evaluate(run.model, data.test)["top1"] > 0.9
    assert float((run.model(x).softmax(1) - shares).detach().abs().mean()) < 0.08


def test_the_evaluation_is_on_labels(data: Data) -> None:
    model = net()
    assert MEALv2([net(1)]).evaluate(model, data.test.loader(5)) == pytest.approx(retinue.evaluate(model, data.test), abs=1e-6)


# --- teachers --------------------------------------------------------------------------------------------------------------------------


def test_teachers_are_frozen_and_stay_in_evaluation_mode() -> None:
    teacher = EnsembleTeacher([tiny("timm_cnn"), tiny("bare")])
    teacher.train()
    train_mode(teacher)
    assert not any(part.training for part in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    shares, logits = teacher(images(2, 3, 32, 32).requires_grad_())
    assert not shares.requires_grad
    assert not logits.requires_grad


def test_random_asks_one_teacher_a_batch() -> None:
    teacher, found = EnsembleTeacher([Says(T1), Says(T2)], combine="random"), []
    for step in range(40):
        seed_all(0, step)
        shares, logits = teacher(torch.zeros(3, 1, 4, 4))
        assert_close(shares, logits.softmax(1))
        found.append(logits[0].tolist())
        seed_all(0, step)
        assert torch.equal(teacher(torch.zeros(3, 1, 4, 4))[1], logits)
    assert 8 < found.count(T1[0].tolist()) < 32
    assert found.count(T1[0].tolist()) + found.count(T2[0].tolist()) == 40


def test_a_teacher_sees_images_as_in_its_own_training_at_its_own_size_where_asked_for() -> None:
    seen: list[Tensor] = []

    class Own(Says):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x)

    model: Any = Own(T1)
    model.preprocessing = Preprocessing((8, 8), 3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    shown = Preprocessing((4, 4), 1, mean=(0.4,), std=(0.2,))
    teacher = EnsembleTeacher(model, resize=True)
    teacher.seeing(shown, ["a", "b", "c"])
    x = torch.full((2, 1, 4, 4), 1.5)  # grey 0.7
    teacher(x)
    assert seen[-1].shape == (2, 3, 8, 8)
    assert seen[-1][0, :, 3, 3].tolist() == pytest.approx([1.2, 2.0, 2.0], abs=1e-5)
    plain = EnsembleTeacher(Own(T1))
    plain.seeing(shown, ["a", "b", "c"])
    plain(x)
    assert seen[-1] is x


def test_a_transformer_of_another_size_teaches_where_a_resize_is_asked_for() -> None:
    data = retinue.data.open("digits", input_size=16, channels=3, train_images=16, test_images=8)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=16, depth=1, num_heads=2, num_classes=10)
    student = tiny("ours", input_size=16)
    with pytest.raises(
        ArgumentError,
        match=r"^EnsembleTeacher: the teacher VisionTransformer was made for images of 32x32 px and these have 16x16 px\. Say resize=True",
    ):
        retinue.fit(student, MEALv2([vit, tiny("timm_cnn")]), data, max_steps=1, **SETTINGS)
    retinue.fit(student, MEALv2([vit, tiny("timm_cnn")], resize=True), data, max_steps=1, **SETTINGS)


def test_runs_teach(data: Data, tmp_path: Path) -> None:
    retinue.fit(net(1), MEALv2([net(2)], adversarial=None), data, max_steps=1, run_dir=tmp_path / "run", **SETTINGS)
    teacher = EnsembleTeacher([str(tmp_path / "run")])
    teacher.seeing(data.preprocessing, data.classes)
    x = data.preprocessing.normalize(data.test.images())
    assert_close(teacher(x)[1], retinue.load(tmp_path / "run")(x).detach())


# --- what is refused -------------------------------------------------------------------------------------------------------------------


def test_teachers_that_cannot_be_are_refused(data: Data) -> None:
    with pytest.raises(ArgumentError, match=r"^EnsembleTeacher: there is no teacher\. Give one network at least, or the folder"):
        MEALv2([])
    with pytest.raises(ArgumentError, match=r'^EnsembleTeacher: no `combine` is called "meen"\. Did you mean mean\?$'):
        MEALv2([net()], combine="meen")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"all teachers must have the same classes, and MLP has 3, MLP has 4\. Train them on the same"):
        EnsembleTeacher([net(), net(outputs=4)])
    with pytest.raises(ArgumentError, match=r"the teachers have 4 classes and the data has 3\. Give teachers of these"):
        retinue.fit(net(), MEALv2([net(outputs=4)]), data, max_steps=1, **SETTINGS)
    with pytest.raises(ArgumentError, match=r"MLP was made for images of 8x8 px and these have 4x4 px\. Say resize=True"):
        retinue.fit(net(), MEALv2([net(side=8)]), data, max_steps=1, **SETTINGS)
    known: Any = net(1)
    known.classes = ["2", "1", "0"]
    with pytest.raises(ArgumentError, match=r"MLP was trained on other classes, or on these in another order: 2, 1, 0; the data has 0"):
        retinue.fit(net(), MEALv2([known]), data, max_steps=1, **SETTINGS)
    strict: Any = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    strict.num_classes = 3
    with pytest.raises(ArgumentError, match=r"the teacher Sequential cannot take images of 4x4 px with 1 channels\. Say resize=.*mat1"):
        retinue.fit(net(), MEALv2([strict]), data, max_steps=1, **SETTINGS)


def test_students_and_settings_that_cannot_be_are_refused(data: Data) -> None:
    with pytest.raises(ArgumentError, match=r"^MEALv2: the student has 4 outputs and rows has 3 classes\. Build it with num_classes=3\.$"):
        retinue.fit(net(outputs=4), MEALv2([net(1)]), data, max_steps=1, **SETTINGS)
    both = net()
    with pytest.raises(ArgumentError, match=r"^MEALv2: the student is one of the teachers\. Give a copy of it, or another network\.$"):
        retinue.fit(both, MEALv2([both]), data, max_steps=1, **SETTINGS)
    with pytest.raises(ArgumentError, match=r'^MEALv2: no `adversarial` is called "revers"\. Did you mean reverse\?$'):
        MEALv2([net()], adversarial="revers")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"^MEALv2: with adversarial=None nothing reads the `discriminator`\. Leave it out\.$"):
        MEALv2([net()], adversarial=None, discriminator=LogitDiscriminator(3))
    with pytest.raises(ArgumentError, match=r"^MEALv2: `hard_label_weight` must be 0 or more, got -1\. The paper has none, 0\.$"):
        MEALv2([net()], hard_label_weight=-1)


def test_soft_labels_that_are_none_are_refused() -> None:
    logits = torch.zeros(2, 3)
    with pytest.raises(ArgumentError, match=r"^similarity_loss: the soft labels want a gradient, which would teach the teachers"):
        similarity_loss(logits, torch.full((2, 3), 1 / 3, requires_grad=True))
    with pytest.raises(
        ArgumentError, match=r"every row of soft labels must sum to 1 \(within 0\.001\), got sums from 1 to 1\.2\. Give probabilities, not"
    ):
        similarity_loss(logits, torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.2]]))
    with pytest.raises(ArgumentError, match="must sum to 1"):
        similarity_loss(logits, torch.full((2, 3), math.nan))
    similarity_loss(logits, torch.tensor([[0.5, 0.5, 0.0009], [1.0, 0, 0]]))
    with pytest.raises(ShapeError, match="soft_cross_entropy"):
        similarity_loss(logits, torch.full((2, 2), 0.5))


def test_discriminators_with_an_empty_layer_are_refused() -> None:
    with pytest.raises(
        ArgumentError,
        match=r"^LogitDiscriminator: with 10 classes and `reduction` 8 a layer would be empty \(10 -> 1 -> 0\)\. Leave `reduction` out",
    ):
        LogitDiscriminator(10, 8)
    with pytest.raises(ArgumentError, match="`num_classes` and `reduction` must be at least 1, got 10 and 0"):
        LogitDiscriminator(10, 0)
    with pytest.raises(ShapeError, match=r"^adversarial_loss: student and teacher need rows alike, got \(2, 3\) and \(1, 3\)\.$"):
        adversarial_loss(LogitDiscriminator(3), torch.zeros(2, 3), torch.zeros(1, 3))
