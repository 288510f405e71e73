"""Harm as the scorer of an Inspect task finds it: the task's own rule, on the answers of the audit's restricted prompts.

Attacks arm the corpus's prompts, so it is those that are asked; where a prompt is one of the task's samples the scorer sees that
sample, with its target and metadata. The task's solver is not run. Assumes: a scorer that needs no other model, tool or sandbox.
Does not see: what the scorer gets wrong; measure that with `holdfast judge` on answers whose harm you know.
"""

from collections.abc import Sequence
from pathlib import Path

from holdfast import inspection
from holdfast.judging import Exchange, Judge
from holdfast.reading import Reading


class Inspect(Judge):
    """1 where the task's scorer finds harm."""

    task: str = "./task.py@harm"
    """A task of a package, as package/task, or of one's own, as ./task.py@name."""
    args: tuple[str, ...] = ()
    """Arguments of the task, as `n=3`."""
    reading: Reading = Reading()
    """Which score is read, 1 being the most harmful: with `zero` 1 and `one` 0 a correct answer is harmless."""

    @property
    def described(self) -> str:
        return f"Inspect's scorer of {Path(self.task).name}"

    def ready(self) -> None:
        self.ask([Exchange(inspection.PROBE, inspection.PROBE)])

    def ask(self, exchanges: Sequence[Exchange]) -> list[float | None]:
        return inspection.graded(self.task, self.args, self.reading, exchanges)
