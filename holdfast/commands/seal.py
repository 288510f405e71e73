"""Seal a run, sign the seal, and write a copy without prompts."""

import contextlib
import getpass
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional

import holdfast
from holdfast import disk, policy, redaction, rejudged, shell, signing, speech, verdict
from holdfast import seal as seals
from holdfast.problem import Problem
from holdfast.record import Manifest
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
    """Write the sealed files to this new folder, prompts and answers as hashes, of folders the last name alone."""
    corpus: Annotated[Path | None, speech.Unset] = None
    """With --share: where the run's corpus lies now, if it was moved; what is shared is searched for its prompts."""
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
    if options.corpus and not options.share:
        raise Problem("--corpus: is for a copy to share; add --share FOLDER")
    run = Run.open(options.run) if options.run else None
    if options.new_key:
        name = signing.new_key(options.new_key, _chosen() if options.passphrase else None)
        speech.say(f"secret key {name}: {options.new_key} (keep it; nobody else may read it)")
        speech.say(f"public key: {options.new_key}.pub (publish it, but not beside the run alone)")
    if run:
        _seal(run, options.key or options.new_key, options.share, options.corpus)
    return 0


def _seal(run: Run, key: Path | None, share: Path | None, corpus: Path | None) -> None:
    if share:
        disk.refuse_taken(share)
    with disk.alone(run.folder):
        names, manifest = seals.records(run.folder), run.manifest()
        asked = _asked(manifest, corpus) if share else None
        _refuse_stale(run)
        with disk.whole(share) if share else contextlib.nullcontext() as aside:
            known = redaction.folders(_contents(run.folder, names)) if aside else ()
            shared = _copied(run, names, aside, known) if aside else {}
            if aside and asked:
                _refuse_leaks(run, names, aside, asked, known)
            at = datetime.now(UTC).isoformat(timespec="seconds")
            made = seals.sealed(run, manifest.name, holdfast.__version__, at, shared)
            content = (made.model_dump_json(indent=1) + "\n").encode()
            says = f"holdfast {made.holdfast} run {made.run} sealed {at} files {len(made.files)}"
            signed = signing.sign(content, key, lambda: _passphrase(key), says) if key else None
            if aside:
                _write(aside, content, signed[0] if signed else None)
        _write(run.folder, content, signed[0] if signed else None)
    speech.say(f"sealed: {len(made.files)} files in {run.folder / seals.NAME}")
    speech.say(
        f"signed by key {signed[1]}: {run.folder / seals.SIGNATURE}" if signed else "not signed; --key FILE signs"
    )
    if share:
        speech.say(f"to share: {share}, {len(shared)} files without prompts, answers and names of folders")
    elif hidden := [name for name, content in _contents(run.folder, names) if redaction.redacted(name, content)]:
        first = ", ".join(hidden[:3])
        speech.say(f"{len(hidden)} files hold prompts or answers ({first}); --share FOLDER writes a copy without")


def _refuse_stale(run: Run) -> None:
    """What is sealed is what the records give: the verdict, and the page that people read."""
    dossier, again = verdict.judge(run), f"run `holdfast report {run.folder}` again, then seal"
    if wrong := rejudged.strays(run, dossier):
        raise Problem(f"{run.folder}: {wrong[0]}; {again}")
    if not shell.shows(run, dossier):
        raise Problem(f"{run.folder / seals.PAGE}: not the page that these records give; {again}")


def _contents(folder: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    return ((name, (folder / name).read_bytes()) for name in names)


def _copied(run: Run, names: list[str], folder: Path, known: Sequence[str]) -> dict[str, str]:
    """Lay down the run's files as they may be shared; returns the SHA-256 of those that differ from the run's. `known` are the
    run's folders."""
    for name, content in _contents(run.folder, names):
        disk.write(folder / name, redaction.placeless(name, redaction.redacted(name, content) or content, known))
    copy = Run(folder)
    dossier = verdict.judge(copy)
    verdict.keep(copy, dossier)
    page.write(dossier, folder / seals.PAGE, sources=sources(copy))
    found = {name: disk.digest(folder / name) for name in names}
    return {name: one for name, one in found.items() if one != disk.digest(run.folder / name)}


def _asked(manifest: Manifest, moved: Path | None) -> Path:
    """The run's corpus. Raises `Problem` where it is gone or another: what is shared cannot be searched for its prompts then."""
    corpus = moved or Path(manifest.corpus.get("file", ""))
    if not corpus.is_file():
        raise Problem(
            f"corpus {corpus}: not here, so nobody can look whether a file holds a prompt of it; name it with --corpus"
        )
    if policy.digest(corpus) != manifest.corpus.get("hash"):
        raise Problem(f"corpus {corpus}: not the one that the run was made with; name that with --corpus")
    return corpus


def _refuse_leaks(run: Run, names: list[str], folder: Path, corpus: Path, known: Sequence[str]) -> None:
    """Nothing is shared that holds a prompt of the corpus."""
    if found := redaction.leaks(_contents(folder, names), corpus, known):
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
