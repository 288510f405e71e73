"""Somebody else's program: any command that takes a model folder and leaves a model folder.

The program gets a copy of the model as it stands, a scratch folder as its home, and nothing else of the caller's. What it
leaves is read as untrusted input: plain safetensors of the same architecture, no pickles, no code, no links. Where the kernel
cannot keep it from writing elsewhere (Landlock), it is not run.
Public tools of this kind: heretic (github.com/p-e-w/heretic, directional ablation after 2406.11717); see docs/attacks.md.
Assumes: you trust the program as you trust anything you run; it may read your files and use the network.
Does not cover: hooks and drives (only weights travel through a folder), or programs that change the architecture.
"""

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import Field, field_validator, model_validator

from holdfast import confined
from holdfast.checkpoint import Checkpoint
from holdfast.corpus import Corpus, Hand
from holdfast.drive import Drive
from holdfast.lm import LM
from holdfast.method import At, Attack, Need
from holdfast.problem import Problem, printable
from holdfast.record import Cost
from holdfast.settings import Severities

PLAIN = {".safetensors", ".json", ".jsonl", ".jinja", ".model", ".txt", ".md", ""}
"""Endings of the files that a checkpoint may consist of: weights, settings, tokenizer, prose."""
SETTINGS = 1 << 27
"""Bytes that all files but the weights may have."""


class External(Attack):
    """Run a command on a copy of the model and go on with what it leaves."""

    axis = "setting"
    family = "external"
    paper = "a program of somebody else's"
    cost = "what the program takes"

    command: tuple[str, ...] = Field((), examples=[("cp", "-r", "{model}", "{out}")])
    """The program and its arguments. In each, {model} is replaced by the folder to read, {out} by the folder to write, {seed} by
    a number, {severity} by the point, {prompts} by a JSONL file of the attacker's rows."""
    points: Severities = (1.0,)
    """Values for {severity}, growing: the command is run once for each, always on the model as it was before."""
    timeout: float = Field(7200.0, gt=0)
    """Seconds after which one run is killed, with every process it started."""
    environment: tuple[str, ...] = ()
    """Variables beside PATH, HOME and TMPDIR: NAME=value, or NAME alone to hand on the caller's own."""

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("harmful data", "benign data") if self._prompted else ()

    @property
    def _prompted(self) -> bool:
        return any("{prompts}" in word for word in self.command)

    @field_validator("environment")
    @classmethod
    def _named(cls, environment: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [one for one in environment if not re.fullmatch(r"[A-Za-z_]\w*(=[^\0]*)?", one, re.DOTALL)]:
            raise ValueError(f"{wrong[0]!r} names no variable; write NAME=value or NAME")
        return environment

    @model_validator(mode="after")
    def _placed(self) -> "External":
        said = " ".join(self.command)
        wanted = ["{model}", "{out}", *["{severity}"] * (len(self.points) > 1)]
        if self.command and (lacking := [place for place in wanted if place not in said]):
            raise ValueError(f"the command nowhere says {lacking[0]}; put it where the program expects it")
        return self

    def __call__(self, lm: LM, hand: Hand, at: At, seed: int) -> None:
        if not self.command:
            raise Problem("attack external: names no command; give `command`, as in docs/attacks.md")
        with TemporaryDirectory(prefix="holdfast-") as scratch:
            model, place = Path(scratch) / "model", Path(scratch) / "work"
            lm.save(model)
            for number, point in enumerate(self.points):
                work = place / str(number)
                work.mkdir(parents=True)
                self._run(lm, hand, model, work, {"{severity}": f"{point:g}", "{seed}": str(seed)})
                _take(lm, model, work / "out")
                if not at(Cost(severity=point)):
                    return

    def _run(self, lm: LM, hand: Hand, model: Path, work: Path, said: dict[str, str]) -> None:
        """One run of the command in `work`; whatever it may not do is a `Problem`."""
        places = said | {"{model}": str(model), "{out}": str(work / "out"), "{prompts}": str(work / "prompts.jsonl")}
        words = [_filled(word, places) for word in self.command]
        if self._prompted:
            Corpus(hand.rows).save(work / "prompts.jsonl")
        own = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(work), "TMPDIR": str(work)}
        for one in self.environment:
            name, given, value = one.partition("=")
            own |= {name: value if given else os.environ.get(name, "")}
        watched = [model, lm.folder, *filter(None, [lm.base]), *_run_around(lm.folder)]
        before = dict(_stamps(watched))
        try:
            ended = confined.run(words, work, self.timeout, own, largest=2 * _size(model) + SETTINGS)
        except confined.Unconfined:
            raise Problem(
                "attack external: this kernel has no Landlock, without which the command could write anywhere unnoticed; "
                "use a kernel with Landlock (5.13 or later), or run the command yourself and give its folder as a subject"
            ) from None
        except OSError as error:
            raise Problem(f"attack external: the command cannot be run ({error}); mend `command`") from error
        after = dict(_stamps(watched))
        if changed := sorted(path for path, stamp in before.items() if after.get(path) != stamp):
            raise Problem(
                f"attack external: the command changed {changed[0]}, outside its folder; it must write to {{out}}"
            )
        last = f"; it said last: {printable(ended.said[-500:])}" if ended.said.strip() else ""
        if ended.code is None:
            raise Problem(
                f"attack external: the command took over {self.timeout:g} s and was killed; raise `timeout`{last}"
            )
        if ended.code:
            raise Problem(f"attack external: the command ended with code {ended.code}{last}")
        if not (work / "out").is_dir() or (work / "out").is_symlink():
            raise Problem(
                f"attack external: the command left no folder at {{out}}; have it write its model there{last}"
            )


