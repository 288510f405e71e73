"""MLAC on language models: weights from which no rehearsed fine-tuning makes the harmful answers any likelier.

    for each step:
        gradient = mean over points k of a drawn adversary's path, 0 to K:  − ∇ min(surprise of a harmful token, log |V|)
        weights  = AdamW(weights, harm_weight · gradient + ∇ divergence from what the model said before)

The classifier's method (`mlac.py`, arXiv 2211.14946) where the answer is a text. Its calibration has a map of |V|² entries, which
no batch can fit; instead a token counts no further once a guess would find it as likely. Cross-entropy, negated, has no bound,
and training diverged on it (2408.00761). First order; there is no head, the model's own is attacked as it is.
Assumes attacks like those rehearsed, and prompts like the defender's. Does not protect against whoever brings the knowledge along
and teaches it anew, nor against longer attacks.
"""

import itertools
import random

from pydantic import Field

from holdfast import inner, rehearsal, thrift
from holdfast.corpus import Hand
from holdfast.hardening import Training
from holdfast.lm import LM
from holdfast.method import Defense, Log


class MLACGeneration(Training, Defense):
    """Make harmful answers as unlikely along a rehearsed attack as a guess would find them."""

    steps: int = Field(200, gt=0)
    """Outer steps."""
    batch: int = Field(56, gt=0)
    """Rows that are retained in a step."""
    learning_rate: float = Field(3e-4, gt=0)
    """Of the outer AdamW, at its highest."""
    varied: int = Field(2000, ge=0)
    """Prompts made from the defender's by replacing a word, with what the model says to them: few prompts keep little."""
    families: tuple[inner.Family, ...] = Field(inner.FAMILIES, min_length=1)
    """Adversaries to rehearse. What is to be a test of the result must not be among them."""
    inner_steps: int = Field(12, ge=0)
    """Steps of a rehearsed attack (K); 0 is adversarial censoring."""
    looks: int = Field(2, gt=0)
    """Of the points 0 to K, how many are looked at in a step, drawn anew each time: their mean is right on average."""
    looked: int = Field(20, gt=0)
    """Rows at such a point, none of which the adversary holds."""
    harm_weight: float = Field(0.1, ge=0)
    """Of the harmful answers' likelihood, beside the loss on what is retained."""
    refusals: float = Field(0.25, ge=0, le=1)
    """Share of refusals among the rows that are retained."""
    memory: thrift.Memory = thrift.Memory()
    """What is given up where memory is short."""

    def __call__(self, lm: LM, hand: Hand | None, log: Log) -> None:
        ground = rehearsal.Ground(lm, self.lessons(lm, hand), hand)
        reference = self.memory.reference(lm.model)
        with self.hardening(lm, log, self.memory) as walk:
            gathered = inner.Gathered(walk.masters)
            for step in walk.steps():
                chance = random.Random(f"{self.seed} {step}")  # of its own, so that who resumes draws the same
                adversary = inner.drawn(self.families, chance, max(1, self.inner_steps))
                held = ground.held(adversary, chance)
                points = self._points(chance)
                work = itertools.islice(ground.attacking(adversary, held, chance), max(points))
                with inner.kept(walk.weights, walk.masters.copies):
                    for k in inner.attack(lm, adversary, work, chance.randrange(2**31), self.memory):
                        if k in points:
                            harm = rehearsal.known(lm.model, ground.harmful(held, self.looked, chance))
                            harm.backward()
                            gathered.take(1 / len(points))
                retained = rehearsal.diverged(lm.model, reference, ground.retained(self.batch, self.refusals, chance))
                retained.backward()
                gathered.give(self.harm_weight)
                walk.step(harm=harm, retained=retained)

    def _points(self, chance: random.Random) -> set[int]:
        every = range(self.inner_steps + 1)
        return {*chance.sample(every, min(self.looks, len(every)))}
