"""NoProp networks: the page's coefficients and losses, chains and integrals against closed forms, prediction, and what is refused."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import images
from torch import Tensor, nn
from torch.testing import assert_close

import retinue.models.noprop_blocks as parts
from retinue.errors import ArgumentError, DataError, ShapeError
from retinue.models.noprop import NoPropCT, NoPropDT, NoPropFM, NoPropNet, around, noprop_ct, noprop_dt, noprop_fm
from retinue.models.noprop_net import integrate
from retinue.models.noprop_schedule import CosineSchedule, LearnedSchedule, check_steps, coefficients
from retinue.models.tiny import KINDS, tiny

SMALL: dict[str, Any] = {"widths": (), "hidden": 16, "label_layers": 1}
FORMS: dict[str, Any] = {"dt": lambda **o: NoPropDT(3, 1, 4, 4, **SMALL, **o), "ct": lambda **o: NoPropCT(3, 1, 4, steps=5, **SMALL, **o),
                         "fm": lambda **o: NoPropFM(3, 1, 4, steps=5, **SMALL, **o)}  # fmt: skip


class Fixed(parts.Block):
    """A block that answers what a function makes of (z, t), whatever the image shows."""

    def __init__(self, answer: Any) -> None:
        nn.Module.__init__(self)
        self.answer = answer

    def image(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def forward(self, z: Tensor, features: Tensor, t: Tensor | None = None) -> Tensor:
        return self.answer(z, t)


def with_blocks(model: NoPropNet, answer: Any) -> Any:
    """Put fixed answers in the place of all blocks, in double precision."""
    model.blocks = nn.ModuleList(Fixed(answer) for _ in model.blocks)
    return model.double().eval()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the schedule and the chain's coefficients -----------------------------------------------------------------------------------------


def test_the_pages_numbers_for_four_steps() -> None:
    found = check_steps(4)
    expected = {
        "abar": [0.01, 0.146447, 0.5, 0.853553, 0.99],
        "snr": [0.010101, 0.171573, 1, 5.828427, 99],
        "a": [0.360154, 0.585786, 0.765367, 0.936410],
        "b": [0.225297, 0.317025, 0.224171, 0.063404],
        "c": [0.803302, 0.414214, 0.121320, 0.009411],
    }
    for name, values in expected.items():
        assert getattr(found, name) == pytest.approx(values, abs=6e-7), name


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(0.001, 0.999), min_size=2, max_size=12, unique=True)
    .map(sorted)
    .filter(lambda l: all(b - a > 1e-4 for a, b in pairwise(l)))
)
def test_the_coefficients_keep_mean_and_variance_for_every_rising_schedule(levels: list[float]) -> None:
    found = coefficients(levels)
    for t, (a, b, c) in enumerate(zip(found.a, found.b, found.c), start=1):
        before, after = levels[t - 1], levels[t]
        assert a + b * math.sqrt(before) == pytest.approx(math.sqrt(after), abs=1e-12)
        assert b**2 * (1 - before) + c == pytest.approx(1 - after, abs=1e-12)
        assert a**2 / c == pytest.approx(found.snr[t] - found.snr[t - 1], rel=1e-9)


def test_from_sixteen_steps_on_the_cosine_is_rescaled_and_rises_strictly() -> None:
    for steps in (1, 2, 10, 15, 16, 40, 1000):
        levels = CosineSchedule()(steps)
        assert len(levels) == steps + 1
        assert levels[0] == pytest.approx(0.01)
        assert levels[-1] == pytest.approx(0.99)
        assert all(b > a for a, b in pairwise(levels))
    assert CosineSchedule()(16)[1] == pytest.approx(0.01 + 0.98 * math.sin(math.pi / 32) ** 2)
    assert CosineSchedule()(15)[1] == pytest.approx(math.sin(math.pi / 30) ** 2)  # clamped, so untouched in the middle


def test_schedules_that_cannot_be_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^noprop: `num_blocks` must be at least 1, got 0\. The paper has 10\.$"):
        NoPropDT(3, 1, 4, 0)
    falls = r"a schedule must rise strictly over two times at least, got \[0\.1, 0\.5, 0\.5\]\. Time runs from noise to clean"
    with pytest.raises(ArgumentError, match=falls):
        NoPropDT(3, 1, 4, 2, schedule=lambda steps: [0.1, 0.5, 0.5])
    for levels in ([0.0, 0.5], [0.5, 1.0]):
        with pytest.raises(ArgumentError, match=r"a schedule must stay strictly between 0 and 1, got .*: at 1 the weights are infinite"):
            coefficients(levels)
    for levels in ([0.1, math.nan], [0.9, 0.1], [0.5]):
        with pytest.raises(ArgumentError, match="must rise strictly"):
            coefficients(levels)
    with pytest.raises(ArgumentError, match=r"must rise strictly .*, \.\.\.\]\. Time"):
        coefficients([0.1] * 12)
    with pytest.raises(ArgumentError, match="must rise strictly"):
        noprop_ct(low=0.9, high=0.1)


def test_weights_that_overflow_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"`eta` must be above 0 and finite, got inf\. It weighs the denoising loss"):
        NoPropDT(3, 1, 4, 2, eta=math.inf)
    with pytest.raises(ArgumentError, match=r"`eta` must be above 0 and finite, got 0"):
        NoPropCT(3, 1, 4, eta=0)
    with pytest.raises(ArgumentError, match=r"the weight of a block overflows, as `eta` is 1e\+37 and SNR\(T\) 99\. Lower `eta`, or end"):
        NoPropDT(3, 1, 4, 2, eta=1e37)


def test_the_learned_schedule_falls_between_its_ends_and_tells_its_own_slope() -> None:
    schedule = LearnedSchedule(0.02, 0.95).double()
    with torch.no_grad():
        for parameter in (schedule.line, schedule.heights, schedule.slopes, schedule.shifts):
            parameter.add_(torch.randn(parameter.shape, generator=seeded(), dtype=torch.float64))
    t = torch.linspace(0, 1, 101, dtype=torch.float64, requires_grad=True)
    gamma, slope = schedule(t)
    assert (gamma.diff() < 0).all()
    assert_close(
        schedule.abar(torch.tensor([0.0, 1.0], dtype=torch.float64)), torch.tensor([0.02, 0.95], dtype=torch.float64), rtol=0, atol=1e-7
    )
    assert_close(slope, torch.autograd.grad(gamma.sum(), t)[0])


# --- discrete time ---------------------------------------------------------------------------------------------------------------------


def test_a_blocks_loss_by_hand() -> None:
    """Blocks that always answer class 0 are off by |e_0 - e_y|^2 = 2 for the other classes: a sum over d, not a mean."""
    model = with_blocks(FORMS["dt"](), lambda z, t: torch.tensor([[1e4, 0, 0]], dtype=z.dtype).repeat(len(z), 1))
    x, y = images(4, 1, 4, 4).double(), torch.tensor([0, 1, 2, 1])
    snr = model.times.snr
    losses = model.training_losses(x, y)["denoise"]
    expected = [4 / 2 * 0.1 * (snr[t] - snr[t - 1]) * 1.5 for t in range(1, 5)]
    assert losses.tolist() == pytest.approx(expected)
    assert model.weight(4) == pytest.approx(0.2 * (99 - 5.828427), abs=1e-5)
    assert float(model.block_loss(2, x, y)) == pytest.approx(expected[1])


def test_the_start_costs_what_the_page_says() -> None:
    model = NoPropDT(10, 1, 4, 4, **SMALL)
    assert float(model.label_losses(torch.arange(10))["kl"]) == pytest.approx(0.005252, abs=5e-7)
    u = model.embedding(torch.tensor([3]))
    q = torch.distributions.Normal(0.1 * u, math.sqrt(0.99))
    against = torch.distributions.kl_divergence(q, torch.distributions.Normal(torch.zeros(1, 10), 1.0)).sum()
    assert_close(model.start_kl(u, torch.tensor(0.01)), against, rtol=0, atol=1e-6)


def test_a_block_sees_the_label_as_noisy_as_at_the_step_before() -> None:
    seen: list[Tensor] = []
    model = with_blocks(FORMS["dt"](), lambda z, t: (seen.append(z), z)[1])
    y = torch.zeros(20_000, dtype=torch.long)
    for t in (1, 2, 3, 4):
        model.block_loss(t, torch.zeros(len(y), 1, 4, 4, dtype=torch.float64), y)
        abar = model.times.abar[t - 1]
        assert_close(seen[-1].mean(0), torch.tensor([math.sqrt(abar), 0, 0], dtype=torch.float64), rtol=0, atol=0.03)  # 4 standard errors
        assert_close(seen[-1].var(0), torch.full((3,), 1 - abar, dtype=torch.float64), rtol=0.05, atol=0)


def test_the_cross_entropy_is_of_the_label_at_the_last_level() -> None:
    model = FORMS["dt"]()
    y = torch.tensor([0, 1, 2, 2])
    found = model.label_losses(y, seeded())["ce"]
    z = math.sqrt(0.99) * F.one_hot(y, 3) + math.sqrt(1 - model.times.abar[-1]) * torch.randn(4, 3, generator=seeded())
    assert_close(found, F.cross_entropy(model.readout.linear(z), y))


def test_gradient_reaches_the_block_alone() -> None:
    model = FORMS["dt"]()
    model.block_loss(3, images(8, 1, 4, 4), torch.arange(8) % 3).backward()
    for t, block in enumerate(model.blocks, start=1):
        assert all((parameter.grad is not None) == (t == 3) for parameter in block.parameters())
    assert all(parameter.grad is None for parameter in model.readout.parameters())


def test_an_oracle_carries_noise_to_its_label() -> None:
    """With u^ = u_y the chain is linear: from N(0, I) the start's mismatch shrinks by the product of all b."""
    model = with_blocks(FORMS["dt"](), lambda z, t: torch.tensor([[0, 1e4, 0]], dtype=z.dtype).repeat(len(z), 1))
    x, shrunk = torch.zeros(20_000, 1, 4, 4, dtype=torch.float64), math.prod(model.times.b)
    start = model.sample(x[:1], noise=False, start=torch.zeros(1, 3, dtype=torch.float64))
    first, last = model.times.abar[0], model.times.abar[-1]
    expected = (math.sqrt(last) - shrunk * math.sqrt(first)) * torch.tensor([0, 1, 0], dtype=torch.float64)
    assert_close(start[0], expected, rtol=0, atol=1e-12)
    z = model.sample(x, generator=seeded())
    assert_close(z.mean(0), expected, rtol=0, atol=0.003)  # standard error 0.0007
    assert_close(torch.cov(z.T), (1 - last + shrunk**2 * first) * torch.eye(3, dtype=torch.float64), rtol=0, atol=0.0006)
    assert (z.argmax(1) == 1).double().mean() == 1
    model.readout.linear.weight.data.copy_(torch.eye(3))
    model.readout.linear.bias.data.zero_()
    assert (model(x[:64]).argmax(1) == 1).all()


