"""TAR, tampering attack resistance: rehearse attacks, and learn weights from which they do not lead far.

    for each outer step:
        adversary = drawn from the families; it holds some of the defender's rows
        gradient  = Σ share(k) · ∇ (resistance + forgetting) where the adversary is after k steps, on rows that it lacks
        weights   = AdamW(weights, resistance_weight · gradient + ∇ retain at the weights as they were)

arXiv 2408.00761, first order: the gradient at the attacked weights counts as one at the weights themselves. Assumes attacks like
those rehearsed: more steps, other rates, optimizers and adapters it may not meet at all (2412.07097), so an audit needs families
that were kept out. Does not protect against edits, cuts and prompts, nor against whoever trains long enough.
"""

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from holdfast import footprint, inner, losses, shards, thrift, train
from holdfast.corpus import Hand, Row
from holdfast.hardening import Training
from holdfast.lm import LM
from holdfast.method import Defense, Log
from holdfast.rehearsal import Ground, diverged, known
from holdfast.safeguards import Safeguard, forgetting

_BETA = 0.1
"""Of DPO, as published."""
_RATES = (2e-6, 4e-5)
"""The published adversaries' lowest and highest learning rate; their lists are {2e-6, 2e-5, 4e-5}."""
_PUBLISHED: dict[str, dict[str, Any]] = {
    "paper-refusal": {
        "resistance": "dpo",
        "resistance_weight": 0.444,  # 0.1, times the sum 4.438 of shares that the program does not normalize
        "steps": 100,
        "learning_rate": 6e-5,
        "families": [{"learning_rate": _RATES, "batch": [32], "examples": [10_000]}],
    },
    "paper-bio": {
        "resistance": "entropy",
        "resistance_weight": 17.75,  # 4.0, times the same sum
        "safeguard": "random-mapping",
        "safeguard_steps": 1000,
        "steps": 750,
        "learning_rate": 2e-5,
        "families": [
            {"learning_rate": _RATES, "batch": [32], "examples": [10_000], "share": 2.0},
            {"learning_rate": _RATES, "batch": [32], "examples": [10_000], "data": "switch"},
        ],
    },
}
for _settings in _PUBLISHED.values():
    _settings |= {"inner_steps": 64, "stride": 4, "growth": 0.0625, "warmup": 32, "batch": 64, "looked": 64}
    _settings |= {"schedule": "constant", "retain": "published", "varied": 0, "forgetting_weight": 0.0}


