"""Deal public prompts, or those of a policy, to three hands."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from holdfast import policy, speech
from holdfast.corpus import Corpus, Row
from holdfast.dealing import Dealing
from holdfast.pictured import Pictured
from holdfast.problem import Problem


@dataclass(frozen=True)
class Dealt:
    """Deal the public benchmarks' files to the three hands: a corpus for models that follow instructions.

    `holdfast corpus pictures` deals those about pictures, for models that see; `holdfast corpus policy` those of a policy.
    """

    deal: Annotated[Dealing, tyro.conf.arg(name="")]
    out: Path
    """JSONL file to write."""


@dataclass(frozen=True)
class DealtPictures:
    """Deal the public benchmarks about pictures to the three hands: a corpus for models that see."""

    deal: Annotated[Pictured, tyro.conf.arg(name="")]
    out: Path
    """JSONL file to write, in the folder of the data: a corpus names its pictures as they lie from there."""


@dataclass(frozen=True)
class DealtPolicy:
    """Write a policy's prompts as they are dealt to the three hands, to look at them or to keep that dealing."""

    policy: Path
    """TOML file of the policy (docs/policy.md)."""
    out: Path
    """JSONL file to write; in the policy's folder where its prompts are about pictures."""


def main(words: list[str]) -> int:
    out, rows, notes = {"pictures": _pictures, "policy": _policy}.get("".join(words[:1]), _benchmarks)(words)
    dealt = Corpus(rows)
    dealt.save(out)
    for name in ("defender", "attacker", "judge"):
        counts = Counter(row.kind for row in dealt.hand(name).rows)
        speech.say(f"{name}: {', '.join(f'{count} {kind}' for kind, count in counts.items())}")
    for note in notes:
        speech.say(f"note: {note}")
    speech.say(f"corpus: {out}")
    return 0


Made = tuple[Path, list[Row], list[str]]
"""The file to write, its rows, and what is to be known of them."""


def _benchmarks(words: list[str]) -> Made:
    options = speech.parse(Dealt, "corpus", words)
    return _free(options.out), *options.deal.dealt()


def _pictures(words: list[str]) -> Made:
    options = speech.parse(DealtPictures, "corpus pictures", words[1:])
    _refuse_elsewhere(options.out, options.deal.data)
    return _free(options.out), *options.deal.dealt()


def _policy(words: list[str]) -> Made:
    options = speech.parse(DealtPolicy, "corpus policy", words[1:])
    found = policy.read(options.policy)
    if any(one.image for one in found.prompts):
        _refuse_elsewhere(options.out, options.policy.parent)
    notes = [f"policy {found.told}", "audited with this file, its judge is no default: give --harm"]
    return _free(options.out), found.rows(), notes


def _free(out: Path) -> Path:
    if out.exists():
        raise Problem(f"{out}: already there; choose another file or delete it")
    return out


def _refuse_elsewhere(out: Path, pictures: Path) -> None:
    if out.parent.resolve() != pictures.resolve():
        raise Problem(f"{out}: its pictures would lie elsewhere; give --out {pictures / 'corpus.jsonl'}")