# --- continuous time -------------------------------------------------------------------------------------------------------------------


def test_continuous_losses_by_hand() -> None:
    """A block that is off by 2 everywhere: eta / 2 * E[SNR'(t)] * 2, and the mean over t is the SNR's rise."""
    model = with_blocks(FORMS["ct"](), lambda z, t: torch.tensor([[1e4, 0, 0]], dtype=z.dtype).repeat(len(z), 1))
    x, y = torch.zeros(40_000, 1, 4, 4, dtype=torch.float64), torch.ones(40_000, dtype=torch.long)
    found = model.training_losses(x, y, seeded())
    rise = 99 - 1 / 99
    assert float(found["denoise"].detach()) == pytest.approx(rise, rel=0.05)
    u = model.embedding(y[:1])
    assert_close(found["kl"].float(), model.start_kl(u, torch.tensor(0.01)).float(), rtol=0, atol=1e-6)
    t = torch.rand(len(x), generator=seeded(), dtype=torch.float64)
    gamma, slope = model.schedule(t)
    assert_close(found["denoise"], 0.5 * (-slope * (-gamma).exp() * 2).mean())
    found["denoise"].backward()
    assert model.schedule.g0.grad is not None  # the schedule learns


def test_the_flow_lands_where_the_oracles_flow_lands() -> None:
    """For u^ = u the flow keeps (z - sqrt(abar) u) / sqrt(1 - abar) constant, as it keeps a normal's quantiles."""
    u = torch.tensor([0, 1.0, 0], dtype=torch.float64)
    model = with_blocks(FORMS["ct"](), lambda z, t: (1e4 * u)[None].repeat(len(z), 1))
    z = torch.randn(5, 3, generator=seeded(), dtype=torch.float64)
    expected = math.sqrt(0.99) * u + math.sqrt(0.01 / 0.99) * (z - 0.1 * u)
    x, apart = torch.zeros(5, 1, 4, 4, dtype=torch.float64), {}
    for solver in ("euler", "heun"):
        model.solver = solver
        apart[solver] = [float((model.sample(x, steps=steps, start=z) - expected).detach().abs().max()) for steps in (50, 100)]
    assert apart["euler"][1] == pytest.approx(apart["euler"][0] / 2, rel=0.2)  # of first order
    assert apart["heun"][1] == pytest.approx(apart["heun"][0] / 4, rel=0.3)  # of second
    assert apart["heun"][1] < 2e-3


