"""What calibrated cuts look at first: prompts with their answers, and what reaches each weight matrix on them.

Knows models and hands, no attack in particular.
"""

import random
from collections.abc import Collection, Iterable, Sequence
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from holdfast import anatomy
from holdfast.corpus import Hand, Row
from holdfast.lm import LM

Calibration = Literal["benign", "harmful"]
"""Whose prompts a cut is made on."""
KINDS: dict[Calibration, Literal["benign", "restricted"]] = {"benign": "benign", "harmful": "restricted"}
_BATCH = 16

Batch = tuple[Tensor, int]
"""Token ids of texts of one length, shape (texts, tokens), so that nothing is padding; and the first token that is looked at."""


def rows(hand: Hand, calibration: Calibration, most: int, seed: int) -> list[Row]:
    """At most so many of the hand's plainly asked rows, by chance, in the corpus' order. Raises `Problem` if it holds none."""
    plain = Hand(hand.name, [row for row in hand.rows if row.variant is None]).need(KINDS[calibration])
    return [plain[i] for i in sorted(random.Random(seed).sample(range(len(plain)), min(most, len(plain))))]


def texts(lm: LM, asked: Sequence[Row]) -> list[Batch]:
    """Prompts with their answers, looked at whole."""
    return batches(lm, ((lm.encode(row.asked, row.answer)[0], 0) for row in asked))


def batches(lm: LM, examples: Iterable[tuple[list[int], int]]) -> list[Batch]:
    """Examples (ids, and the first token that is looked at) of one length and start together."""

    def shape(example: tuple[list[int], int]) -> tuple[int, int]:
        return len(example[0]), example[1]

    alike = [(start, list(some)) for (_, start), some in groupby(sorted(examples, key=shape), shape)]
    ids = [(start, torch.tensor([one for one, _ in some], device=lm.device)) for start, some in alike]
    return [(part, start) for start, some in ids for part in some.split(_BATCH)]


@torch.no_grad()
def inputs(
    lm: LM, names: Collection[str], work: Iterable[Batch], products: bool = False
) -> dict[tuple[str, int | None], Tensor]:
    """Σ x² of every input of each named matrix, of each expert of a stack; Σ x xᵀ where `products` are asked for.

    What saw no token (an expert that was never chosen) is missing from the result.
    """
    found: dict[tuple[str, int | None], Tensor] = {}

    def see(use: anatomy.Use) -> None:
        if use.name in names and use.inputs is not None and len(use.inputs):
            x, key = use.inputs.float(), (use.name, use.expert)
            found[key] = found.get(key, 0) + (x.T @ x if products else x.square().sum(0))

    with anatomy.one_expert_at_a_time(lm.model):
        for ids, start in work:
            before = lm.model(input_ids=ids[:, :start], use_cache=True).past_key_values if start else None
            with anatomy.Uses(lm.model, see):
                lm.model(input_ids=ids[:, start:], past_key_values=before, use_cache=before is not None)
    return found
