"""Somebody who turns a released model to another task with few labeled examples, and looks for the best way to do it.

As arXiv 2211.14946 evaluates: learning rate, steps, batch, and whether the trunk is trained or only a head on it (a linear
probe) are searched; the head is always drawn anew; what counts is the best accuracy seen on the way, on the rows asked. Choosing
by these rows favors the attacker, so that the defender's gain is not overstated. The choice is then run again on fresh examples.
"""

import copy
import math
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast import classifying
from holdfast.classifying import Task
from holdfast.settings import Settings


class Way(NamedTuple):
    """One way to fine-tune."""

    rate: float
    steps: int
    batch: int
    probe: bool
    """Only a head is trained."""


class Found(NamedTuple):
    """What the attacker reached."""

    way: Way
    searched: float
    """Best accuracy of the search."""
    reached: Tensor
    """Each row asked: how often it was right at the best moment of a run again on fresh examples."""

    @property
    def accuracy(self) -> float:
        return float(self.reached.mean())


class Repurposing(Settings):
    """A search over ways to fine-tune, and the best one again."""

    probes: int = Field(6, gt=0)
    """Trials that train a head alone."""
    trials: int = Field(6, gt=0)
    """Trials that train everything."""
    rates: tuple[float, float] = (1e-4, 1e-2)
    """Learning rates of these, drawn log-uniformly between the two; a head alone gets ten times as much."""
    steps: tuple[int, ...] = (100, 200, 400)
    """Steps to choose from."""
    batches: tuple[int, ...] = (8, 12, 24)
    """Batch sizes to choose from; no more than there are examples."""
    every: int = Field(50, gt=0)
    """Steps between two looks at the rows asked."""
    enough: float = Field(1.0, gt=0, le=1)
    """Accuracy at which the search ends."""
    again: int = Field(3, gt=0)
    """Runs of the best way on fresh examples."""

    def __call__(self, trunk: nn.Module, width: int, held: Task, asked: Task, examples: int, seed: int) -> Found:
        """Take so many `examples` of those `held`, and find the best way to answer what is `asked`."""
        chance = torch.Generator().manual_seed(seed)
        ways = [self._drawn(chance, number < self.probes) for number in range(self.probes + self.trials)]
        taken = _taken(held, examples, chance)
        best, chosen = -1.0, ways[0]
        for number, way in enumerate(ways):
            reached = float(self.run(trunk, width, taken, asked, way, seed + number).mean())
            best, chosen = max((best, chosen), (reached, way))
            if best >= self.enough:
                break
        runs = [
            self.run(trunk, width, _taken(held, examples, chance), asked, chosen, seed + 1000 + number)
            for number in range(self.again)
        ]
        return Found(chosen, best, torch.stack(runs).mean(0))

    def _drawn(self, chance: torch.Generator, probe: bool) -> Way:
        low, high = (math.log(rate * (10 if probe else 1)) for rate in self.rates)
        rate = math.exp(low + (high - low) * float(torch.rand((), generator=chance)))
        steps, batch = (
            some[int(torch.randint(len(some), (), generator=chance))] for some in (self.steps, self.batches)
        )
        return Way(rate, steps, batch, probe)

    def run(self, trunk: nn.Module, width: int, taken: Task, asked: Task, way: Way, seed: int) -> Tensor:
        """Which rows are right (1) or wrong (0) at the moment when most are. The trunk itself stays as it is."""
        chance = torch.Generator().manual_seed(seed)
        own = trunk if way.probe else copy.deepcopy(trunk).train()
        start = next(trunk.parameters())
        head = classifying.fresh_head(len(taken.classes), width, chance, start).requires_grad_()
        learned = [head] if way.probe else [head, *own.parameters()]
        optimizer = torch.optim.Adam(learned, lr=way.rate, foreach=True)
        known = classifying.all_features(trunk, taken) if way.probe else None
        unknown = classifying.all_features(trunk, asked) if way.probe else None
        right, labels = torch.tensor(asked.labels), torch.tensor(taken.labels, device=start.device)
        best = torch.zeros(len(asked))
        for step in range(1, way.steps + 1):
            chosen = torch.randperm(len(taken), generator=chance)[: way.batch].tolist()
            seen = known[chosen] if known is not None else classifying.features(own, taken.batch(chosen))
            loss = nn.functional.cross_entropy(seen @ head.T, labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if step % self.every == 0 or step == way.steps:
                features = unknown if unknown is not None else _evaluated(own, asked)
                said = (features @ head.detach().T).argmax(-1).cpu()
                best = max(best, (said == right).float(), key=lambda one: float(one.mean()))
        return best


def _taken(held: Task, examples: int, chance: torch.Generator) -> Task:
    shuffled = torch.randperm(len(held), generator=chance).tolist()
    return held.some(shuffled[:examples])


def _evaluated(trunk: nn.Module, asked: Task) -> Tensor:
    trunk.eval()
    found = classifying.all_features(trunk, asked)
    trunk.train()
    return found