def test_the_stochastic_sampler_is_the_chain_in_the_limit() -> None:
    u = torch.tensor([0, 1.0, 0], dtype=torch.float64)
    model = with_blocks(FORMS["ct"](sampler="sde"), lambda z, t: (1e4 * u)[None].repeat(len(z), 1))
    levels = model.schedule.abar(torch.linspace(0, 1, 2001, dtype=torch.float64)).tolist()
    found = coefficients(levels)
    z = chain = torch.ones(1, 3, dtype=torch.float64)
    for a, b in zip(found.a, found.b):
        chain = a * u + b * chain
    x = torch.zeros(4000, 1, 4, 4, dtype=torch.float64)
    assert_close(model.sample(x[:1], steps=2000, noise=False, start=z), chain, rtol=0, atol=2e-3)
    states = model.sample(x, steps=400, generator=seeded()).detach()
    assert_close(states.mean(0), math.sqrt(0.99) * u, rtol=0, atol=0.02)
    assert_close(states.var(0), torch.full((3,), 0.01, dtype=torch.float64), rtol=0.15, atol=0)


# --- flow matching ---------------------------------------------------------------------------------------------------------------------


def test_flow_matching_learns_the_straight_way_and_one_step_of_it_lands_on_the_label() -> None:
    model, seen = FORMS["fm"](), []
    model = with_blocks(model, lambda z, t: (seen.append((z, t)), torch.zeros_like(z))[1])
    x, y = torch.zeros(6, 1, 4, 4, dtype=torch.float64), torch.arange(6) % 3
    found = model.training_losses(x, y, seeded())
    random = seeded()
    z0, t = (torch.randn(6, 3, generator=random, dtype=torch.float64), torch.rand(6, generator=random, dtype=torch.float64))
    z1 = F.one_hot(y, 3).double()
    assert_close(seen[0], (t[:, None] * z1 + (1 - t[:, None]) * z0, t))
    assert_close(found["denoise"], (z1 - z0).square().sum(1).mean())
    assert_close(found["ce"], F.cross_entropy(model.readout.linear(seen[0][0]), y))
    exact = with_blocks(FORMS["fm"](), lambda z, t: z1 - z0)
    assert_close(exact.sample(x, steps=1, start=z0), z1, rtol=0, atol=1e-15)
    assert_close(exact.training_losses(x, y, seeded())["denoise"], torch.zeros((), dtype=torch.float64))


