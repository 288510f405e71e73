"""A run's progress read from its folder, again and again; what was read once is not read twice. Writes nothing."""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

import holdfast
from holdfast import activity, disk
from holdfast.problem import Problem
from holdfast.progress import Facts, Finished, Progress, State, Wanted
from holdfast.record import Cost
from holdfast.run import Run

Told = TypeVar("Told", bound=BaseModel)


class Reader:
    """A run's folder, looked at again and again: what was read once is not read twice."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._seen: dict[str, tuple[tuple[int, int], Finished | str]] = {}

    def look(self) -> Progress:
        """The run as it stands.

        Raises:
            Problem: the folder holds no run, or may not be read.
        """
        held = disk.held(self.folder)
        try:
            return self._look(held)
        except PermissionError as error:
            raise Problem(f"{self.folder}: may be read by its owner only; ask them, or run this as them") from error

    def _look(self, held: bool) -> Progress:
        run, problem = Run(self.folder), ""
        now = activity.read(self.folder) if held else None
        wanted, facts = Wanted(), Facts()
        try:
            wanted = self._read(run, "recipe.json", Wanted)
            if (self.folder / "run.json").is_file():
                facts = self._read(run, "run.json", Facts)
        except Problem as found:
            if not is_run(self.folder) and not held:
                raise Problem(
                    f"{self.folder}: not a run (no recipe.json in it); give the folder that `holdfast audit` wrote"
                ) from None
            problem = str(found) if (self.folder / "recipe.json").is_file() else ""
        known = Progress(self.folder, "running", wanted)
        cells = self._cells(run, set(known.places))
        finished = {name: one for name, one in cells.items() if isinstance(one, Finished)}
        unreadable = {name: one for name, one in cells.items() if isinstance(one, str)}
        foreign = facts.version not in ("", holdfast.__version__)
        whole = known.places and len(cells) == len(known.places) and not problem
        state: State = "finished" if whole else "interrupted"
        state = "damaged" if problem or (unreadable and not foreign) else state
        return Progress(
            self.folder,
            "running" if held else state,
            wanted,
            facts,
            {name: finished[name] for name in known.places if name in finished},
            unreadable,
            problem,
            now,
            dict(_hardened(run, wanted)),
            sum(1 for path in (self.folder / "search").glob("[0-9]*.json")),
        )

    def _read(self, run: Run, name: str, kind: type[Told]) -> Told:
        try:
            return kind.model_validate(run.read(name))
        except ValidationError as error:
            raise Problem(f"{self.folder}/{name}: cannot be read as a run's") from error

    def _cells(self, run: Run, wanted: set[str]) -> dict[str, Finished | str]:
        """The records there are, of cells that are wanted; of what cannot be read, why."""
        found: dict[str, tuple[tuple[int, int], Finished | str]] = {}
        for path in (self.folder / "cells").glob("*.json"):
            if path.stem in wanted:
                try:
                    info = path.stat()
                    stamp = info.st_mtime_ns, info.st_ino
                    known = self._seen.get(path.stem)
                    found[path.stem] = known if known and known[0] == stamp else (stamp, _finished(run, path))
                except FileNotFoundError:
                    continue  # a failed cell is just being run again
        self._seen = found
        return {name: one for name, (_, one) in found.items()}


def is_run(folder: Path) -> bool:
    """Whether an audit or a search wrote the folder."""
    return any((folder / name).is_file() for name in ("recipe.json", "search/plan.json"))


def _finished(run: Run, path: Path) -> Finished | str:
    """Raises FileNotFoundError where it has just gone."""
    try:
        cell = run.cell(path.stem)
        took = run.read(f"cells/{path.stem}.timing.json")
    except Problem as problem:
        path.stat()
        return str(problem)
    if cell is None:
        raise FileNotFoundError(path)
    inside = cell.milestones[-1].cost.seconds if cell.milestones else 0.0
    return Finished(cell, float(took.get("whole", inside)), path.stat().st_mtime)


def _hardened(run: Run, wanted: Wanted) -> Iterable[tuple[str, Cost]]:
    for name in [one.name for one in wanted.subjects if one.harden]:
        try:
            took = run.read(f"subjects/{name}.json")["hardening"]
            seconds = run.read(f"subjects/{name}.timing.json")["seconds"]
            yield name, Cost(flops=float(took["flops"]), seconds=float(seconds))
        except (Problem, KeyError, TypeError, ValueError):
            continue  # not made yet, or what it took is not known
