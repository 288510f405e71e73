"""A pass through a model, run on tensors without memory: the bytes that come and go in it, and the operations.

Every operation of the real pass is run, but for its arithmetic, so no list of architectures is needed. A deep model is foreseen
from two of few blocks. Knows models, nothing of what the pass is for.
"""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from holdfast import anatomy, shards, surgery
from holdfast.live import Live
from holdfast.problem import Problem, printable

DEEP = 4
"""Blocks of the largest model whose passes are run whole."""
Work = Callable[[PreTrainedModel], Tensor | None]
"""A pass: a loss to go back from, or None where there is no way back."""


class Pass(NamedTuple):
    """What a pass takes beside the model's weights, and how much it computes."""

    bytes: list[dict[str, float]]
    """By kind, at the worst moment before half of the gradients were there, and at the worst after that."""
    flops: float

    def deeper(self, other: "Pass", times: float) -> "Pass":
        """This one, and `times` what it has more than the other: both moments and the operations grow evenly with each block."""
        sizes = [
            {kind: mine.get(kind, 0) + times * (mine.get(kind, 0) - its.get(kind, 0)) for kind in mine | its}
            for mine, its in zip(self.bytes, other.bytes, strict=True)
        ]
        return Pass(sizes, self.flops + times * (self.flops - other.flops))


def foreseen(model: PreTrainedModel, work: Callable[[PreTrainedModel], Sequence[Pass]]) -> list[Pass]:
    """The passes that `work` counts on a model of the meta device, which is given to it with few blocks where it is deep."""
    depth = len(anatomy.blocks(model))
    if depth <= DEEP:
        return list(work(_cut(model, depth)))
    more, less = work(_cut(model, DEEP)), work(_cut(model, DEEP // 2))
    times = (depth - DEEP) / (DEEP - DEEP // 2)
    return [one.deeper(other, times) for one, other in zip(more, less, strict=True)]


def counted(meta: PreTrainedModel, work: Work) -> Pass:
    """One pass of a model that is on the meta device.

    Raises:
        Problem: what it computes hangs on the values of its weights.
    """
    vocabulary = meta.get_output_embeddings().weight.shape[0]
    live = Live(lambda tensor: "logits" if tensor.shape[-1:] == (vocabulary,) else "activations")
    early: list[Counter[str]] = []
    with FakeTensorMode():
        model = shards.rebuilt(meta, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        half = sum(weight.numel() * weight.element_size() for weight in trained) / 2

        def graded(weight: Tensor) -> None:
            live.name(weight.grad, "gradients")
            if not early and live.now["gradients"] > half:
                early.append(live.again())

        for weight in model.parameters():
            live.name(weight, "weights")
        for weight in trained:
            weight.register_post_accumulate_grad_hook(graded)
        try:
            with live:
                if (loss := work(model)) is not None:
                    loss.backward()
        except RuntimeError as error:
            why = f"cannot be run without its weights ({printable(error)[:200]})"
            raise Problem(f"{type(meta).__name__}: {why}; --plan cannot tell what it takes") from error
    moments = [{kind: float(size) for kind, size in one.items() if kind != "weights"} for one in (*early, live.worst)]
    return Pass(moments, float(live.flops))


def _cut(model: PreTrainedModel, depth: int) -> PreTrainedModel:
    """A copy with the first blocks only."""
    undo = surgery.keep(model, range(depth))
    copied = copy.deepcopy(model)
    undo()
    return copied