def test_sigma_widens_the_way() -> None:
    seen: list[Tensor] = []
    model = with_blocks(FORMS["fm"](sigma=3.0), lambda z, t: (seen.append(z), z)[1])
    model.training_losses(torch.zeros(5000, 1, 4, 4, dtype=torch.float64), torch.zeros(5000, dtype=torch.long), seeded())
    assert float(seen[0][:, 1].var()) == pytest.approx(9 + 1 / 3, rel=0.1)  # of (1 - t) z_0: E (1 - t)^2


def test_the_anchor_reaches_learned_embeddings_alone() -> None:
    for embed, reached in (("onehot", False), ("learned", True)):
        model = FORMS["fm"](embed=embed)
        model.training_losses(images(6, 1, 4, 4), torch.arange(6) % 3)["ce"].backward()
        assert (next(model.blocks.parameters()).grad is not None) == reached
        assert model.readout.linear.weight.grad is not None
    assert model.embedding.weight.grad is not None


def test_both_rules_on_a_known_integral() -> None:
    """dz/dt = t z: z(1) = z(0) exp(1/2)."""
    z = torch.ones(1, 1, dtype=torch.float64)
    by = {solver: float(integrate(lambda z, t: t * z, z, 40, solver)) for solver in ("euler", "heun")}
    assert by["euler"] == pytest.approx(math.exp(0.5), abs=0.03)
    assert by["heun"] == pytest.approx(math.exp(0.5), abs=2e-4)
    assert float(integrate(lambda z, t: 2 * z, z, 1, "heun")) == 1 + (2 + 6) / 2


