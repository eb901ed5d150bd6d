"""N2N: two learned policies remove a network's layers and shrink what remains (Ashok et al. 2018, arXiv 1709.06030).

Each candidate is built anew, trained briefly on the teacher's logits, and rewarded for accuracy and compression. Works on any feed-forward
convolutional network; `apply_removal` and `apply_shrinkage` are the edits alone.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from retinue.compress.n2n_edits import apply_removal, apply_shrinkage, count_parameters, layer_descriptions, smaller, uniform_width
from retinue.compress.n2n_policies import (
    Policy,
    RemovalPolicy,
    ShrinkagePolicy,
    load_policy,
    policy_loss,
    save_policy,
    uniform_actions,
)
from retinue.compress.n2n_reward import INVALID, check_limits, compression_reward, milliseconds, softness
from retinue.compress.n2n_students import FINAL, STUDENT, TeachersAnswers
from retinue.data import Data
from retinue.engine import evaluate, fit, logits, stages
from retinue.engine.seeds import mix, own_randomness, seed_all
from retinue.errors import ArgumentError, NonFiniteError, RetinueError, unknown
from retinue.models import count_macs
from retinue.models.edited_network import Edited, edit, edited_network, follow
from retinue.models.layer_graph import LayerGraph

__all__ = [
    "N2N", "CompressionResult", "Edited", "apply_removal", "apply_shrinkage", "edited_network", "layer_descriptions", "uniform_width",
]  # fmt: skip
Stage = Literal["removal", "shrinkage", "both"]
STAGES = ("removal", "shrinkage", "both")
MOMENTUM = 0.9  # of the mean reward of the epochs before, the baseline
ACTIONS, WEIGHTS, POLICY, LAST, UNIFORM = 1, 2, 3, 4, 5  # what is derived from the seed
SETTINGS = [name for name in inspect.signature(fit).parameters if name not in ("model", "objective", "data", "run_dir", "progress", "seed")]
SPEED_IMAGES = 32
Row = dict[str, Any]


@dataclass
class CompressionResult:
    """What N2N found.

    Attributes:
        best: the best student, trained to the end, in evaluation mode.
        chosen: its numbers: "stage", "epoch", "rollout", "parameters", "macs", "compression" (teacher's parameters / its own), "reward",
            "top1" on the test images, "ms" and "teacher_ms" for one image and their ratio "speed_up" (measured, see
            `n2n_reward.milliseconds`), and "within_limits".
        teacher: "parameters", "macs", "val_top1", and "top1" on the test images.
        table: every candidate: "stage", "epoch", "rollout", "parameters", "macs", "compression", "val_top1", "reward", "invalid" (why it
            was not trained, or ""), "actions".
        policies: those that were learned, by stage.
    """

    best: nn.Module
    chosen: Row
    teacher: Row
    table: list[Row]
    policies: dict[str, Policy] = field(default_factory=dict)

    def mean_reward(self, stage: str, part: slice) -> float:
        """Average the rewards of some of a stage's epochs, such as the last third."""
        epochs = sorted({row["epoch"] for row in self.table if row["stage"] == stage})[part]
        rewards = [row["reward"] for row in self.table if row["stage"] == stage and row["epoch"] in epochs]
        return sum(rewards) / len(rewards)


class N2N:
    """The search: removal, then shrinking of the best student of removal, then the best of all is trained to the end.

    The validation images give the rewards; the test images are looked at once, at the end.

    Args:
        teacher: a trained classifier, any feed-forward convolutional network; it is not changed.
        data: labelled images with a validation split.
        stage: "removal", "shrinkage" (of the teacher itself) or "both".
        student_fit: arguments of `retinue.fit` for each candidate, beside the paper's: Adam, lr 5e-4, weight decay 5e-4, 5 epochs.
        final_fit: of the training of the best one; beside the same with 50 epochs. With `views` the teacher answers each of them.
        max_params: limit of the student's parameters.
        min_acc: least validation accuracy.
        policy_lr: learning rates of the removal and the shrinkage policy.
        removal_policy: a policy, or the folder of one, that was trained on another teacher; None begins anew.
        shrinkage_policy: as well.
        learn: False draws all actions uniformly and learns nothing: random search with the same budget.
        shared_reward: as in the authors' code, every rollout of an epoch gets their mean reward, one update for each.
        skips: describe layers by seven numbers instead of five.
        temperature: T of the final loss; see `n2n_students.tempered_error`.
        label_weight: lambda there.
        seed: of everything random.
        run_dir: a killed run with the same folder goes on at its policy epoch, bit for bit; policies stand in `policies`, the trained
            student in `student`.
        progress: say how it goes.

    Raises:
        ArgumentError: if the teacher cannot be edited, is never right, or has another number of classes, there are no validation images,
            a limit is impossible, or a setting unknown.
    """

    def __init__(
        self,
        teacher: nn.Module,
        data: Data,
        stage: Stage = "both",
        *,
        student_fit: Mapping[str, Any] | None = None,
        final_fit: Mapping[str, Any] | None = None,
        max_params: int | None = None,
        min_acc: float | None = None,
        policy_lr: Sequence[float] = (0.003, 0.01),
        removal_policy: Policy | str | Path | None = None,
        shrinkage_policy: Policy | str | Path | None = None,
        learn: bool = True,
        shared_reward: bool = False,
        skips: bool = False,
        temperature: float = 3.0,
        label_weight: float = 0.3,
        seed: int = 0,
        run_dir: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        if stage not in STAGES:
            raise unknown("n2n", "stage", stage, STAGES)
        check_limits(max_params, min_acc)
        if not len(data.val):
            raise ArgumentError("n2n: rewards come from validation images, and there are none. Open the data with val_fraction=0.1.")
        if len(policy_lr) != 2 or not all(lr > 0 for lr in policy_lr):
            raise ArgumentError(f"n2n: `policy_lr` needs two positive numbers, of removal and of shrinkage, got {list(policy_lr)}.")
        for name, block in (("student_fit", student_fit), ("final_fit", final_fit)):
            for key in block or ():
                if key not in SETTINGS:
                    raise unknown("n2n", f"setting of `{name}`", key, SETTINGS)
        if (student_fit or {}).get("views") is not None:
            raise ArgumentError("n2n: candidates learn answers that were computed once. Leave `views` out of `student_fit`.")
        shape = (1, data.preprocessing.channels, *data.preprocessing.input_size)
        device = next((p.device for p in teacher.parameters()), torch.device("cpu"))
        self.layers = follow(teacher, torch.zeros(shape, device=device))
        if self.layers.classes != len(data.classes):
            raise ArgumentError(
                f"n2n: the teacher has {self.layers.classes} outputs and {data.name} has {len(data.classes)} classes. "
                "Take a teacher that was trained on these classes."
            )
        self.temperature, self.label_weight = temperature, label_weight
        TeachersAnswers(teacher, temperature, label_weight)  # says now what cannot be
        self.teacher, self.data, self.stage = teacher, data, stage
        self.student_fit, self.final_fit = {**STUDENT, **(student_fit or {})}, {**FINAL, **(final_fit or {})}
        self.max_params, self.min_acc = max_params, min_acc
        self.learn, self.shared_reward, self.skips = learn, shared_reward, skips
        self.seed, self.progress = seed, progress
        self.stages = stages(run_dir)
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.lr = dict(zip(STAGES, policy_lr))
        self.policies: dict[str, Policy] = {}
        for kind, given in (("removal", removal_policy), ("shrinkage", shrinkage_policy)):
            if stage in (kind, "both"):
                self.policies[kind] = self._policy(kind, given)
        self.parameters = count_parameters(teacher)
        self.accuracy = evaluate(teacher, data.val)["top1"]
        if self.accuracy == 0:
            raise ArgumentError("n2n: the teacher is right on none of the validation images. Train it first.")
        self.answers: Tensor | None = None
        if not bool(torch.isfinite(logits(teacher, data.val)[0]).all()):
            raise ArgumentError("n2n: the teacher's answers to the validation images are not finite. Take one whose training went well.")

    def run(self, epochs: int | Sequence[int] = 100, rollouts: int = 5) -> CompressionResult:
        """Search, and train the best student to the end.

        Args:
            epochs: of the policy; of both stages, or a pair.
            rollouts: candidates of an epoch.

        Raises:
            ArgumentError: if a number is below 1, or no candidate was valid.
        """
        each = [epochs, epochs] if isinstance(epochs, int) else list(epochs)
        if len(each) != 2 or not all(isinstance(n, int) and n >= 1 for n in (*each, rollouts)):
            raise ArgumentError(f"n2n: `epochs` and `rollouts` must be 1 or more, got {epochs} and {rollouts}.")
        table: list[Row] = []
        layers, edits = self.layers, {"removal": self.layers}
        for kind, count in zip(STAGES, each):
            if kind not in self.policies:
                continue
            edits[kind] = layers
            rows = self._search(kind, layers, count, rollouts)
            table += rows
            best = self._best(rows)
            if kind == "removal" and best is not None and "shrinkage" in self.policies:
                smaller = self._edit("removal", layers, torch.tensor(best["actions"]), mix(self.seed, WEIGHTS))
                layers = follow(smaller.model, self.layers.images[:1].cpu())  # type: ignore[arg-type]
        best = self._best(table)
        if best is None:
            reasons = [row["invalid"] for row in table]
            raise ArgumentError(
                f"n2n: none of the {len(table)} students was valid; most often: {max(set(reasons), key=reasons.count)}. "
                "Give more epochs or rollouts, or a policy that was trained on another teacher."
            )
        student = self._edit(best["stage"], edits[best["stage"]], torch.tensor(best["actions"]), mix(self.seed, LAST)).model
        assert student is not None  # it was built before from the same actions
        done = self._finish("student", student)
        if self.run_dir is not None:
            for kind, policy in self.policies.items():
                save_policy(policy, self.run_dir / "policies" / kind)
        chosen = {key: best[key] for key in ("stage", "epoch", "rollout", "compression", "val_top1", "reward")} | done["student"]
        return CompressionResult(student, chosen | {"within_limits": self._within(best)}, done["teacher"], table, self.policies)

    def uniform(self, max_params: int) -> tuple[nn.Module, Row]:
        """Train the baseline to the end: the teacher with all widths shrunk by one factor.

        Args:
            max_params: how many parameters it may have, such as those of the student that was found.

        Returns:
            The network, and "parameters", "macs", "top1", "ms", "teacher_ms" and "speed_up".
        """
        with own_randomness():
            seed_all(self.seed, UNIFORM)
            model = uniform_width(self.teacher, max_params, self.layers.images).model
        assert model is not None  # or uniform_width would have raised
        return model, self._finish("uniform", model)["student"]

    def _policy(self, kind: str, given: Policy | str | Path | None) -> Policy:
        wanted, numbers = {"removal": RemovalPolicy, "shrinkage": ShrinkagePolicy}[kind], 7 if self.skips else 5
        if given is None:
            with own_randomness():
                seed_all(self.seed, POLICY, STAGES.index(kind))
                return wanted(input=numbers)
        policy = load_policy(given) if isinstance(given, str | Path) else copy.deepcopy(given)
        if not isinstance(policy, wanted) or policy.input != numbers:
            raise ArgumentError(
                f"n2n: `{kind}_policy` must be a {wanted.__name__} of {numbers} numbers a layer, got a {type(policy).__name__} of "
                f"{policy.input}."
            )
        return policy

    def _search(self, kind: str, layers: LayerGraph, epochs: int, rollouts: int) -> list[Row]:
        """Run a stage's policy epochs, each once for good."""
        policy, shown = self.policies[kind], layers.descriptions(self.skips)
        optimizer = torch.optim.Adam(policy.parameters(), self.lr[kind])
        rows: list[Row] = []
        baseline: float | None = None
        for epoch in range(epochs):
            done = self.stages(f"{kind}-{epoch:03d}", self._epoch, kind, layers, shown, optimizer, epoch, rollouts, baseline)
            policy.load_state_dict(done["policy"])
            state = {int(number): values for number, values in done["optimizer"].items()}
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
            baseline = done["baseline"]
            rows += done["rows"]
            if self.progress:
                mean = sum(row["reward"] for row in done["rows"]) / rollouts
                print(f"{kind} {epoch + 1}/{epochs}: mean reward {mean:.3f}, best so far {max(row['reward'] for row in rows):.3f}")
        return rows

    def _epoch(
        self, kind: str, layers: LayerGraph, shown: Tensor, optimizer: Any, epoch: int, rollouts: int, baseline: float | None
    ) -> Row:
        policy, rows, drawn = self.policies[kind], [], []
        for number in range(rollouts):
            seed = mix(self.seed, STAGES.index(kind), epoch, number)
            with own_randomness(), torch.no_grad():
                seed_all(seed, ACTIONS)
                actions = policy(shown)[0] if self.learn else uniform_actions(policy, len(shown))
            drawn.append(actions)
            rows.append({"stage": kind, "epoch": epoch, "rollout": number, **self._candidate(kind, layers, actions, epoch, seed)})
        rewards = torch.tensor([row["reward"] for row in rows])
        mean = float(rewards.mean())
        before = mean if baseline is None else baseline  # what the epochs before this one say; the first has none
        if self.learn:
            groups: list[tuple[list[Tensor], Tensor]] = [(drawn, rewards)]
            if self.shared_reward:
                groups = [([one], rewards.mean()[None]) for one in drawn]
            for some, reward in groups:
                optimizer.zero_grad()
                policy_loss(torch.stack([policy(shown, actions)[1] for actions in some]), reward, before).backward()
                optimizer.step()
        moments = optimizer.state_dict()["state"]
        return {
            "policy": dict(policy.state_dict()),
            "optimizer": {str(key): dict(value) for key, value in moments.items()},
            "baseline": MOMENTUM * before + (1 - MOMENTUM) * mean,
            "rows": rows,
        }

    def _edit(self, kind: str, layers: LayerGraph, actions: Tensor, seed: int) -> Edited:
        with own_randomness():
            seed_all(seed, WEIGHTS)
            policy = self.policies[kind]
            if isinstance(policy, ShrinkagePolicy):
                return smaller(edit(layers, None, policy.factors(actions)), self.parameters)
            return smaller(edit(layers, actions.bool().tolist()), self.parameters)

    def _candidate(self, kind: str, layers: LayerGraph, actions: Tensor, epoch: int, seed: int) -> Row:
        """Build, train and judge a student; it never raises for what the actions made of it."""
        made = self._edit(kind, layers, actions, seed)
        row: Row = {
            "parameters": made.parameters, "macs": 0, "compression": self.parameters / max(made.parameters, 1), "val_top1": 0.0,
            "reward": INVALID, "invalid": made.invalid, "actions": actions.tolist(),
        }  # fmt: skip
        if not made.invalid and self.max_params is not None and made.parameters > self.max_params and not softness(epoch):
            row["invalid"] = f"{made.parameters} parameters, and {self.max_params} are allowed"
        if made.model is None or row["invalid"]:
            return row
        row["macs"] = self._macs(made.model)
        objective = TeachersAnswers(self._answers())
        # the last step is what counts: choosing an epoch by the images that give the reward would flatter it
        settings = {"eval_every": 1 << 30, "loggers": (), **self.student_fit}
        try:
            row["val_top1"] = fit(made.model, objective, self.data, **settings, seed=self.seed, progress=False).metrics["top1"]
        except NonFiniteError:
            row["invalid"] = "its loss became infinite"
            return row
        except (RuntimeError, ValueError) as error:
            if isinstance(error, RetinueError):
                raise
            row["invalid"] = f"it cannot be trained: {' '.join(str(error).split())[:160]}"
            return row
        row["reward"] = compression_reward(
            row["val_top1"], made.parameters, self.accuracy, self.parameters, self.max_params, self.min_acc, epoch
        )
        return row

    def _answers(self) -> Tensor:
        """The teacher's logits of all training images, computed once for all students."""
        if self.answers is None:
            self.answers = logits(self.teacher, self.data.train)[0]
        return self.answers

    def _best(self, rows: list[Row]) -> Row | None:
        valid = [row for row in rows if not row["invalid"]]
        return max(valid, key=lambda row: (self._within(row), row["reward"]), default=None)

    def _within(self, row: Row) -> bool:
        few = self.max_params is None or row["parameters"] <= self.max_params
        return few and (self.min_acc is None or row["val_top1"] >= self.min_acc)

    def _macs(self, model: nn.Module) -> int:
        return count_macs(model, self.data.preprocessing.input_size, in_chans=self.data.preprocessing.channels)

    def _finish(self, name: str, student: Any) -> Row:
        """Train a student to the end, once for good, then look at the test images and at the clock."""
        done = self.stages(name, self._trained, name, student)
        student.load_state_dict(done["weights"])
        student.eval()
        student.classes, student.preprocessing = self.data.classes, self.data.preprocessing
        return done

    def _trained(self, name: str, student: nn.Module) -> Row:
        seen = self.teacher if self.final_fit.get("views") else self._answers()
        objective = TeachersAnswers(seen, self.temperature, self.label_weight)
        run = fit(student, objective, self.data, **self.final_fit, seed=self.seed, run_dir=self.stages.folder(name), progress=self.progress)
        held_out = self.data.test if len(self.data.test) else self.data.val
        device = next(run.model.parameters()).device
        images = next(iter(held_out.loader(SPEED_IMAGES, device=device).batches())).images
        slow, fast = milliseconds([copy.deepcopy(self.teacher).to(device), run.model], images)
        return {
            "weights": dict(run.model.state_dict()),
            "student": {
                "parameters": count_parameters(student), "macs": self._macs(student), "top1": evaluate(run.model, held_out)["top1"],
                "ms": fast, "teacher_ms": slow, "speed_up": slow / fast,
            },
            "teacher": {
                "parameters": self.parameters, "macs": self._macs(self.teacher), "val_top1": self.accuracy,
                "top1": evaluate(self.teacher, held_out)["top1"],
            },
        }  # fmt: skip
