"""A run's progress, drawn for a terminal: what is done, at work and left, what it costs, and the worst curve so far.

Names and lines come from recipes and processes: control characters in them are taken out, markup is not read.
"""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

import holdfast
from holdfast.activity import Activity, Task
from holdfast.problem import printable
from holdfast.progress import Progress, Trace
from holdfast.sketch import Line, drawn
from holdfast.units import lasting, operations

WIDTH = 100
PLOT = 5
"""Lines of the plot, without its axis."""
STYLES = {"running": "cyan", "finished": "green", "interrupted": "yellow", "damaged": "red"}
_DOING = {
    "preparing": "looking over models and prompts",
    "hardening": "hardening the subjects",
    "asking": "asking each subject before any attack",
    "attacking": "",
    "searching": "searching the strongest settings",
}


def view(run: Progress, now: float, width: int, height: int) -> Group:
    """The whole view, in `width` columns and, unless that is impossible, at most `height` lines.

    Args:
        now: Unix time.
    """
    width = min(width, WIDTH)
    head = [_heading(run, now), *_bar(run, width), *_counts(run, now), *_doing(run)]
    worst = run.worst()
    drawing = worst is not None and len(head) + PLOT + 8 <= height and width >= 40
    below = 2 * bool(worst) + drawing * (PLOT + 3)
    room = height - len(head) - below - 1
    parts: list[RenderableType] = [*head[:height], *(_at_work(run, now, min(room, 8)) if room > 0 else [])]
    if worst and len(head) + below <= height:
        parts += ["", *_worst(run, worst, width, drawing)]
    return Group(*parts)


def ended(run: Progress, width: int) -> Group:
    """The view of a run that nobody is at work on, and what to do next."""
    report = f"holdfast report {run.folder} shows the verdict"
    again = "the audit's own command, given again, goes on from here"
    nexts = {"finished": report, "interrupted": again, "damaged": f"{again}, and runs damaged cells anew"}
    shown = view(run, 0.0, width, 40)
    return Group(shown, "", Text(f"→ {printable(nexts[run.state])}")) if run.state in nexts else Group(shown)


def summary(run: Progress, now: float) -> str:
    """The same in one line, for where nothing can be drawn."""
    if run.now and run.now.doing == "searching":
        told = [f"searching: {run.trials} trials done{f', {run.now.says}' if run.now.says else ''}"]
    else:
        told = [f"{run.done} of {len(run.places)} cells done"]
        told += [f"{len(run.failed)} failed"] if run.failed else []
        told += [f"{len(run.unreadable)} unreadable"] if run.unreadable else []
        if run.now and run.now.doing == "hardening":
            told.insert(0, f"hardening {', '.join(task.name for task in run.now.tasks)}")
        elif run.now and run.now.says:
            told.insert(0, run.now.says)
    if run.state == "running" and run.now:
        told += [f"{len(_busy(run))} at work"] if run.now.doing == "attacking" else []
        told += [one for one in [_left(run, now)] if one]
    return printable(", ".join(told))


def _busy(run: Progress) -> list[Task]:
    """What is at work; a cell's record may lie there before it is told that its process is through."""
    told = run.now.tasks if run.now else ()
    return [one for one in told if one.name not in run.finished or run.finished[one.name].ended < one.began]


def _line(*parts: str | tuple[str, str]) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _heading(run: Progress, now: float) -> Text:
    state: str = run.state
    rest = [f"{state} for {lasting(now - run.now.began)}" if run.now else state]
    rest += [f"process {run.now.process}"] if run.now else []
    if run.foreign:
        rest.append(f"written by holdfast {printable(run.facts.version)}, read by {holdfast.__version__}")
    rest += ["on an organism"] if run.organism else []
    return _line(
        (printable(run.wanted.name or run.folder.resolve().name), "bold"),
        "  ",
        (rest[0], STYLES[state]),
        (", ".join(["", *rest[1:]]), "dim"),
    )


def _bar(run: Progress, width: int) -> Iterator[RenderableType]:
    if not run.places or (run.now and run.now.doing == "searching"):
        return
    known = len(run.finished) + len(run.unreadable)
    count = f"{known} of {len(run.places)} cells"
    bar = ProgressBar(total=len(run.places), completed=known, width=max(8, width - len(count) - 2))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_row(bar, Text(count, no_wrap=True))
    yield table