class TAR(Training, Defense):
    """Learn weights from which rehearsed attacks do not lead far."""

    steps: int = Field(240, gt=0)
    """Outer steps."""
    batch: int = Field(56, gt=0)
    """Rows that are retained in a step."""
    learning_rate: float = Field(3e-4, gt=0)
    """Of the outer AdamW, at its highest."""
    varied: int = Field(2000, ge=0)
    """Prompts made from the defender's by replacing a word, with what the model says to them: few prompts keep little."""
    preset: Literal["paper-refusal", "paper-bio"] | None = None
    """The settings published for Llama 3 8B, refusals or knowledge of biology, but for what is given beside it. Their program
    multiplies the gradient by shares that sum to 4.438; ours sum to 1, and the presets' weights make up for it. Its outer
    optimizer is schedule-free AdamW, ours AdamW."""
    resistance: Literal["refusal", "dpo", "entropy"] = "refusal"
    """The loss at attacked weights. `refusal`: of the model's own refusals. `dpo`: that refusals are preferred to harmful
    answers, against the released model (beta 0.1). `entropy`: that a harmful answer's tokens are anybody's guess."""
    resistance_weight: float = Field(1.0, ge=0)
    """Of the resistance loss, beside the loss on what is retained."""
    forgetting_weight: float = Field(0.1, ge=0)
    """Added to that loss, so many times: how much better than a guess the harmful answers are known where the attack stands.
    Not the paper's: refusals alone come undone by few steps of SGD and of LoRA, which then find the answers where they were."""
    families: tuple[inner.Family, ...] = Field(inner.FAMILIES, min_length=1)
    """Adversaries to rehearse, of all weights by two optimizers. What is to be a test of the result must not be among them. Rates
    are the text organism's, which is 160 wide; larger models want smaller ones (the presets', at 4096)."""
    inner_steps: int = Field(12, ge=0)
    """Steps of a rehearsed attack (K). 0 is the control that rehearses none: the same losses at the weights themselves."""
    stride: int = Field(6, gt=0)
    """The resistance loss is taken after every so many of them."""
    growth: float = Field(0.0625, ge=0)
    """A loss taken one step later counts exp(growth) times as much; shares sum to 1."""
    looked: int = Field(12, gt=0)
    """Rows of a resistance loss, and of forgetting."""
    matched_inner_steps: int | None = Field(None, gt=0)
    """With `inner_steps` of 0: go on until as many tokens are trained on as with so many inner steps."""
    retain: Literal["distill", "published"] = "distill"
    """What holds the model as it is. `distill`: the divergence from its own predictions, on what it says itself. `published`:
    the loss on these answers, and the drift of all hidden states."""
    refusals: float = Field(0.25, ge=0, le=1)
    """Share of refusals among the rows that are retained."""
    warmup: int = Field(10, ge=0)
    """Steps of linear warm-up."""
    safeguard: Safeguard = "none"
    """What takes the restricted answers away first, where knowledge is to be gone and not refused."""
    safeguard_steps: int = Field(100, gt=0)
    """Steps of that."""
    memory: thrift.Memory = thrift.Memory()
    """What is given up where memory is short."""

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, given: Any) -> Any:
        published = _PUBLISHED.get(given.get("preset") or "") if isinstance(given, dict) else None
        if not published:
            return given
        # The command line gives every setting: what is a default's value is not somebody's choice.
        fields = cls.model_fields
        chosen = {name: value for name, value in given.items() if name not in fields or value != fields[name].default}
        return published | chosen

    @property
    def total(self) -> int:
        if self.inner_steps or not self.matched_inner_steps:
            return self.steps
        rehearsing, bare = (self._rows(steps) for steps in (self.matched_inner_steps, 0))
        return round(self.steps * rehearsing / bare)

    def _rows(self, inner_steps: int) -> float:
        """Rows that one outer step is trained on, forward and backward; the families' mean batch."""
        shares = [family.share for family in self.families]
        batches = [sum(family.batch) / len(family.batch) for family in self.families]
        mean = sum(share * batch for share, batch in zip(shares, batches, strict=True)) / sum(shares)
        return inner_steps * mean + len(self.shares(inner_steps)) * self._judged + self.batch

    @property
    def _judged(self) -> int:
        """Rows of a look at the attacked model, as it reads them; a preference has two."""
        return self.looked * ((2 if self.resistance == "dpo" else 1) + (self.forgetting_weight > 0))

    def shares(self, inner_steps: int) -> dict[int, float]:
        """How much the resistance loss counts after each step of a rehearsed attack where it is taken; they sum to 1."""
        looked = range(self.stride, inner_steps + 1, self.stride) or [inner_steps]
        raw = {k: math.exp(self.growth * (k - inner_steps)) for k in looked}
        return {k: share / sum(raw.values()) for k, share in raw.items()}

    def planned(self, model: str, length: int, answer: int, gpus: int, card: footprint.Card) -> Iterator[str]:
        """What it will take, told from a config alone."""
        text = footprint.Text(length, answer)
        yield from footprint.told(footprint.config(model), self.rehearsal(), text, gpus, card)
        if self.safeguard != "none":
            yield f"not counted: {self.safeguard_steps} first steps of safeguard {self.safeguard}"
        if self.retain == "published":
            yield "not counted: hidden states of all layers, which retain = published compares with the reference's"

    def rehearsal(self) -> footprint.Rehearsal:
        """What its memory and time depend on."""
        held = self.looked * (2 if self.resistance == "dpo" else 1)
        looks = {"refusal": None, "dpo": losses.surprise, "entropy": lambda logits, _: losses.negative_entropy(logits)}
        return footprint.Rehearsal(
            outer_steps=self.total,
            inner_steps=self.inner_steps,
            looks=len(self.shares(self.inner_steps)) * self._judged / held,
            held=held,
            retained=self.batch,
            resistance=looks[self.resistance],
            adversaries=[family.largest() for family in self.families],
            memory=self.memory,
        )

    def __call__(self, lm: LM, hand: Hand | None, log: Log) -> None:
        ground = Ground(lm, self.lessons(lm, hand), hand)
        reference = self.memory.reference(lm.model)
        if self.resistance == "dpo":
            ground.remember(reference)
        if self.safeguard != "none":
            self._install(lm, reference, ground, log)
        with self.hardening(lm, log, self.memory) as walk:
            gathered, shares = inner.Gathered(walk.masters), self.shares(self.inner_steps)
            for step in walk.steps():
                chance = random.Random(f"{self.seed} {step}")  # of its own, so that who resumes draws the same
                adversary = inner.drawn(self.families, chance, max(1, self.inner_steps))
                held = ground.held(adversary, chance)
                work = itertools.islice(ground.attacking(adversary, held, chance), self.inner_steps)
                with inner.kept(walk.weights, walk.masters.copies):
                    for k in inner.attack(lm, adversary, work, chance.randrange(2**31), self.memory):
                        if k in shares:
                            told = self._looked(lm, ground, held, chance)
                            gathered.take(shares[k])
                retained = self._retained(lm, reference, ground, chance)
                retained.backward()
                norms = {"resisting": gathered.norm(), "retaining": walk.norm()}
                gathered.give(self.resistance_weight)
                walk.step(**told, retained=retained, **norms)

    def _install(self, lm: LM, reference: nn.Module, ground: Ground, log: Log) -> None:
        """Take the restricted answers away first."""
        forgotten = forgetting(self.safeguard, lm.model, reference, self.seed)
        first = self.model_copy(update={"steps": self.safeguard_steps, "inner_steps": 1})
        with first.hardening(lm, log, self.memory) as walk:
            for step in walk.steps():
                chance = random.Random(f"{self.safeguard} {self.seed} {step}")
                loss = forgotten(ground.harmful([], self.batch, chance))
                retained = self._retained(lm, reference, ground, chance)
                (loss + retained).backward()
                walk.step(forgotten=loss, retained=retained)

    def _looked(self, lm: LM, ground: Ground, held: list[Row], chance: random.Random) -> dict[str, Tensor]:
        """The losses of the model as it stands, on rows that the adversary does not hold; their gradients lie in its weights."""
        resistance = self._resistance(lm, ground, held, chance)
        resistance.backward()
        if not self.forgetting_weight:
            return {"resistance": resistance}
        told = known(lm.model, ground.harmful(held, self.looked, chance))
        (self.forgetting_weight * told).backward()  # apart, so that activations of one pass are held at a time
        return {"resistance": resistance, "known": told}

    def _resistance(self, lm: LM, ground: Ground, held: list[Row], chance: random.Random) -> Tensor:
        if self.resistance == "refusal":
            return train.answer_loss(lm.model, ground.refused(held, self.looked, chance))
        if self.resistance == "entropy":
            predictions = train.predictions(lm.model, ground.harmful(held, self.looked, chance))
            return shards.mean(losses.negative_entropy(predictions))
        refused, harmful, before = ground.pairs(held, self.looked, chance)
        preferred = train.likelihood(lm.model, refused) - train.likelihood(lm.model, harmful)
        return shards.mean(losses.preference(preferred - before, _BETA))

    def _retained(self, lm: LM, reference: nn.Module, ground: Ground, chance: random.Random) -> Tensor:
        """How far the model is from what it was, on what is to stay."""
        batch = ground.retained(self.batch, self.refusals, chance)
        if self.retain == "distill":
            return diverged(lm.model, reference, batch)
        asked = batch.inputs | {"output_hidden_states": True}
        with torch.no_grad():
            states = reference(**asked).hidden_states
        said = lm.model(**asked)
        surprise = losses.surprise(losses.at_answers(said.logits, batch.labels), losses.targets(batch.labels))
        return shards.mean(surprise) + shards.mean(losses.drift(said.hidden_states, states, batch.mask))
