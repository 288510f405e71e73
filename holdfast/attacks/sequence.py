"""Several attacks in a row on the same model, each going on from what the one before left.

What a defense hides from one attack it may show to two: benign tuning before harmful tuning, repair before attack, a
re-initialized layer before tuning, pruning before tuning (obfuscation checks after 1802.00420; TAR's retain-then-forget
schedule, 2408.00761). Adapters are merged between stages, as somebody would who publishes what he made.
Assumes: what each stage assumes. Does not cover: stages that alternate.
"""

import hashlib
from typing import Any

from peft import PeftModel
from pydantic import Field, model_validator

from holdfast.corpus import Hand
from holdfast.lm import LM
from holdfast.method import At, Attack, Need, find, make
from holdfast.moved import settled
from holdfast.problem import Problem, meant
from holdfast.record import Cost
from holdfast.settings import Settings


class Stage(Settings):
    """One attack: its method and, in the same table, its settings."""

    model_config = Settings.model_config | {"extra": "allow"}

    method: str
    """File name of the attack, or the path of a file of your own."""

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, given: Any) -> Any:
        """The same with every setting filled in, in the form JSON keeps, so that equal stages are equal records."""
        if not isinstance(given, dict) or not isinstance(given.get("method"), str):
            return given
        name = given["method"]
        settings = {key: value for key, value in given.items() if key != "method"}
        try:
            known = find("attacks", name).model_fields
            if unknown := [key for key in settings if key not in known]:
                raise ValueError(f"{name}: unknown key {unknown[0]!r}; {meant(unknown[0], known)}")
            return {"method": name} | make("attacks", name, name, **settings).model_dump(mode="json")
        except Problem as problem:
            raise ValueError(str(problem)) from problem

    def build(self) -> Attack:
        return make("attacks", self.method, f"stage {self.method}", **(self.model_extra or {}))


class Sequence(Attack):
    """Run one attack after another."""

    family = "combination"
    paper = "1802.00420 (Athalye et al.), 2408.00761 (TAR)"
    cost = "120 optimizer steps of 16 rows"

    stages: tuple[Stage, ...] = Field(
        ({"method": "finetune", "data": "benign"}, {"method": "finetune", "data": "harmful"}),
        min_length=2,
        validate_default=True,
    )
    """Tables of `method` and its settings, in order. Where the last is a clock, the costs of earlier clocks count and are
    looked at; stages that have only a severity, and all stages before a last one that has, run silently to their end."""

    @property
    def axis(self) -> str:
        """The last stage's."""
        return self.stages[-1].build().axis

    @property
    def needs(self) -> tuple[Need, ...]:
        """What any stage needs."""
        return tuple(dict.fromkeys(need for stage in self.stages for need in stage.build().needs))

    def __call__(self, lm: LM, hand: Hand, at: At, seed: int) -> None:
        attacks = [stage.build() for stage in self.stages]
        path = _Path(at, clock=self.axis == "steps")
        for number, attack in enumerate(attacks):
            path.begin(silent=number < len(attacks) - 1 and not (path.clock and attack.axis == "steps"))
            attack(lm, hand, path, _own(seed, number))
            if path.stopped:
                return
            _published(lm)


class _Path:
    """Hands the stages' costs on as one path's, each added to what was spent before."""

    def __init__(self, at: At, clock: bool):
        self.at, self.clock = at, clock
        self.stopped = False
        self._silent = False
        self._before = self._spent = Cost()

    def begin(self, silent: bool) -> None:
        self._silent, self._before = silent, self._spent

    def __call__(self, cost: Cost) -> bool:
        if self._silent and self.clock:
            return True
        self._spent = _sum(self._before, cost)
        self.stopped = not self._silent and not self.at(self._spent)
        return not self.stopped


def _sum(before: Cost, cost: Cost) -> Cost:
    """Both costs together; along a severity axis steps are no position, so only what they used up is added."""
    more = {name: getattr(before, name) + getattr(cost, name) for name in ("examples", "tokens", "flops", "seconds")}
    steps = before.steps + cost.steps
    return cost.model_copy(update=more | ({"steps": steps} if cost.severity is None else {}))


def _own(seed: int, number: int) -> int:
    """A stage's own seed."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4])


def _published(lm: LM) -> None:
    """Adapters become weights, and every weight can be trained again. A learned prompt has no weights to become."""
    if isinstance(lm.model, PeftModel) and not lm.model.active_peft_config.is_prompt_learning:
        lm.model = settled(lm.model)
    for weight in lm.model.parameters():
        weight.requires_grad_(weight.is_floating_point())