def _filled(word: str, places: dict[str, str]) -> str:
    """`word` with every placeholder replaced, once: what is put in is not read again."""
    return re.sub("|".join(map(re.escape, places)), lambda found: places[found[0]], word)


def _take(lm: LM, model: Path, out: Path) -> None:
    """Make what lies in `out` the model, if it is a plain checkpoint of the same shape as the one that was given."""
    _inspect(out, 2 * _size(model) + SETTINGS)
    try:
        made = LM.load(out, drive=Drive(template="plain"), device=str(lm.device))
    except Problem as problem:
        raise Problem(f"attack external: what the command left cannot be used: {problem}") from problem
    with Checkpoint(model) as given:
        kind, expected = type(made.model).__name__, given.config.get("architectures")
        strange = [
            name for name, weight in made.model.named_parameters() if not given.stored(name, tuple(weight.shape))
        ]
    if kind not in (expected or [kind]) or strange or len(made.layers) != len(lm.layers):
        shape = f", with another {strange[0]}" if strange else ""
        raise Problem(
            f"attack external: the command left another architecture ({kind}{shape}); it must keep the model's own"
        )
    if made.tokenizer.get_vocab() != lm.tokenizer.get_vocab():
        raise Problem("attack external: the command left another vocabulary; it must keep the tokenizer")
    lm.model = made.model


def _inspect(out: Path, most: int) -> None:
    """Refuse whatever a plain checkpoint does not consist of, before any of it is opened."""
    total = 0
    for path in sorted(out.rglob("*")):
        name, info = path.relative_to(out), path.lstat()
        shown = printable(name)
        if stat.S_ISDIR(info.st_mode):
            continue
        if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1:
            raise Problem(f"attack external: the command left {shown}, a link or no plain file; have it write files")
        if path.suffix not in PLAIN or path.name.startswith("."):
            raise Problem(
                f"attack external: the command left {shown}; pickled weights and code can run when opened, so only "
                "safetensors with a model's settings and tokenizer are read: convert it, or have the command delete it"
            )
        total += info.st_size
        if total > most or (path.suffix != ".safetensors" and info.st_size > SETTINGS):
            raise Problem(
                f"attack external: the command left far more than a model ({shown}); have it write the model only"
            )
    for path in sorted(out.rglob("*.json")):
        shown = printable(path.relative_to(out))
        if "auto_map" in _keys(path, shown):
            raise Problem(
                f"attack external: the command left {shown}, which names code to run (auto_map); leave that out"
            )


def _keys(path: Path, shown: str) -> set[str]:
    """Every key of a JSON file, at any depth and however it is spelled; of a repeated one all that it ever stood for."""
    found: set[str] = set()
    try:
        json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=lambda pairs: found.update(dict(pairs)))
    except (ValueError, RecursionError) as error:
        raise Problem(f"attack external: the command left {shown}, which is not valid JSON ({error})") from error
    return found


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _run_around(folder: Path) -> list[Path]:
    """What the audit's run folder holds already, if the subject lies in one: records, organism, hardened subjects."""
    root = next((parent for parent in folder.resolve().parents if (parent / "run.json").is_file()), None)
    if root is None:
        return []
    return [
        root / name for name in ("recipe.json", "run.json", "cells", "organism", "subjects") if (root / name).exists()
    ]


def _stamps(places: Iterable[Path]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Of every file that is whole, what no program can change without a trace: the time of change is the kernel's own."""
    for place in places:
        for path in [place, *place.rglob("*")]:
            if path.is_file() and not path.name.startswith("."):
                info = path.stat()
                yield str(path), (info.st_ino, info.st_size, info.st_mode, info.st_mtime_ns, info.st_ctime_ns)