# --- all forms -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_the_same_generator_gives_the_same_answer_and_without_noise_the_start_decides(form: str) -> None:
    model, x = FORMS[form]().eval(), images(3, 1, 4, 4)
    assert torch.equal(model(x, seeded()), model(x, seeded()))
    assert not torch.equal(model(x, seeded()), model(x, seeded(1)))
    z = torch.randn(3, 3, generator=seeded())
    assert torch.equal(model.sample(x, noise=False, start=z), model.sample(x, noise=False, generator=seeded(), start=z))
    moved = not torch.equal(model.sample(x, start=z), model.sample(x, generator=seeded(), start=z))
    assert moved == (form == "dt")  # the other two follow a flow


@pytest.mark.parametrize("form", FORMS)
def test_an_evaluated_answer_depends_neither_on_chance_nor_on_the_batch(form: str) -> None:
    model, x = FORMS[form]().eval(), images(5, 1, 4, 4)
    torch.manual_seed(5)
    together = model(x)
    assert torch.equal(together, model(x))
    assert_close(torch.cat([model(x[i : i + 1]) for i in range(5)]), together, rtol=0, atol=2e-6)
    assert_close(together.exp().sum(1), torch.ones(5))  # the logarithm of a mean of probabilities
    states = model.forward_features(x)
    each = torch.stack([model.readout(states[:, i], model.embedding.weight).softmax(-1) for i in range(8)])
    assert_close(together.exp(), each.mean(0))
    assert_close(model.forward_head(states, pre_logits=True), states.mean(1))


@pytest.mark.parametrize("form", FORMS)
def test_predictions_are_means_over_draws(form: str) -> None:
    model, x = FORMS[form]().eval(), images(3, 1, 4, 4)
    each = model.predict(x, 6, seeded(), spread=True)
    assert each.shape == (6, 3, 3)
    assert_close(model.predict(x, 6, seeded()), each.mean(0))
    assert_close(each.sum(-1), torch.ones(6, 3))
    assert not torch.equal(each[0], each[1])
    with pytest.raises(ArgumentError, match=r"^noprop: `n_samples` must be at least 1, got 0\.$"):
        model.predict(x, 0)


