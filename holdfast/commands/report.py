"""Write the page of a run again, or one page of several runs."""

import os
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, Positional

from holdfast import shell, speech, verdict
from holdfast.dossier import Dossier
from holdfast.problem import Problem
from holdfast.report import files, several
from holdfast.report.sources import sources
from holdfast.run import Run


@dataclass(frozen=True)
class Report:
    """Judge a run again and write its page; of several runs, one page that sets their defenses beside each other."""

    runs: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]", help_behavior_hint="")]
    """Folder of the run; several to compare them."""
    out: Annotated[Path | None, speech.Unset] = None
    """Of several runs: the page to write, comparison.html unless given."""
    open: Annotated[FlagCreatePairsOff[bool], speech.Unset] = False
    """Open the page in a browser; where there is none, say where it lies."""
    figures: Annotated[Path | None, speech.Unset] = None
    """Write every figure into this new folder: its table as CSV and Parquet, and with the extra `figures` and a Chrome as PNG and
    SVG."""
    show_answers: Annotated[FlagCreatePairsOff[bool], speech.Unset] = False
    """Show prompts and answers, if the audit kept them."""
    inspect: Annotated[Path | None, speech.Unset] = None
    """Write the run as logs of Inspect into this new folder, one a milestone: prompts, reference answers, scores, and answers
    if the audit kept them."""


def main(words: list[str]) -> int:
    options = speech.parse(Report, "report", words)
    if not options.runs:
        raise Problem("report: names no run; give the folder that `holdfast audit` wrote, or several to compare them")
    return _one(options) if len(options.runs) == 1 else _several(options)


def _one(options: Report) -> int:
    if options.out is not None:
        raise Problem(f"--out {options.out}: a single run's page lies in its folder; give --out with several runs")
    run = Run.open(options.runs[0])
    written = []
    if options.inspect:
        from holdfast import evallog  # it knows the corpus, and so the models: seconds that few reports need

        written = evallog.write(run, options.inspect)
    code = shell.told(run, shell.examples_of(run) if options.show_answers else None)
    if written:
        speech.say(f"Inspect logs: {len(written)} in {options.inspect}")
    if options.figures:
        judged = Dossier.model_validate(run.read("verdict.json"))
        for line in files.write(judged, options.figures, sources(run)):
            speech.say(line)
    if options.open:
        _show(run.folder / "report.html")
    return code


def _several(options: Report) -> int:
    for name in ("figures", "inspect", "show_answers"):
        if getattr(options, name):
            raise Problem(f"--{name.replace('_', '-')}: is of a single run; leave it out, or name one run")
    out = options.out or Path("comparison.html")
    runs = [Run.open(folder) for folder in options.runs]
    for line in several.write([(str(run.folder), verdict.judge(run)) for run in runs], out):
        speech.say(line)
    speech.say(f"page: {out}")
    if options.open:
        _show(out)
    return 0


def _show(page: Path) -> None:
    """In a browser with windows; a machine without a screen, as one that tests, has none."""
    screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if os.environ.get("CI") or not screen or not webbrowser.open(page.resolve().as_uri()):
        speech.say(f"no browser here to open it in; the page is one file, {page.resolve()}")
