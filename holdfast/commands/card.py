"""Write what a run found into a model card."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, UseAppendAction

from holdfast import disk, readme, speech, verdict
from holdfast.card import Card as Written
from holdfast.card import Weakness
from holdfast.evidence import Evidence
from holdfast.footing import audited, footing
from holdfast.problem import Problem
from holdfast.run import Run


@dataclass(frozen=True)
class Card:
    """Write what a run found on one model as a section of a Hugging Face model card, with metadata.

    An existing README.md keeps everything else as it is, and holds the section once, however often this is called. Evidence on
    which no claim about a model can rest is refused.
    """

    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    readme: Annotated[Path | None, speech.Unset] = None
    """The model card to merge into; changed in place unless --out is given."""
    subject: Annotated[str | None, speech.Unset] = None
    """Which of the run's models; the one that is neither a twin nor a control unless given."""
    out: Annotated[Path | None, speech.Unset] = None
    """File for the card; printed where neither this nor --readme is given."""
    anyway: Annotated[tuple[Weakness, ...], UseAppendAction] = ()
    """Publish weak evidence, labeled as such: organism, or preliminary for less than the standard tier; may be given twice."""


def main(words: list[str]) -> int:
    options = speech.parse(Card, "card", words)
    evidence = Evidence.read(Run.open(options.run))
    subject = audited(evidence, options.subject, options.run)
    card = Written(verdict.weigh(evidence), subject, footing(evidence, subject))
    card.refuse(options.anyway)
    place = options.out or options.readme
    before = _read(options.readme) if options.readme else ""
    text = readme.merged(before, card.section(), card.result(), card.name, str(options.readme or place or "card"))
    if place is None:
        print(text, end="")
        return 0
    target = Path(os.path.realpath(place))
    mode = target.stat().st_mode & 0o777 if target.is_file() else 0o644  # a card is for everybody
    disk.write(target, text.encode())
    with disk.explained(target):
        target.chmod(mode)
    speech.say(f"card: {place}")
    for why in card.weaknesses.values():
        speech.say(f"labeled as no claim about a model: {why}")
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise Problem(
            f"{path}: cannot be read ({error.strerror}); give --out for a card that is not there yet"
        ) from error
    except UnicodeDecodeError as error:
        raise Problem(f"{path}: not UTF-8 ({error.reason}); save it as such") from error