@pytest.mark.parametrize("form", FORMS)
def test_soft_labels_that_are_certain_are_labels(form: str) -> None:
    model, x, y = FORMS[form](embed="learned", embed_dim=2).eval(), images(6, 1, 4, 4), torch.arange(6) % 3
    hard, soft = model.training_losses(x, y, seeded()), model.training_losses(x, F.one_hot(y, 3).float(), seeded())
    for name in hard:
        assert_close(hard[name], soft[name])
    mixed = model.embedding(torch.tensor([[0.5, 0.5, 0.0]]))
    assert_close(mixed[0], model.embedding.weight[:2].mean(0))


@pytest.mark.parametrize("form", FORMS)
def test_bad_input_is_refused(form: str) -> None:
    model, x = FORMS[form](), images(4, 1, 4, 4)
    with pytest.raises(
        DataError, match=r"^noprop: labels must be numbers from 0 to 2, got 0 to 3\. Build the network with as many classes"
    ):
        model.training_losses(x, torch.arange(4))
    with pytest.raises(DataError, match="got -1 to 2"):
        model.training_losses(x, torch.arange(4) - 1)
    with pytest.raises(ShapeError, match=r"soft labels must have a row for each image and 3 columns, got \(4, 5\)\."):
        model.training_losses(x, torch.full((4, 5), 0.2))
    wrong = r"^noprop: images must be of shape \(1, 4, 4\), got \(1, 5, 4\)\. Build the network with this `input_size`\.$"
    for call in (model, lambda x: model.training_losses(x, torch.zeros(4, dtype=torch.long)), model.sample, model.predict):
        with pytest.raises(ShapeError, match=wrong):
            call(images(4, 1, 5, 4))


def test_arguments_that_cannot_be_are_refused() -> None:
    refused: list[tuple[Any, dict[str, Any], str]] = [
        (NoPropDT, {"num_classes": 1}, "`num_classes` must be at least 2, got 1: the classes are built into every block"),
        (NoPropDT, {"answer": "softmx"}, r'no `answer` is called "softmx"\. Did you mean softmax\?'),
        (NoPropDT, {"readout": "liner"}, r'no `readout` is called "liner"\. Did you mean linear\?'),
        (NoPropDT, {"hidden": 0}, "`hidden` must be at least 1, got 0"),
        (NoPropDT, {"label_layers": 0}, "`label_layers` must be at least 1, got 0"),
        (NoPropDT, {"samples": 0}, "`samples` must be at least 1, got 0"),
        (NoPropDT, {"embed": "one-hot"}, r'no `embed` is called "one-hot"\. Did you mean onehot\?'),
        (
            NoPropDT,
            {"embed_dim": 4},
            r'with embed="onehot" `embed_dim` must be the number of classes, 3, got 4\. Leave it out, or use embed="l',
        ),
        (NoPropDT, {"embed": "prototype", "embed_dim": 4}, r'with embed="prototype" `embed_dim` must be the number of pixels, 16, got 4'),
        (NoPropDT, {"embed": "learned", "embed_dim": 0}, "`embed_dim` must be at least 1, got 0"),
        (NoPropCT, {"steps": 0}, "`steps` must be at least 1, got 0"),
        (NoPropCT, {"solver": "rk4"}, 'no `solver` is called "rk4"'),
        (NoPropCT, {"sampler": "od"}, r'no `sampler` is called "od"\. Did you mean ode'),
        (
            NoPropCT,
            {"sampler": "sde", "solver": "heun"},
            r'the solver "heun" is of the sampler "ode" alone\. With sampler="sde" take solver=',
        ),
        (NoPropFM, {"sigma": -1.0}, r"`sigma` must be 0 or more, got -1\.0\."),
    ]
    for form, changes, message in refused:
        with pytest.raises(ArgumentError, match=f"^noprop: {message}"):
            form(**{"num_classes": 3, "in_chans": 1, "img_size": 4, **changes})
    model = FORMS["dt"]()
    for t in (0, 5):
        with pytest.raises(ArgumentError, match=rf"^noprop: there are blocks 1 to 4, got t={t}\.$"):
            model.block_loss(t, images(2, 1, 4, 4), torch.tensor([0, 1]))
    with pytest.raises(ArgumentError, match=r"a network of 4 blocks has as many steps, got steps=9\. Leave it out"):
        model.sample(images(2, 1, 4, 4), steps=9)
    with pytest.raises(ArgumentError, match=r"3 classes are built into every block, so the classifier cannot have 7\. Build a new network"):
        model.reset_classifier(7)
    with pytest.raises(ArgumentError, match=r'noprop_dt: no option is called "hiden"\. Did you mean hidden\?'):
        noprop_dt(hiden=3)
    with pytest.raises(ArgumentError, match="`backbone_args` are options of a backbone given by name"):
        noprop_fm(backbone_args={"depth": 8})
    with pytest.raises(ArgumentError, match=r'no `form` is called "tt"'):
        around(tiny("bare"), "tt", num_classes=3, in_chans=3, input_size=(32, 32))


