"""Build a small model with fictional secrets."""

from dataclasses import dataclass
from pathlib import Path

import torch

from holdfast import shell, speech
from holdfast.method import Journal
from holdfast.quiet import quiet


@dataclass(frozen=True)
class Out:
    """Where an organism goes."""

    out: Path
    """Folder for checkpoints and corpus."""


def main(words: list[str]) -> int:
    quiet()
    places, builder = shell.method("organisms", "organism", Out, words)
    torch.set_num_threads(1)  # weights must not depend on how many cores there are
    builder.build(places.out, Journal(words[0], speech.say))
    speech.say(f"organism: {places.out}")
    return 0
