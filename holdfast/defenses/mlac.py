"""MLAC, meta-learned adversarial censoring: weights from which fine-tuning to a harmful task gains nothing over random ones.

Each step plays an adversary who fine-tunes a copy for K steps, and moves the released weights so that the adversary's loss stays
high all along that path, while the desired task is kept. That loss is the *calibrated* one, which no flipping of labels fools and
which is bounded: the plain one, negated, is not, and diverges. The adversary's head and learning rate are learned against the
weights. With K = 0 this is adversarial censoring, the baseline: what no probe reads may still be a few steps away.
arXiv 2211.14946; K steps through `torch.func`, first order (as 1803.02999) or exact. For classification: benign rows are the
desired task, restricted rows the harmful one, their answers the classes; any encoder or decoder.
Assumes: an adversary with few examples and about the steps simulated. Does not protect against: many examples, from which random
weights learn too; other ways to ask for the same knowledge; whoever reads gender off words the defender never saw.
"""

import math
import random
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from holdfast import classifying, relabeling, unrolled
from holdfast.classifying import Batch, Task
from holdfast.corpus import Hand
from holdfast.lm import LM
from holdfast.method import Defense, Log
from holdfast.problem import Problem
from holdfast.unrolled import Parameters, Slopes

HEAD = "adversary.head"
"""The name of the adversary's head among the trunk's parameters."""
SLOWEST, FASTEST = 1e-6, 1e-2
"""Bounds of the adversary's learned rate."""
INNER_CLIP, OUTER_CLIP = 100.0, 10.0
"""Largest gradient norm in the simulated fine-tuning, and of defender and adversary."""