def test_the_classifier_can_be_left_out_and_put_back() -> None:
    model, x = FORMS["dt"]().eval(), images(2, 1, 4, 4)
    before = model(x)
    model.reset_classifier(0)
    assert model(x).shape == (2, 3)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert_close(model(x), model.forward_features(x).mean(1))
    model.reset_classifier(3)
    assert torch.equal(model(x), before)


# --- architecture ----------------------------------------------------------------------------------------------------------------------


def test_batch_norm_follows_every_layer_but_the_last_in_discrete_time_and_none_elsewhere() -> None:
    model = noprop_dt(num_blocks=2, widths=(4, 8), hidden=16, num_classes=5, in_chans=1, input_size=8)
    learns = [type(m) for m in model.blocks[0].modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    norms = [m for m in model.blocks[0].modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(learns) == 2 + 1 + 2 + 2  # convolutions, image, label, joint
    assert len(norms) == len(learns) - 1
    for build in (noprop_ct, noprop_fm):
        other = build(widths=(4, 8), hidden=16, num_classes=5, in_chans=1, input_size=8)
        assert not [m for m in other.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        assert len(other.blocks) == 1


def test_one_block_for_all_times_knows_the_time() -> None:
    block = FORMS["ct"]().blocks[0]
    x, z = images(2, 1, 4, 4), images(2, 3, seed=1)
    early, late = (block(z, block.image(x), torch.full((2,), t)) for t in (0.1, 0.9))
    assert not torch.allclose(early, late)
    waves = parts.time_waves(torch.tensor([0.0, 0.002]), 5)
    assert waves[0].tolist() == [0, 0, 0, 1, 1]
    assert waves[1, [0, 3]].tolist() == pytest.approx([math.sin(2), math.cos(2)], abs=1e-5)


@pytest.mark.parametrize("form", ["dt", "ct", "fm"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_backbone_sees_the_image_with_weights_of_each_blocks_own(kind: Any, form: str) -> None:
    backbone = tiny(kind, num_classes=7)
    options: dict[str, Any] = {"hidden": 12, **({"num_blocks": 3} if form == "dt" else {"steps": 2})}
    model = around(backbone, form, num_classes=4, in_chans=3, input_size=(32, 32), **options)
    x, y = images(4, 3, 32, 32), torch.arange(4)
    found = model.training_losses(x, y)
    sum(value.mean() for value in found.values()).backward()
    branches = [block.image for block in model.blocks]
    assert len({id(parameter) for branch in branches for parameter in branch.parameters()}) == sum(
        len(list(b.parameters())) for b in branches
    )
    for branch in branches:
        assert all(parameter.grad is not None for parameter in branch.parameters())
    assert model.eval()(x).shape == (4, 4)


def test_a_named_backbone_with_its_own_options() -> None:
    model = noprop_dt(num_blocks=2, backbone="small_convnet", backbone_args={"widths": [4, 6]}, num_classes=3, in_chans=1, input_size=8)
    assert model.blocks[0].image.backbone.num_features == 6
    assert model(images(2, 1, 8, 8)).shape == (2, 3)
