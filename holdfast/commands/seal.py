"""Seal a run, sign the seal, and write a copy without prompts."""

import getpass
import hashlib
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional

import holdfast
from holdfast import disk, redaction, rejudged, signing, speech, verdict
from holdfast import seal as seals
from holdfast.problem import Problem
from holdfast.report import page
from holdfast.report.sources import sources
from holdfast.run import Run

PASSPHRASE = "HOLDFAST_PASSPHRASE"
"""Environment variable that holds a key's passphrase where nobody can be asked."""


@dataclass(frozen=True)
class Seal:
    """Write seal.json: the SHA-256 of every record of a run, of its verdict and of its page. `holdfast verify` checks it."""

    run: Annotated[Positional[Path | None], speech.Unset] = None
    """Folder of the run."""
    key: Annotated[Path | None, speech.Unset] = None
    """Sign the seal with this secret key of minisign's; writes seal.json.minisig."""
    share: Annotated[Path | None, speech.Unset] = None
    """Write the sealed files to this new folder, prompts and answers as hashes."""
    new_key: Annotated[Path | None, speech.Unset] = None
    """Make a key first: the secret one in this new file (0600), the public one beside it in FILE.pub."""
    passphrase: Annotated[FlagCreatePairsOff[bool], speech.Unset] = False
    """With --new-key: ask for a passphrase that guards the key (or take it from HOLDFAST_PASSPHRASE)."""


def main(words: list[str]) -> int:
    options = speech.parse(Seal, "seal", words)
    if options.run is None and options.new_key is None:
        raise Problem("seal: names no run; give its folder, or --new-key FILE to make a key")
    if options.passphrase and options.new_key is None:
        raise Problem("--passphrase: is for a new key; add --new-key FILE")
    if options.key and options.new_key:
        raise Problem("--new-key: --key names another key to sign with; give one of them")
    run = Run.open(options.run) if options.run else None
    if options.new_key:
        name = signing.new_key(options.new_key, _chosen() if options.passphrase else None)
        speech.say(f"secret key {name}: {options.new_key} (keep it; nobody else may read it)")
        speech.say(f"public key: {options.new_key}.pub (publish it, but not beside the run alone)")
    if run:
        _seal(run, options.key or options.new_key, options.share)
    return 0


def _seal(run: Run, key: Path | None, share: Path | None) -> None:
    if share:
        disk.refuse_taken(share)
    with disk.alone(run.folder):
        names, manifest = seals.records(run.folder), run.manifest()
        if wrong := rejudged.strays(run):
            raise Problem(f"{run.folder}: {wrong[0]}; run `holdfast report {run.folder}` again, then seal")
        hidden = _hidden(run, names, share is not None)
        shared = {name: hashlib.sha256(content).hexdigest() for name, content in hidden.items()} if share else {}
        at = datetime.now(UTC).isoformat(timespec="seconds")
        made = seals.sealed(run, manifest.name, holdfast.__version__, at, shared)
        content = (made.model_dump_json(indent=1) + "\n").encode()
        says = f"holdfast {made.holdfast} run {made.run} sealed {at} files {len(made.files)}"
        signed = signing.sign(content, key, lambda: _passphrase(key), says) if key else None
        if share:
            _refuse_leaks(run, names, hidden)
            with disk.whole(share) as aside:
                for name in names:
                    disk.write(aside / name, hidden.get(name) or (run.folder / name).read_bytes())
                _write(aside, content, signed[0] if signed else None)
        _write(run.folder, content, signed[0] if signed else None)
    speech.say(f"sealed: {len(made.files)} files in {run.folder / seals.NAME}")
    speech.say(
        f"signed by key {signed[1]}: {run.folder / seals.SIGNATURE}" if signed else "not signed; --key FILE signs"
    )
    if share:
        speech.say(f"to share: {share}, {len(hidden)} files with prompts and answers as hashes")
    elif hidden:
        first = ", ".join([*hidden][:3])
        speech.say(f"{len(hidden)} files hold prompts or answers ({first}); --share FOLDER writes a copy without")


def _hidden(run: Run, names: list[str], paged: bool) -> dict[str, bytes]:
    """The files that hold prompts or answers, as they may be shared; the page among them where it is to be made again."""
    found: dict[str, bytes] = {}
    for name in names:
        if name.endswith(".parquet") or name == redaction.SHEET:
            content = redaction.redacted(name, (run.folder / name).read_bytes())
            found |= {name: content} if content else {}
    if paged:
        plain = page.render(verdict.judge(run), sources=sources(run)).encode("utf-8", "replace")
        found |= {seals.PAGE: plain} if plain != (run.folder / seals.PAGE).read_bytes() else {}
    return found


def _refuse_leaks(run: Run, names: list[str], hidden: dict[str, bytes]) -> None:
    """Nothing is shared that holds a prompt of the corpus."""
    corpus = Path(run.read("run.json")["corpus"].get("file", ""))
    if not corpus.is_file():
        speech.say(f"the corpus {corpus} is not here: whether another file holds a prompt of it was not looked up")
        return
    files = ((name, hidden.get(name) or (run.folder / name).read_bytes()) for name in names)
    if found := redaction.leaks(files, corpus):
        raise Problem(f"{run.folder}: {found[0]}; nothing was written, take the text out of the recipe or the ids")


def _write(folder: Path, content: bytes, signature: bytes | None) -> None:
    """An old signature is of an old seal: it goes first."""
    (folder / seals.SIGNATURE).unlink(missing_ok=True)
    disk.write(folder / seals.NAME, content)
    if signature:
        disk.write(folder / seals.SIGNATURE, signature)


def _passphrase(key: Path | None) -> str:
    if PASSPHRASE in os.environ:
        return os.environ[PASSPHRASE]
    if not sys.stdin.isatty():
        raise Problem(f"{key}: guarded by a passphrase, and nobody is there to ask; set {PASSPHRASE}")
    return getpass.getpass(f"passphrase of {key}: ")


def _chosen() -> str:
    """The passphrase of a new key."""
    if PASSPHRASE not in os.environ and not sys.stdin.isatty():
        raise Problem(f"--passphrase: nobody is there to ask; set {PASSPHRASE}")
    chosen = os.environ.get(PASSPHRASE) or getpass.getpass("passphrase of the new key: ")
    if not chosen:
        raise Problem("--passphrase: the passphrase is empty; give one, or leave the option out")
    if PASSPHRASE not in os.environ and getpass.getpass("once more: ") != chosen:
        raise Problem("--passphrase: the two differ; try again")
    return chosen
