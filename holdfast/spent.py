"""What a piece of work spends on models, whatever it does with them: rows and tokens trained on, operations, seconds.

Every model that computes meanwhile is counted, references, copies and adapters too. Operations as everywhere: 2 a weight and
token forward; where gradients are taken, 2 more back through the activations and 2 for each weight that is trained.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.modules import module as every
from transformers import PreTrainedModel

from holdfast import disk, moved
from holdfast.record import Cost

SAVED_EVERY = 10.0
"""Seconds after which the count is written down."""


class Count:
    """What was spent so far."""

    def __init__(self, file: Path | None):
        self._file = file
        self._before = Cost.model_validate_json(file.read_text()) if file and file.is_file() else Cost()
        self._began = self._saved = time.monotonic()
        self._rows = self._tokens = self._inside = 0
        self._flops = 0.0

    @property
    def cost(self) -> Cost:
        """Everything spent, what killed tries of the same work spent included."""
        return Cost(
            examples=self._before.examples + self._rows,
            tokens=self._before.tokens + self._tokens,
            flops=self._before.flops + self._flops,
            seconds=round(self._before.seconds + time.monotonic() - self._began, 3),
        )

    def enter(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        """A module is called; one inside another is part of it."""
        self._inside += isinstance(model, PreTrainedModel | PeftModel)

    def leave(self, model: nn.Module, args: tuple[Any, ...], *more: Any) -> None:
        """A module's call has ended: with keywords and what came out, or, where it failed, with nothing that counts."""
        if isinstance(model, PreTrainedModel | PeftModel):
            self._inside -= 1
            if not self._inside and len(more) == 2:
                self._add(model, args, more[0])

    def _add(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args]
        read = next((one for one in given if isinstance(one, Tensor)), None)
        if read is None:
            return
        mask, trained = kwargs.get("attention_mask"), torch.is_grad_enabled()
        whole = isinstance(mask, Tensor) and mask.shape == read.shape[:2]  # of a cache it covers what was read before
        tokens = int(mask.sum()) if whole else read.shape[:2].numel()
        self._flops += _flops(model, trained) * tokens
        self._tokens += trained * tokens
        self._rows += trained * len(read)
        if self._file and time.monotonic() - self._saved >= SAVED_EVERY:
            disk.write(self._file, self.cost.model_dump_json())
            self._saved = time.monotonic()


@contextmanager
def counted(file: Path | None = None) -> Iterator[Count]:
    """Inside, whatever models compute is counted; `file` keeps the count for whoever goes on after a kill.

    Raises:
        Problem: the file cannot be written.
    """
    count = Count(file)
    with ExitStack() as hooks:
        for hook in (
            every.register_module_forward_pre_hook(count.enter),
            every.register_module_forward_hook(count.leave, with_kwargs=True, always_call=True),
        ):
            hooks.callback(hook.remove)
        yield count


def _flops(model: nn.Module, trained: bool) -> float:
    """Of one token: of its forward pass, and of the backward pass where gradients are taken."""
    sizes = [(moved.size(weight), weight.requires_grad) for weight in model.parameters()]
    whole = sum(size for size, _ in sizes)
    return 2.0 * whole + trained * (2.0 * whole + 2.0 * sum(size for size, learns in sizes if learns))
