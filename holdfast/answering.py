"""Answers to prompts given as token ids: batch by batch, the shortest prompts first, greedily or drawn.

The slow part of an audit. Rows that have ended leave a batch once half of it has, so that a long answer does not hold up the
short ones. Knows a model and numbers; nothing of texts, templates and tokenizers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from holdfast.kvcache import RoundedCache

LEAVING = 8
"""Rows that must have ended before a batch is begun again without them: doing so costs about a token's time."""


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen, and where an answer ends."""

    most: int
    """Tokens an answer may have."""
    pad: int
    ends: tuple[int, ...]
    """Tokens that end an answer; they are part of it."""
    batch: int = 128
    temperature: float = 0.0
    """0: the likeliest token each time."""
    top_p: float = 1.0
    cache: bool = True
    """Keep keys and values; without, every token sees the whole text anew."""
    kv_bits: int | None = None
    """Bits of a cached key or value; as computed unless given."""
    never: tuple[int, ...] = ()
    """Tokens that no answer holds: those that stand for a picture would be looked for in what was shown."""

    def settings(self, most: int) -> GenerationConfig:
        """As transformers is told. It fills in what is not said here from the model's own settings, which `loading` empties."""
        draws = self.temperature > 0
        return GenerationConfig(
            do_sample=draws,
            **({"temperature": self.temperature, "top_p": self.top_p, "top_k": 0} if draws else {}),
            num_beams=1,
            max_new_tokens=most,
            pad_token_id=self.pad,
            eos_token_id=list(self.ends),
            use_cache=self.cache,
            suppress_tokens=list(self.never) or None,
            return_dict_in_generate=True,
        )


Beside = Callable[[Tensor, list[int]], AbstractContextManager[dict[str, Any]]]
"""What a model is handed beside the ids (rows, width) of the prompts of these numbers: what it is to see."""


@contextmanager
def nothing(ids: Tensor, numbers: list[int]) -> Iterator[dict[str, Any]]:
    """Prompts that are text alone."""
    yield {}


def answers(
    model: PreTrainedModel | PeftModel, prompts: Sequence[list[int]], how: Decoding, beside: Beside = nothing
) -> list[list[int]]:
    """The tokens that the model adds to each prompt. Draws depend on torch's random state and on the batch's size.

    A row may be padded behind its end.
    """
    said: list[list[int]] = [[]] * len(prompts)
    for chunk in chunks(by_length(prompts), how.batch):
        for i, tokens in zip(chunk, _batch(model, prompts, chunk, how, beside), strict=True):
            said[i] = tokens
    return said


def forced(
    model: PreTrainedModel | PeftModel,
    rows: Sequence[tuple[list[int], int]],
    how: Decoding,
    beside: Beside = nothing,
    positions: Callable[[Tensor], dict[str, Tensor]] = lambda mask: {},
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Teacher-forced predictions of each row's ids from its `start` on, at least 1.

    Yields, the shortest rows first: the row's number; logits, shape (tokens, vocabulary); the tokens that are there. Rows whose
    start is their end are left out.
    """
    for chunk in chunks(by_length([ids for ids, _ in rows]), how.batch):
        ids, mask = left_padded([rows[i][0] for i in chunk], how.pad, model.device)
        tails = [len(rows[i][0]) - rows[i][1] for i in chunk]
        kept = positions(mask) | {"logits_to_keep": max(tails) + 1}
        with beside(ids, chunk) as more:
            logits = model(input_ids=ids, attention_mask=mask, **kept, **cached(model, how.kv_bits), **more).logits
        for row, (i, tail) in enumerate(zip(chunk, tails, strict=True)):
            if tail:
                yield i, logits[row, -tail - 1 : -1], ids[row, -tail:]


def _batch(
    model: PreTrainedModel | PeftModel, prompts: Sequence[list[int]], chunk: list[int], how: Decoding, beside: Beside
) -> list[list[int]]:
    """The answers to the prompts of the numbers in `chunk`."""
    ids, mask = left_padded([prompts[i] for i in chunk], how.pad, model.device)
    width, rows, said = ids.shape[1], list(range(len(chunk))), [[0]] * len(chunk)
    cache, read = cached(model, how.kv_bits), False
    leaving = [_HalfEnded(how.ends, width)] if _can_leave(model, how) else []
    while rows:
        with nothing(ids, []) if read else beside(ids, [chunk[row] for row in rows]) as more:
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=how.settings(width + how.most - ids.shape[1]),
                stopping_criteria=StoppingCriteriaList(leaving),
                **cache,
                **more,
            )
        ended = _ended(out.sequences, how.ends, width) | (out.sequences.shape[1] - width == how.most or not leaving)
        for row in ended.nonzero()[:, 0].tolist():
            said[rows[row]] = out.sequences[row, width:].tolist()
        going = (~ended).nonzero()[:, 0]
        rows = [rows[row] for row in going.tolist()]
        added = out.sequences.shape[1] - ids.shape[1]
        ids, mask = out.sequences[going], torch.nn.functional.pad(mask[going], (0, added), value=1)
        cache = _left(out.past_key_values, going) if rows else {}
        read = bool(cache)
    return said


def _can_leave(model: PreTrainedModel | PeftModel, how: Decoding) -> bool:
    """Draws hang on the batch's size; virtual tokens are put before a text by whoever begins it; and what watches a text grow
    without a cache would take a smaller batch for another text."""
    virtual = isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning
    # Qwen-VL keeps each row's positions in itself, from one call to the next.
    placed = any("rope_deltas" in vars(module) for module in model.modules())
    return how.cache and how.temperature == 0 and not virtual and not placed


def _left(cache: Any, rows: Tensor) -> dict[str, Any]:
    """What the cache keeps for these rows; nothing, so that the texts are read again, where it has layers of another kind."""
    plain = isinstance(cache, DynamicCache)
    if not (plain and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)):
        return {}
    cache.batch_select_indices(rows)
    return {"past_key_values": cache}


class _HalfEnded(StoppingCriteria):
    """Stops a batch when half of its rows have ended, and `LEAVING` of them at least."""

    def __init__(self, ends: Sequence[int], width: int):
        self.ends, self.width = ends, width

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        ended = int(_ended(input_ids, self.ends, self.width).sum())
        return torch.full(input_ids.shape[:1], ended >= max(LEAVING, len(input_ids) / 2), device=input_ids.device)


def _ended(ids: Tensor, ends: Sequence[int], width: int) -> Tensor:
    return torch.isin(ids[:, width:], torch.tensor(ends, device=ids.device)).any(-1)


def cached(model: PreTrainedModel | PeftModel, bits: int | None) -> dict[str, Any]:
    """The argument that makes a model keep keys and values in so many bits."""
    return {"past_key_values": RoundedCache(model.config.get_text_config(), bits)} if bits else {}


def left_padded(rows: Sequence[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, each of shape (rows, longest)."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids.to(device), mask.to(device)


def by_length(rows: Sequence[Sequence[int]]) -> list[int]:
    """Numbers of the rows, the shortest first."""
    return sorted(range(len(rows)), key=lambda i: len(rows[i]))


def chunks(order: list[int], size: int) -> Iterator[list[int]]:
    """So many at a time."""
    return (order[start : start + size] for start in range(0, len(order), size))