class MLAC(Defense):
    """Keeps one task and makes another as hard to learn as for random weights."""

    steps: int = Field(150, gt=0)
    """Of defender and adversary."""
    inner_steps: int = Field(16, ge=0)
    """Steps of the adversary that each one simulates; 0 is adversarial censoring, with a head that must be learned."""
    order: unrolled.Order = "first"
    """`exact` differentiates through the simulated steps, in memory that grows with their number; `first` does not."""
    loss: Literal["calibrated", "raw"] = "calibrated"
    """What the defender raises. `raw` is the plain cross-entropy: unbounded, and satisfied by flipped labels."""
    head: Literal["mixture", "learned", "random"] = "mixture"
    """Where the simulated adversary's head starts: as learned against the weights, drawn anew, or either by chance."""
    probes: float = Field(0.25, ge=0, le=1)
    """Share of simulated adversaries that train a head alone, on the trunk as it is."""
    average: Literal["all", "adapted"] = "all"
    """Points of the path that count: `all`, or only those after a step, as the paper writes it."""
    looks: int = Field(4, ge=0)
    """Of these points, how many are looked at in a step, drawn anew each time: their mean is right on average. 0: all."""
    inner_optimizer: Literal["adam", "sgd"] = "adam"
    """Of the simulated adversary."""
    inner_rate: float = Field(2e-3, ge=SLOWEST, le=FASTEST)
    """Where the adversary's learned rate starts."""
    inner_batches: tuple[int, ...] = (8, 12, 24)
    """Rows a simulated step: one of these, by chance, each time."""
    batch: int = Field(48, gt=1)
    """Rows of the harmful task on which the path is judged, and of the desired task."""
    learning_rate: float = Field(1e-3, gt=0)
    """Of the defender's Adam."""
    adversary_rate: float = Field(1e-2, gt=0)
    """Of the Adam that trains the adversary's head and the logarithm of its rate."""
    adversary_steps: int = Field(1, gt=0)
    """Steps of the adversary to each of the defender's."""
    harm_weight: float = Field(1.0, ge=0)
    """Of the adversary's loss beside the desired task's."""
    seed: int = 0
    """Of rows, heads and chances."""

    @model_validator(mode="after")
    def _censor_is_trained(self) -> "MLAC":
        if not self.inner_steps and self.head != "learned":
            raise ValueError(
                "inner_steps 0 fights no simulated adversary but a head; with head 'learned' that is a trained one"
            )
        if not self.inner_steps and self.average == "adapted":
            raise ValueError("average 'adapted' counts no point where inner_steps is 0; give 'all'")
        if not self.inner_batches or min(self.inner_batches) < 1:
            raise ValueError("inner_batches: give one batch size or more, each at least 1")
        return self

    def __call__(self, lm: LM, hand: Hand | None, log: Log) -> None:
        if hand is None:
            raise Problem("mlac: needs the defender's rows of both tasks; give --corpus")
        desired = classifying.task(lm, hand.need("benign", split="train"))
        harmful = classifying.task(lm, hand.need("restricted", split="train"))
        game, deal = _Game(self, lm, desired, harmful), _Deal(self, desired, harmful)
        watch = _Watch(len(harmful.classes))
        if doubt := relabeling.doubt(len(harmful.classes), deal.judged):
            log.metrics(warning=doubt)
        lm.model.eval()
        for step in range(1, self.steps + 1):
            for _ in range(self.adversary_steps):
                judged, taught = deal.harmful()
                found = game.simulate(judged, taught)
                game.adversary_step(found)
            good = game.defender_step(found, deal.desired())
            watch.saw(good, found)
            if step % max(1, self.steps // 10) == 0 or step == self.steps:
                log.metrics(step=step, desired=good, harm=found.harm, raw=found.raw, rate=game.rate)
        watch.conclude(log)


class _Game:
    """The weights of both sides, and what each does to its own."""

    def __init__(self, settings: MLAC, lm: LM, desired: Task, harmful: Task):
        self.settings = settings
        self.trunk, self.width, self.classes = classifying.trunk(lm), classifying.width(lm), len(harmful.classes)
        self.chance = torch.Generator().manual_seed(settings.seed)
        like = next(self.trunk.parameters())
        self.weights = _reached(self.trunk, desired)
        self.desired_head = self._fresh(len(desired.classes), like)
        self.head = self._fresh(self.classes, like)
        self.log_rate = torch.tensor(
            math.log(settings.inner_rate), dtype=like.dtype, device=like.device, requires_grad=True
        )
        self.defender = torch.optim.Adam([*self.weights.values(), self.desired_head], settings.learning_rate)
        self.adversary = torch.optim.Adam([self.head, self.log_rate], settings.adversary_rate)

    @property
    def rate(self) -> float:
        return math.exp(float(self.log_rate.detach()))

    def simulate(self, judged: Batch, taught: list[Batch]) -> Slopes:
        """An adversary fine-tunes a copy on what it is taught; its losses on what is judged, along the way, and their slopes."""
        settings = self.settings
        drawn = settings.head == "random" or (settings.head == "mixture" and self._chance(0.5))
        head = self._fresh(self.classes, self.head) if drawn else self.head
        start, own = {**self.weights, HEAD: head}, frozenset() if drawn else frozenset({HEAD})
        optimizer = unrolled.Adam() if settings.inner_optimizer == "adam" else unrolled.SGD()
        points, frozen = self._points(), frozenset(self.weights if self._chance(settings.probes) else ())
        with sdpa_kernel(SDPBackend.MATH):  # the fast kernels have no second derivative
            steps, rate = taught[: max(points)], self.log_rate.exp()
            path = unrolled.walk(start, self._taught, steps, optimizer, rate, settings.order, INNER_CLIP, frozen)
            looked = (parameters for number, parameters in enumerate(path) if number in points)
            return unrolled.slopes(
                start, looked, lambda at: self._losses(at, judged), self.log_rate, own, settings.order
            )

    def adversary_step(self, found: Slopes) -> None:
        """Down the raw loss, by head (unless it was drawn) and rate."""
        self.head.grad, self.log_rate.grad = found.adversary.get(HEAD), found.rate
        _clipped_step(self.adversary, [self.head, self.log_rate])
        with torch.no_grad():
            self.log_rate.clamp_(math.log(SLOWEST), math.log(FASTEST))

    def defender_step(self, found: Slopes, batch: Batch) -> float:
        """Down the desired task's loss, which is returned, and up the harm, by the released weights."""
        good = nn.functional.cross_entropy(classifying.features(self.trunk, batch) @ self.desired_head.T, batch.labels)
        self.defender.zero_grad(set_to_none=True)
        good.backward()
        for name, weight in self.weights.items():
            weight.grad -= self.settings.harm_weight * found.defender[name]
        _clipped_step(self.defender, [*self.weights.values(), self.desired_head])
        return float(good.detach())

    def _logits(self, parameters: Parameters, batch: Batch) -> Tensor:
        trunk = {name: value for name, value in parameters.items() if name != HEAD}
        return classifying.features(self.trunk, batch, trunk) @ parameters[HEAD].T

    def _taught(self, parameters: Parameters, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(self._logits(parameters, batch), batch.labels)

    def _losses(self, parameters: Parameters, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self._logits(parameters, batch)
        raw = nn.functional.cross_entropy(logits, batch.labels)
        return (raw if self.settings.loss == "raw" else relabeling.calibrated(logits, batch.labels)), raw

    def _fresh(self, classes: int, like: Tensor) -> Tensor:
        return classifying.fresh_head(classes, self.width, self.chance, like.detach()).requires_grad_()

    def _points(self) -> set[int]:
        """The points of the path that are looked at; 0 is its start."""
        settings = self.settings
        every = list(range(int(settings.average == "adapted"), settings.inner_steps + 1))
        drawn = torch.randperm(len(every), generator=self.chance).tolist()
        return {every[place] for place in drawn[: settings.looks or None]}

    def _chance(self, share: float) -> bool:
        return float(torch.rand((), generator=self.chance)) < share


class _Deal:
    """Batches of both tasks: what a path is judged on is never among what it is taught."""

    def __init__(self, settings: MLAC, desired: Task, harmful: Task):
        self.settings, self.tasks = settings, (desired, harmful)
        self.chance = random.Random(settings.seed)
        self.judged = min(settings.batch, len(harmful) // 2)
        """Rows that a path is judged on."""
        if not self.judged:
            raise Problem(
                "mlac: the defender holds one restricted row; it takes one to fine-tune and one to judge it by"
            )

    def desired(self) -> Batch:
        task = self.tasks[0]
        return task.batch(self.chance.sample(range(len(task)), min(self.settings.batch, len(task))))

    def harmful(self) -> tuple[Batch, list[Batch]]:
        task, size = self.tasks[1], self.chance.choice(self.settings.inner_batches)
        judged, taught = split(len(task), self.judged, size, self.settings.inner_steps, self.chance)
        return task.batch(judged), [task.batch(some) for some in taught]


def split(rows: int, judged: int, size: int, steps: int, chance: random.Random) -> tuple[list[int], list[list[int]]]:
    """Numbers of the rows judged, and of `steps` batches of the others, which begin anew when all were taken."""
    shuffled = chance.sample(range(rows), rows)
    others = shuffled[judged:]
    stream = [others[place % len(others)] for place in range(size * steps)]
    return shuffled[:judged], [stream[step * size : (step + 1) * size] for step in range(steps)]


@dataclass
class _Watch:
    """Whether the game runs away: the adversary's loss far above chance, the desired task's rising."""

    classes: int
    desired: float = math.nan
    """A running mean."""
    lowest: float = math.inf
    raw: float = 0.0

    def saw(self, desired: float, found: Slopes) -> None:
        """Raises `Problem` at the first number that is none."""
        if not all(map(math.isfinite, (desired, found.harm, found.raw))):
            raise Problem(
                f"mlac: diverged (desired loss {desired:.3g}, harmful loss {found.raw:.3g}); nothing is saved: take the "
                "calibrated loss, or lower learning_rate"
            )
        self.desired = desired if math.isnan(self.desired) else 0.9 * self.desired + 0.1 * desired
        self.raw = 0.9 * self.raw + 0.1 * found.raw
        self.lowest = min(self.lowest, self.desired)

    def conclude(self, log: Log) -> None:
        """Say whether it diverged."""
        diverged = self.raw > 4 * math.log(self.classes) and self.desired > self.lowest + 0.1
        log.metrics(diverged=diverged, desired=self.desired, lowest=self.lowest, raw=self.raw)
        if diverged:
            log.metrics(
                warning=f"diverged: the adversary's loss is {self.raw:.3g}, chance {math.log(self.classes):.3g}, and the desired "
                "task's has risen; this is a broken model, not a hardened one"
            )


def _reached(trunk: nn.Module, task: Task) -> Parameters:
    """The trunk's parameters on which its features depend: a pooler, say, is none of them."""
    named = {name: weight for name, weight in trunk.named_parameters() if weight.requires_grad}
    out = classifying.features(trunk, task.batch([0])).sum()
    slopes = torch.autograd.grad(out, list(named.values()), allow_unused=True)
    return {name: weight for (name, weight), slope in zip(named.items(), slopes, strict=True) if slope is not None}


def _clipped_step(optimizer: torch.optim.Optimizer, weights: list[Tensor]) -> None:
    nn.utils.clip_grad_norm_([weight for weight in weights if weight.grad is not None], OUTER_CLIP)
    optimizer.step()
