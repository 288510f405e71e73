"""Watch a run from another terminal."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from holdfast import dashboard, display, speech
from holdfast.following import Reader
from holdfast.problem import Problem


@dataclass(frozen=True)
class Watch:
    """Show how a run goes, as the audit itself shows it, until it ends; Ctrl-C leaves, and the run goes on.

    Reads the run's folder only, so it never disturbs a run. Of one that is over it shows the end.
    """

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of a run; its name alone is enough where it lies in runs/."""


def main(words: list[str]) -> int:
    folder = located(speech.parse(Watch, "watch", words).run)
    found = Reader(folder).look()
    if found.state == "running":
        screen = display.display(speech.console, folder)
        try:
            with screen:
                while screen.run is None or screen.run.state == "running":
                    threading.Event().wait(display.EVERY)
        except KeyboardInterrupt:
            speech.say(f"{folder}: left; the run goes on")
            return 0
        found = Reader(folder).look()
    speech.console.print(dashboard.ended(found, speech.console.width))
    return 0


def located(run: Path) -> Path:
    """The run's folder. Raises `Problem` where there is none."""
    for folder in (run, Path("runs") / run):
        if folder.is_dir():
            return folder
    raise Problem(f"{run}: no such folder; holdfast runs lists the runs there are")