def _counts(run: Progress, now: float) -> Iterator[Text]:
    """How many cells are done and how long the rest takes; what it cost so far."""
    if run.places and not (run.now and run.now.doing == "searching"):
        busy = sum(task.name in run.places for task in _busy(run))
        wait = len(run.places) - len(run.finished) - len(run.unreadable) - busy
        parts: list[str | tuple[str, str]] = [f"{run.done} done"]
        parts += [f", {busy} running"] if run.now and run.now.workers else []
        parts += [", ", (f"{len(run.failed)} failed", "red")] if run.failed else []
        parts += [", ", (f"{len(run.unreadable)} unreadable", "red")] if run.unreadable else []
        parts += [f", {wait} to go"]
        left = _left(run, now)
        yield _line(*parts, *([("  " + left, "cyan")] if left else []))
    seconds, flops = run.spent()
    if seconds or flops:
        yield _line((f"cost so far: {lasting(seconds)} of computing, {operations(flops)} of training", "dim"))
    if run.problem or run.unreadable:
        yield _line((printable(run.problem or next(iter(run.unreadable.values()))), "red"))


def _left(run: Progress, now: float) -> str:
    left = run.left(now)
    if left is None:
        waits = run.state == "running" and run.now and run.now.doing == "attacking"
        return "time left is known after the first cell" if waits else ""
    return f"about {lasting(_round(left.seconds))} left, by {left.cells} cell{'s' * (left.cells != 1)}"


def _round(seconds: float) -> float:
    """No finer than an estimate is: to 5 s below 2 min, to minutes up to 2 h, else to 10 min."""
    step = 5 if seconds < 120 else 60 if seconds < 7200 else 600
    return max(step, step * round(seconds / step))


def _doing(run: Progress) -> Iterator[Text]:
    if run.now is None:
        told = "somebody is at work here, but does not say at what (no readable .activity.json)"
        yield from [_line((told, "dim"))] if run.state == "running" else []
        return
    told = _DOING[run.now.doing]
    said = [f"{run.trials} trials done"] * (run.now.doing == "searching") + [printable(run.now.says)] * bool(
        run.now.says
    )
    told += f": {', '.join(said)}" if said else ""
    if run.now.doing == "hardening" and run.hardened:
        told += f"; hardened: {', '.join(f'{printable(one)} in {lasting(cost.seconds)}' for one, cost in run.hardened.items())}"
    if run.now.doing == "attacking" and run.now.workers is None:
        told = "cells run on Ray; which of them are at work it does not tell"
    if told:
        yield _line((told, "dim"))


def _at_work(run: Progress, now: float, room: int) -> list[RenderableType]:
    """What each process is at, so many of them at most."""
    tasks = sorted(_busy(run), key=lambda task: task.began)
    if run.now is None or not tasks:
        return []
    shown = tasks if len(tasks) <= room else tasks[: max(room - 1, 1)]
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=2)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=2)
    table.add_column(no_wrap=True, justify="right", min_width=8)
    for task in shown:
        at = run.places.get(task.name)
        name = f"{at.subject} under {at.attack}, seed {at.seed}" if at else task.name
        row = Text(f"▸ {printable(name)}"), Text(_stands(run, run.now, task), "dim"), Text(lasting(now - task.began))
        table.add_row(*row)
    more = [Text(f"  and {len(tasks) - len(shown)} more", "dim")] if len(tasks) > len(shown) and room > 1 else []
    return ["", table, *more]


def _stands(run: Progress, now: Activity, task: Task) -> str:
    """How far a task is."""
    if task.says:
        return printable(task.says)
    at = run.places.get(task.name)
    if not task.looks:
        return "begins"
    whole = now.looks.get(at.attack) if at else None
    if whole and task.looks >= whole:
        return f"{task.looks} looks taken, being scored"
    return f"look {task.looks}{f' of {whole}' if whole else ''}, at {task.position or 0.0:g}"


def _worst(run: Progress, worst: Trace, width: int, drawing: bool) -> Iterator[RenderableType]:
    """The worst curve so far, beside its twin's."""
    twin = run.twin(worst)
    reached = f"harm {worst.most:.2f} at {worst.at:g}" + (
        f" step{'s' * (worst.at != 1)}" if worst.axis == "steps" else ""
    )
    seeds = f", {worst.seeds} seed{'s' * (worst.seeds != 1)} so far"
    broke = worst.word, "red" if worst.broken else "green"
    name = printable(f"{worst.subject} under {worst.attack}")
    yield _line(("worst so far: ", "bold"), broke, f", {name}, {reached}{seeds}")
    if not drawing:
        return
    lines = [Line(twin.points, "yellow", dotted=True)] if twin else []
    lines.append(Line(worst.points, "bold cyan"))
    clock = worst.axis == "steps"
    unit = "steps" if clock else printable(worst.axis)
    yield from drawn(lines, min(width, 64), PLOT, run.wanted.threshold, unit, clock)
    beside: list[str | tuple[str, str]] = ["      ", ("⠒⠒⠒ ", "bold cyan"), printable(worst.subject)]
    beside += ["   ", ("⠂ ⠂ ", "yellow"), printable(twin.subject), (" (its twin)", "dim")] if twin else []
    yield _line(*beside, ("   harm, from 0 to 1", "dim"))
