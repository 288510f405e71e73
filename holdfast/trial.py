"""A judge on trial: what it says of answers whose harm somebody labeled, before anything hangs on it.

Labeled answers are a JSONL file of `prompt`, `answer` and `harmful`. They should look like those of the audit: a judge that is
right about another model's answers may be wrong about these.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from holdfast import disk
from holdfast.evidence import show
from holdfast.judging import Exchange, Judge, judged
from holdfast.method import Eval
from holdfast.problem import Problem
from holdfast.record import Calibration
from holdfast.reliability import HARMFUL, agreement, calibration, informed
from holdfast.statistics import proportion


@dataclass(frozen=True)
class Rows:
    """What a judge is asked about."""

    rows: Path
    """JSONL of answers: prompt, answer, and harmful (true or false) where somebody knows."""


class Labeled(BaseModel):
    """One answer, and whether somebody found it harmful."""

    model_config = ConfigDict(frozen=True)

    prompt: str
    answer: str
    harmful: bool | None = None
    """None: nobody said."""


def read(path: Path) -> list[Labeled]:
    """The rows of a JSONL file; other keys are passed over. Raises `Problem` naming file, line and field."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(
            f"{path}: cannot be read as text ({error}); give a JSONL file of prompt, answer and harmful"
        ) from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows += [Labeled.model_validate_json(line)] if line.strip() else []
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "row"
            raise Problem(f"{path}, line {number}, {field}: {first['msg']}; mend that line") from error
    if not rows:
        raise Problem(f"{path}: holds no answer; write one JSON row a line with prompt, answer and harmful")
    return rows


def calibrated(judge: Eval, path: Path) -> Calibration:
    """What the judge gets wrong on the file's labeled answers. Raises `Problem` if the file or the judge cannot be used."""
    rows = [row for row in read(path) if row.harmful is not None]
    said = _said(judge, rows)
    try:
        return calibration(str(path), disk.digest(path), [bool(row.harmful) for row in rows], said)
    except ValueError as error:
        raise Problem(f"{path}: needs answers labeled harmful and others labeled not, judged both; add rows") from error


def told(judge: Eval, path: Path) -> Iterator[str]:
    """What a user needs to choose a judge, in lines."""
    rows = read(path)
    if isinstance(judge, Judge) and judge.abroad:
        yield f"prompts and answers go to {judge.abroad}"
    said = _said(judge, rows)
    pairs = [(row, score) for row, score in zip(rows, said, strict=True) if score is not None]
    yield f"answers: {len(rows)}; unreadable verdicts: {len(rows) - len(pairs)}"
    yield f"called harmful: {show(proportion([float(score >= HARMFUL) for _, score in pairs]))}"
    labeled = [(row, score) for row, score in pairs if row.harmful is not None]
    if {row.harmful for row, _ in labeled} != {True, False}:
        yield "not labeled both ways, so what the judge gets wrong stays unknown"
        return
    by_prompt = {row.prompt: np.zeros((2, 2)) for row, _ in labeled}
    for row, score in labeled:
        by_prompt[row.prompt][int(bool(row.harmful)), int(score >= HARMFUL)] += 1
    both = agreement([*by_prompt.values()])
    known = calibration(
        str(path), disk.digest(path), [bool(row.harmful) for row, _ in labeled], [s for _, s in labeled]
    )
    yield f"agrees with the labels: {show(both.raw)}, kappa {show(both.kappa) if both.kappa else 'unknown'}"
    yield f"sensitivity: {show(known.sensitivity)} of {known.sensitivity.n} harmful answers called harmful"
    yield f"specificity: {show(known.specificity)} of {known.specificity.n} others called harmless"
    if informed(known).low <= 0:
        yield "these labels do not show that the judge knows more of harm than chance"


def _said(judge: Eval, rows: list[Labeled]) -> list[float | None]:
    said = judged(judge, [Exchange(row.prompt, row.answer) for row in rows])
    if isinstance(judge, Judge):
        judge.forget()
    if all(score is None for score in said):
        raise Problem(
            "judge: says nothing of any of these answers; choose an eval that judges harm without a right answer"
        )
    return said
