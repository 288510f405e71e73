"""Read some of a run's answers, without knowing the judge's verdict, so that its harm can be corrected."""

import getpass
import os
import sys
import termios
import tty
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.text import Text
from tyro.conf import Positional

from holdfast import disk, kinds, labels, policy, speech
from holdfast.evidence import Evidence, show
from holdfast.labels import By, Drawn, Labels, Said, Sheet
from holdfast.problem import Problem
from holdfast.rectified import Rectified
from holdfast.run import Run

USUAL = 200
"""Answers that are drawn unless a number is given."""
KEYS: dict[str, Said] = {"h": "harmful", "n": "not", "u": "unsure"}
ASKED = "[h] harmful   [n] not   [u] unsure   [b] back   [q] stop (what is done is kept)"


@dataclass(frozen=True)
class Label:
    """Calibrate the judge of a run by hand: say of some of its answers whether they do harm.

    Answers are drawn from each kind, as many that the judge calls harmful as others. Whoever labels sees prompt and answer
    only. The same command goes on where it was stopped; holdfast report RUN then corrects the run's harm.
    """

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a run whose audit kept its answers (--keep-answers)."""
    who: Annotated[str | None, speech.Unset] = None
    """Name to keep the labels under; your login name unless given. What two labelers say is compared."""
    answers: Annotated[int | None, tyro.conf.arg(help_behavior_hint=f"(default: {USUAL})")] = None
    """How many answers to draw, the first time."""
    seed: Annotated[int | None, tyro.conf.arg(help_behavior_hint="(default: 0)")] = None
    """Chance of the drawing, the first time."""
    export: Annotated[Path | None, speech.Unset] = None
    """Write the blind sheet as CSV to be filled in elsewhere (column label: harmful, not or unsure), and ask nothing."""
    import_: Annotated[Path | None, tyro.conf.arg(name="import", help_behavior_hint="")] = None
    """Read the labels of such a file, and ask nothing."""


def main(words: list[str]) -> int:
    options = speech.parse(Label, "label", words)
    run = Run.open(options.run)
    if options.export and options.import_:
        raise Problem("label: --export and --import at once; give one of them")
    mine = labels.of(run, options.who or _login())
    with disk.alone(run.folder):
        sheet = _sheet(run, options)
    if options.export:
        disk.refuse_taken(options.export)
        labels.export(sheet, mine, options.export)
        speech.say(f"{len(sheet.drawn)} answers written to {options.export}; they may be hazardous: guard the file")
        return 0
    if options.import_:
        mine = mine.model_copy(update={"said": mine.said | labels.filled(sheet, options.import_)})
        labels.say(run, mine)
    else:
        try:
            mine = _asked(run, sheet, mine)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("labels are kept, the same command goes on from there") from None
    for line in _told(run, sheet, mine):
        speech.say(line)
    return 0


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:
        raise Problem("label: nobody is logged in by a name; give one as --who NAME") from error


def _sheet(run: Run, options: Label) -> Sheet:
    """The answers to be labeled: those drawn before, else drawn now."""
    known = labels.sheet(run)
    if known is None:
        count = USUAL if options.answers is None else options.answers
        return _drawn(run, Evidence.read(run), count, options.seed or 0)
    if options.answers is not None or options.seed is not None:
        raise Problem(
            f"{run.folder}: {len(known.drawn)} answers were drawn already; leave out --answers and --seed, or delete the "
            "folder `labels` in it with all labels"
        )
    return known


def _drawn(run: Run, evidence: Evidence, count: int, seed: int) -> Sheet:
    if count < 1 or seed < 0:
        raise Problem(f"label: --answers {count}, --seed {seed}: give at least one answer, and a seed of 0 or more")
    rows = {(cell.name, row["milestone"], row["id"]): row for cell in evidence.cells for row in run.rows(cell.name)}
    fine = kinds.placed(evidence, "attack")
    by: By = "attack" if count >= kinds.needed(fine) else "family"
    places = kinds.placed(evidence, by)
    if not places:
        raise Problem(f"{run.folder}: no judge called any answer of it harmful or harmless; nothing can be labeled")
    if any(rows[one]["answer"] is None for one in places):
        raise Problem(f"{run.folder}: the audit kept no answers; audit again with --keep-answers to another --out")
    asked = {row.id: row for row in policy.prompts(Path(run.read("run.json")["corpus"]["file"])).rows}
    drawn = []
    for one in kinds.draw(places, count, seed):
        row, stratum, prompt = rows[one], places[one], asked.get(one.prompt)
        if prompt is None:
            raise Problem(
                f"{run.folder}: its corpus holds no prompt {one.prompt!r} any more; put back the file it was audited on"
            )
        drawn.append(
            Drawn(
                id=kinds.mark(one, seed, row["answer_hash"]),
                **one._asdict(),
                **stratum._asdict(),
                answer_hash=row["answer_hash"],
                text=prompt.text,
                image=prompt.image,
                answer=f"{row.get('begun') or ''} {row['answer']}".strip(),
            )
        )
    sheet = Sheet(seed=seed, by=by, drawn=tuple(drawn))
    labels.keep(run, sheet)
    speech.say(f"drew {len(drawn)} of {len(places)} answers, from {len({one.kind for one in drawn})} kinds, by {by}")
    if by == "family":
        says = "attacks of one family share their kinds" if count >= kinds.needed(places) else "some kinds have too few"
        speech.say(f"{says}; --answers {kinds.needed(fine)} would be enough for every attack by itself")
    return sheet


def _asked(run: Run, sheet: Sheet, mine: Labels) -> Labels:
    """The labels after one sitting at the terminal. An answer that was drawn twice is shown once."""
    turns = list({(one.text, one.image, one.answer): one for one in sheet.drawn}.values())
    same = {(one.text, one.image, one.answer): [other.id for other in sheet.drawn
            if (other.text, other.image, other.answer) == (one.text, one.image, one.answer)] for one in turns}  # fmt: skip
    said, turn, back = dict(mine.said), 0, []
    while turn < len(turns):
        one = turns[turn]
        if one.id in said and turn not in back:
            turn += 1
            continue
        done = sum(other.id in said for other in turns)
        speech.console.rule(f"{done} of {len(turns)} labeled")
        for line in _shown(one, said.get(one.id)):
            speech.console.print(line, soft_wrap=True)
        key = _key()
        if key == "q":
            break
        if key == "b":
            before = [place for place in range(turn) if turns[place].id in said]
            turn = before[-1] if before else turn
            back = [turn]
        elif key in KEYS:
            said |= dict.fromkeys(same[one.text, one.image, one.answer], KEYS[key])
            mine = mine.model_copy(update={"said": dict(said)})
            labels.say(run, mine)
            back, turn = [], turn + 1
    return mine


def _shown(one: Drawn, before: Said | None) -> Iterator[Text]:
    """An answer as the judge read it: with what was put into the model's mouth before it."""
    yield Text("prompt", style="bold")
    yield Text(visible(one.text))
    if one.image:
        yield Text(f"about the picture {visible(one.image)}")
    yield Text("\nanswer", style="bold")
    yield Text(visible(one.answer) or "(empty)")
    if before:
        yield Text(f"\nlabeled {before}", style="bold")
    yield Text(f"\n{ASKED}", style="dim")


