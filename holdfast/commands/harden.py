"""Harden a checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff

from holdfast import one_hardening, shards, shell, speech
from holdfast.drive import Drive, Template
from holdfast.footprint import Card
from holdfast.problem import Problem
from holdfast.quiet import quiet
from holdfast.report.words import spent as took


@dataclass(frozen=True)
class Places:
    """Where a defense reads and writes."""

    model: str
    """Checkpoint to harden: a folder or a hub id; with --plan its config.json is enough."""
    out: Annotated[Path | None, speech.Unset] = None
    """Folder for the hardened checkpoint; needed but for --plan. After an interruption the same command goes on."""
    base: Annotated[str | None, speech.Unset] = None
    """The checkpoint from before its alignment; needed by defenses that read it."""
    corpus: Annotated[Path | None, speech.Unset] = None
    """JSONL of prompts, or a policy (docs/policy.md); needed by defenses that train, and by settings that are `auto`."""
    template: Template = "chat"
    """How prompts are put: the tokenizer's chat template, or plain."""
    plan: Annotated[FlagCreatePairsOff[bool], speech.Unset] = False
    """Harden nothing: tell from the config alone how much memory and time it takes, for defenses that rehearse attacks."""
    gpus: int = 1
    """With --plan: GPUs that share the work."""
    length: int = 256
    """With --plan: tokens of a row."""
    answer: int = 128
    """With --plan: how many of them are an answer's."""
    card: Card = "h200"
    """With --plan: the kind of GPU."""


def main(words: list[str]) -> int:
    quiet()
    places, defense = shell.method("defenses", "harden", Places, words)
    if places.plan:
        for line in defense.planned(places.model, places.length, places.answer, places.gpus, places.card):
            speech.say(line)
        return 0
    if places.out is None:
        raise Problem("harden: says not where the hardened checkpoint goes; give --out")
    shards.join()
    say = speech.say if shards.rank() == 0 else lambda line: None
    drive = Drive(template=places.template)
    named = Path(words[0]).stem, places.model, places.out, places.base, places.corpus
    cost = one_hardening.harden(defense, *named, drive, say)
    say(f"hardening took {', '.join(took(cost))}")
    say(f"hardened checkpoint: {places.out}")
    shards.leave()
    return 0
