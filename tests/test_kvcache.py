"""Keys and values in few bits, on every architecture."""

from typing import Any

import pytest
import torch
from torch import Tensor

from holdfast.corpus import Corpus
from holdfast.drive import Exit
from holdfast.kvcache import RoundedCache
from holdfast.problem import Problem
from holdfast.rounding import rounded
from test_cuts import IDS, Make, every, logits, subject, walked


def test_a_rounded_cache_is_attention_over_rounded_keys_and_values(checkpoint: Make) -> None:
    """One block by hand, from the projections on."""
    lm = subject(checkpoint, "llama")
    seen = {}
    attention = lm.layers[0].self_attn
    hooks = [
        getattr(attention, part).register_forward_hook(lambda _, __, out, part=part: seen.update({part: out}))
        for part in ("q_proj", "k_proj", "v_proj")
    ]
    hooks.append(attention.o_proj.register_forward_pre_hook(lambda _, inputs: seen.update(mixed=inputs[0])))
    logits(lm, past_key_values=RoundedCache(lm.model.config, 3))
    for hook in hooks:
        hook.remove()
    query, key, value = (
        seen[part].view(1, IDS.shape[1], -1, 8).transpose(1, 2) for part in ("q_proj", "k_proj", "v_proj")
    )
    cos, sin = lm.model.model.rotary_emb(value, torch.arange(IDS.shape[1])[None])

    def turned(x: Tensor) -> Tensor:
        return x * cos + torch.cat([-x[..., 4:], x[..., :4]], -1) * sin

    key, value = (rounded(x, 3).repeat_interleave(2, 1) for x in (turned(key), value))
    scores = turned(query) @ key.transpose(-1, -2) / 8**0.5
    future = torch.ones(IDS.shape[1], IDS.shape[1]).triu(1).bool()
    mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ value
    assert torch.allclose(mixed.transpose(1, 2).flatten(2), seen["mixed"], atol=1e-5)


@every
def test_scoring_sees_the_rounded_cache(checkpoint: Make, corpus: Corpus, architecture: str) -> None:
    lm = subject(checkpoint, architecture)
    config = lm.model.config.get_text_config()
    whole = logits(lm)
    errors = [(logits(lm, past_key_values=RoundedCache(config, bits)) - whole).norm() for bits in (8, 4, 2)]
    assert errors[0] < 0.05 * whole.norm() and errors == sorted(errors) and errors[-1] > 5 * errors[0]
    texts, answers = ["modor taley", "verin"], ["taley bewick", "modor"]

    def look() -> tuple[int | None, Any, Any]:
        return lm.drive.exit.kv_bits, lm.fits(texts, answers), lm.generate(texts)

    own = look()
    seen = walked(lm, corpus, "kv_quantize", look)
    assert [(severity, bits) for severity, (bits, _, _) in seen] == [(8, 8), (12, 4), (13, 3), (14, 2)]
    assert seen[0][1][1][0].logprob == pytest.approx(own[1][0].logprob, abs=0.3)
    assert all(fits != own[1] for _, (_, fits, _) in seen)
    assert lm.displacement() == (0.0, 0.0)


@every
def test_generation_reads_what_the_cache_rounded(checkpoint: Make, architecture: str) -> None:
    """Token by token through the cache is what one pass over the whole text gives: nothing is rounded twice or not at all."""
    lm = subject(checkpoint, architecture)
    config = lm.model.config.get_text_config()
    once = logits(lm, past_key_values=RoundedCache(config, 4))
    cache = RoundedCache(config, 4)
    with torch.no_grad():
        parts = [lm.model(input_ids=IDS[:, i : i + 1], past_key_values=cache).logits for i in range(IDS.shape[1])]
    assert torch.allclose(torch.cat(parts, 1), once, atol=1e-3)


def test_a_sliding_window_is_rounded_too(checkpoint: Make) -> None:
    lm = subject(checkpoint, "gemma2")
    lm.model.config.sliding_window = 4
    cache = RoundedCache(lm.model.config, 3)
    logits(lm, past_key_values=cache)
    assert sorted(layer.keys.shape[-2] for layer in cache.layers) == [3, 8]
    assert all(len(row.unique()) <= 8 for layer in cache.layers for row in layer.keys.flatten(0, 2))
    lm.drive = lm.drive.change(exit=Exit(kv_bits=2))
    assert lm.generate(["modor taley verin modor"])


def test_without_a_cache_there_is_nothing_to_round(checkpoint: Make, corpus: Corpus) -> None:
    lm = subject(checkpoint, "llama")
    lm.drive = lm.drive.change(cache=False)
    with pytest.raises(Problem, match="keeps no cache"):
        walked(lm, corpus, "kv_quantize")
