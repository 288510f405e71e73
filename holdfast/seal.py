"""A run's seal: the SHA-256 of every file that its dossier stands on, in one file that can be signed.

`seal.json` says nothing of what is in the files. Sealed are the records and what is said of them: recipe, manifest, cells,
labels, search, notes of hardenings, verdict and page. Checkpoints are not: their hashes are in the manifest.
"""

import re
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, ValidationError

from holdfast import disk
from holdfast.problem import Problem
from holdfast.record import Record
from holdfast.run import SEAL, Run

NAME = SEAL
SIGNATURE = f"{NAME}.minisig"
PAGE = "report.html"
_NEEDED = ("recipe.json", "run.json", "verdict.json", PAGE)
_SEALED = ("*.json", PAGE, "cells/*.json", "cells/*.parquet", "labels/**/*.json", "search/**/*.json", "subjects/*.json",
           "subjects/*.jsonl")  # fmt: skip
_OWN_NAME = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*(/[^./\\\x00-\x1f][^/\\\x00-\x1f]*)*")


def _inside(name: str) -> str:
    if not _OWN_NAME.fullmatch(name):
        raise ValueError("names a file outside the run")
    return name


def _hexadecimal(digest: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError("not a SHA-256")
    return digest


Files = dict[Annotated[str, AfterValidator(_inside)], Annotated[str, AfterValidator(_hexadecimal)]]
"""SHA-256 by the file's name in the run's folder."""


class Seal(Record):
    """`seal.json`."""

    run: str
    """Name of the run."""
    holdfast: str
    """Version that judged it."""
    sealed: str
    """ISO time, UTC."""
    files: Files
    shared: Files
    """Of files that hold prompts, answers or names of folders, the SHA-256 of the copy without: either is whole."""


class Compared(NamedTuple):
    """A run's files beside a seal."""

    unchanged: tuple[str, ...]
    shared: tuple[str, ...]
    """Of the unchanged, those that are the copy without prompts, answers and names of folders."""
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]


def records(folder: Path) -> list[str]:
    """The names of the files to seal, sorted. Raises `Problem` where the run was not judged."""
    for name in _NEEDED:
        if not (folder / name).is_file():
            raise Problem(f"{folder}: has no {name}; run `holdfast report {folder}` first")
    return _found(folder)


def sealed(run: Run, name: str, holdfast: str, at: str, shared: dict[str, str] | None = None) -> Seal:
    """The seal of a run as it lies there."""
    files = {one: disk.digest(run.folder / one) for one in records(run.folder)}
    return Seal(run=name, holdfast=holdfast, sealed=at, files=files, shared=shared or {})


def read(path: Path) -> tuple[Seal, bytes]:
    """A seal, and its file's bytes, which its signature is of. Raises `Problem` if there is none, or a damaged one."""
    try:
        content = path.read_bytes()
    except OSError:
        raise Problem(f"{path}: no seal; make one with `holdfast seal RUN`, or name it with --seal") from None
    try:
        return Seal.model_validate_json(content), content
    except ValidationError as error:
        first = error.errors()[0]
        raise Problem(f"{path}: not a seal ({first['msg']}); get the file from whoever sealed the run") from error


def compared(folder: Path, seal: Seal) -> Compared:
    """The run in `folder` beside its seal."""
    there = set(_found(folder))
    held = {name: disk.digest(folder / name) for name in seal.files if name in there}
    whole = {name for name, found in held.items() if found in (seal.files[name], seal.shared.get(name))}
    return Compared(
        unchanged=tuple(sorted(whole)),
        shared=tuple(sorted(name for name in whole if held[name] != seal.files[name])),
        changed=tuple(sorted(held.keys() - whole)),
        missing=tuple(sorted(seal.files.keys() - held.keys())),
        added=tuple(sorted(there - seal.files.keys())),
    )


def _found(folder: Path) -> list[str]:
    """What of a folder a seal is about: no link, nothing hidden, not the seal itself."""
    files = {path for pattern in _SEALED for path in folder.glob(pattern) if path.is_file() and not path.is_symlink()}
    names = {str(path.relative_to(folder)) for path in files}
    return sorted(name for name in names if _OWN_NAME.fullmatch(name) and name != NAME)
