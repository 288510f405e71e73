"""Check a run, or its page alone, against its seal."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

import holdfast
from holdfast import disk, rejudged, signing, speech
from holdfast import seal as seals
from holdfast.problem import Problem
from holdfast.run import Run
from holdfast.seal import Seal

SHOWN = 10
"""Files or differences named of each kind."""


@dataclass(frozen=True)
class Verify:
    """Is a run as it was sealed, by whom, and does its verdict follow from its records?

    Returns 0 where all that was checked is right, 1 where something is not, 2 for bad input.
    """

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run, or the page alone."""
    key: Annotated[str | None, speech.Unset] = None
    """Public key of whoever should have signed: a file that ends in .pub, or the line in it that begins with RW."""
    seal: Annotated[Path | None, speech.Unset] = None
    """The seal; seal.json in the run's folder, or beside the page, unless given. Its signature lies beside it."""


def main(words: list[str]) -> int:
    options = speech.parse(Verify, "verify", words)
    alone = options.run.is_file()
    if not alone and not options.run.is_dir():
        raise Problem(f"{options.run}: no such run or page; give the folder that `holdfast audit` wrote")
    at = options.seal or (options.run.parent if alone else options.run) / seals.NAME
    seal, content = seals.read(at)
    wrong = [*_signature(at, content, options.key), *(_page if alone else _folder)(options.run, seal)]
    for line in wrong:
        speech.say(f"WRONG: {line}")
    speech.say(f"{options.run}: {'not' if wrong else 'verified'} as sealed {seal.sealed} by holdfast {seal.holdfast}")
    return 1 if wrong else 0


def _signature(at: Path, content: bytes, public: str | None) -> Iterator[str]:
    """What is wrong with the seal's signature; says what is right."""
    file = at.parent / f"{at.name}.minisig"
    signature = file.read_bytes() if file.is_file() else None
    if public is None:
        named = signing.signer(signature) if signature else None
        speech.say(
            f"signature: says it is by key {named}, which was not checked; give --key"
            if named
            else "signature: none, so anybody may have sealed this"
        )
        return
    if signature is None:
        yield f"{file}: missing, so nobody signed"
        return
    found = signing.check(content, signature, public)
    if found.valid:
        speech.say(f"signature: by key {signing.signer(signature)}, who says: {found.says}")
    else:
        yield f"signature: not valid, {found.says}"


def _page(file: Path, seal: Seal) -> Iterator[str]:
    found = disk.digest(file)
    if found in (seal.files.get(seals.PAGE), seal.shared.get(seals.PAGE)):
        speech.say("unchanged: the page")
    else:
        yield f"changed: {file}"


def _folder(folder: Path, seal: Seal) -> Iterator[str]:
    found = seals.compared(folder, seal)
    hashed = f", {len(found.shared)} of them without prompts, answers and names of folders" if found.shared else ""
    speech.say(f"unchanged: {len(found.unchanged)} of {len(seal.files)} files{hashed}")
    for what in ("changed", "missing", "added"):
        names = getattr(found, what)
        yield from (f"{what}: {name}" for name in names[:SHOWN])
        if len(names) > SHOWN:
            yield f"{what}: {len(names) - SHOWN} more"
    try:
        strays = rejudged.strays(Run.open(folder))
    except Problem as problem:
        yield f"the records cannot be judged again: {problem}"
        return
    if not strays:
        speech.say("verdict: follows from the records")
    other = f" (judged here by holdfast {holdfast.__version__}, sealed by {seal.holdfast})"
    yield from (f"verdict: {line}{other * (holdfast.__version__ != seal.holdfast)}" for line in strays[:SHOWN])
    if len(strays) > SHOWN:
        yield f"verdict: {len(strays) - SHOWN} more differences"