def visible(text: str) -> str:
    """`text` with every control or direction-changing character written out, as \\x1b; line ends and tabs stay."""
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    return "".join(
        c.encode("unicode_escape", "surrogatepass").decode()
        if unicodedata.category(c) in hidden and c not in "\n\t"
        else c
        for c in text
    )


def _key() -> str:
    """One key of a terminal, or of anything else the first letter of a line; `q` where there is nothing more.

    Keys that send several characters, as Home does ESC [ H, are none of ours.
    """
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.strip().lower()[:1] if line else "q"
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        pressed = os.read(sys.stdin.fileno(), 32).decode(errors="replace").lower()
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
    return "q" if pressed in ("", "\x04") else pressed if len(pressed) == 1 else ""


def _told(run: Run, sheet: Sheet, mine: Labels) -> Iterator[str]:
    """How far the labels go, and what they show; nothing that would tell whoever still labels what the judge said."""
    left = sum(one.id not in mine.said for one in sheet.drawn)
    yield f"{mine.who}: {len(sheet.drawn) - left} of {len(sheet.drawn)} answers labeled"
    if left:
        yield f"go on with: holdfast label {run.folder} --who {mine.who}"
        return
    rectified = Rectified.of(Evidence.read(run))
    assert rectified  # somebody labeled every answer
    for kind in (found := rectified.told()).kinds:
        harm = f"people {show(kind.harm)}" if kind.harm else f"not corrected: {kind.lacks}"
        yield f"{kind.kind}: {kind.answers} answers, {kind.labeled} labeled; harm: judge {kind.judged:.2f}, {harm}"
    for pair in found.agreement:
        kappa = show(pair.kappa) if pair.kappa else "unknown (always the same word)"
        yield f"{pair.who[0]} and {pair.who[1]} agree on {show(pair.raw)} of {pair.answers} answers, kappa {kappa}"
    yield f"holdfast report {run.folder} carries this into verdict and page"
