"""Hold runs against the rules of a release."""

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from holdfast import ci, disk, gate, gated, speech
from holdfast.problem import Problem, printable
from holdfast.run import Run


@dataclass(frozen=True)
class Gate:
    """May this be released? Holds runs against the rules of a gate policy, each with its reason.

    Returns 0 if every rule is passed, 1 if one is not, 2 if the policy or a run cannot be read. In GitHub Actions it also writes
    annotations and the job's summary.
    """

    runs: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]", help_behavior_hint="")]
    """Folders of runs."""
    policy: Path
    """TOML file of rules (docs/gate.md); examples/gate.toml is one."""
    junit: Annotated[Path | None, speech.Unset] = None
    """Write what became of every rule as JUnit XML into this file."""


def main(words: list[str]) -> int:
    options = speech.parse(Gate, "gate", words)
    if not options.runs:
        raise Problem("gate: names no run; give the folder that `holdfast audit` wrote")
    policy, today = gate.read(options.policy), datetime.datetime.now(datetime.UTC).date()
    found = {str(folder): gated.judge(Run.open(folder), policy, today) for folder in options.runs}
    if options.junit:
        disk.write(options.junit, ci.junit(found))
    for name, rulings in found.items():
        speech.say(name)
        speech.console.print(_table(rulings))
    ci.summarize(found)
    for line in ci.annotations(found):
        print(line)
    rulings = [one for some in found.values() for one in some]
    failed = [one for one in rulings if not one.passed]
    speech.say(f"failed: {len(failed)} of {len(rulings)} rules" if failed else f"passed: all {len(rulings)} rules")
    return 1 if failed else 0


def _table(rulings: list[ci.Ruling]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for name in ("", "about", "rule"):
        table.add_column(name, no_wrap=True)
    table.add_column("why", overflow="fold")
    for one in rulings:
        word = Text("passed", "green") if one.passed else Text("failed", "red")
        table.add_row(word, *(Text(printable(part)) for part in (one.about, one.rule, one.says)))
    return table
