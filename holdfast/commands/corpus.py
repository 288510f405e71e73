"""Deal public prompts to three hands."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from holdfast import shell
from holdfast.corpus import Corpus
from holdfast.dealing import Dealing
from holdfast.pictured import Pictured
from holdfast.problem import Problem


@dataclass(frozen=True)
class Dealt:
    """Deal the public benchmarks' files to the three hands: a corpus for models that follow instructions.

    `holdfast corpus pictures` deals those about pictures, for models that see.
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


def main(words: list[str]) -> int:
    if words[:1] == ["pictures"]:
        options = shell.parse(DealtPictures, "corpus pictures", words[1:])
        if options.out.parent.resolve() != options.deal.data.resolve():
            raise Problem(
                f"{options.out}: its pictures would lie elsewhere; give --out {options.deal.data / 'corpus.jsonl'}"
            )
    else:
        options = shell.parse(Dealt, "corpus", words)
    if options.out.exists():
        raise Problem(f"{options.out}: already there; choose another file or delete it")
    rows, notes = options.deal.dealt()
    dealt = Corpus(rows)
    dealt.save(options.out)
    for name in ("defender", "attacker", "judge"):
        counts = Counter(row.kind for row in dealt.hand(name).rows)
        shell.say(f"{name}: {', '.join(f'{count} {kind}' for kind, count in counts.items())}")
    for note in notes:
        shell.say(f"note: {note}")
    shell.say(f"corpus: {options.out}")
    return 0
