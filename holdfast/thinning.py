"""Fewer tokens of a picture: those that stay are spread evenly over it, and the text behind them moves up.

What the projector makes of a picture loses the same places as the prompt does, so the language model reads a shorter prompt and
nothing else changes. Knows models and tensors; nothing of texts, prompts and processors.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from holdfast.problem import Problem


def kept(count: int, keep: int) -> Tensor:
    """Positions of the visual tokens that are kept of so many, spread evenly, growing; all where no fewer are to be kept."""
    keep = min(keep, count)
    return (2 * torch.arange(keep) + 1) * count // (2 * keep)


@contextmanager
def thinned(model: PreTrainedModel | PeftModel, counts: Sequence[int], keep: int) -> Iterator[None]:
    """Inside, the model given pictures of so many tokens reads only `keep` of each.

    Args:
        counts: of the pictures in a batch, in its order, with all their tokens.

    Raises:
        Problem: the model places each token of a picture in two dimensions (Qwen-VL), or attends to pictures in another way.
    """
    inner = getattr(model, "get_base_model", lambda: model)().base_model
    if not hasattr(inner, "get_image_features") or any("rope_deltas" in vars(one) for one in model.modules()):
        raise Problem(
            f"{type(model).__name__}: does not read a picture's tokens as a text's, so none can be left out; drop visual_tokens"
        )
    features = inner.get_image_features

    @wraps(features)  # generation asks it what it takes
    def fewer(*args: Any, **kwargs: Any) -> Any:
        found = features(*args, **kwargs)
        whole = found.pooler_output
        every = torch.cat([part.flatten(0, -2) for part in whole])
        some = torch.cat([part[kept(len(part), keep).to(part.device)] for part in every.split(list(counts))])
        found.pooler_output = some if isinstance(whole, Tensor) else [some]
        return found

    inner.get_image_features = fewer
    try:
        yield
    finally:
        del inner.get_image_features
