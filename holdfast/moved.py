"""How far weights are from the checkpoint they were loaded from, tensor by tensor: what an attack touched, and how much.

Knows models and checkpoint folders, nothing of attacks. Adapters count as merged, removed blocks as removed.
"""

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from holdfast.checkpoint import Checkpoint
from holdfast.problem import Problem


@dataclass(frozen=True)
class Change:
    """One tensor, now and as released."""

    name: str
    """As the model called it when it was released."""
    size: int
    """Values it held."""
    square: float
    """Sum of its squared differences; of its squares, where it was removed."""
    start: float
    """Sum of its squares as released."""
    changed: int
    """Values that differ."""
    removed: bool = False


@torch.no_grad()
def changes(
    model: nn.Module,
    checkpoint: Checkpoint,
    original: Callable[[], dict[str, Tensor]],
    stack: str,
    kept: Sequence[int] | None,
) -> Iterator[Change]:
    """Every tensor of the checkpoint that can be compared.

    Args:
        original: the model's weights as released; asked for only where the checkpoint stores them under other names.
        stack: dotted name of the list of blocks.
        kept: numbers that the remaining blocks had before some were removed; None if none was.
    """
    released: dict[str, Tensor] | None = None
    seen = set()
    for now, weight in merged(model):
        name = _as_released(now, stack, kept)
        stored = checkpoint.stored(name, tuple(weight.shape))
        if stored is None:
            released = original() if released is None else released
            if name not in released or released[name].shape != weight.shape:
                continue
        seen.add(name if stored is None else stored)
        origin = (checkpoint.tensor(stored) if stored else released[name]).to(weight.device, weight.dtype)
        yield Change(
            name,
            weight.numel(),
            float((weight - origin).double().square().sum()),
            float(origin.double().square().sum()),
            int((weight != origin).sum()),
        )
    if kept is not None:
        for name, weight in original().items():
            if name.startswith(f"{stack}.") and int(name[len(stack) + 1 :].split(".")[0]) not in kept:
                norm = float(weight.double().square().sum())
                yield Change(name, weight.numel(), norm, norm, weight.numel(), removed=True)


def merged(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter under its checkpoint's name, with any adapter's change added and weights of 4 bits unpacked.

    Virtual tokens change no weight; they come under names that no checkpoint has.
    """
    prefix = ""
    if isinstance(model, PeftModel):
        base = model.get_base_model()
        prefix = next(f"{name}." for name, module in model.named_modules() if module is base)
    layer, alone = "", {}
    for name, weight in model.named_parameters():
        outer, inside, rest = name.partition(".base_layer.")
        value = dense(weight)
        if inside:
            if outer != layer:
                layer, alone = outer, _merged(model.get_submodule(outer))
            rest = rest.replace("base_layer.", "")
            value = alone.get(rest, value)
        yield ".".join([outer, rest] if inside else [outer]).removeprefix(prefix), value


def settled(model: PeftModel) -> PreTrainedModel:
    """The ordinary model that this one amounts to: adapters merged into it, weights of 4 bits unpacked. `model` is used up.

    Raises:
        Problem: the adapter is no change of weights.
    """
    if model.active_peft_config.is_prompt_learning:
        raise Problem("virtual tokens (`prompt`, `prefix`) are no part of the weights; nothing can merge or save them")
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            _unpack(layer)
    return model.merge_and_unload()


def dense(weight: Tensor) -> Tensor:
    """A weight's values, also where it is packed into 4 bits."""
    if _packed(weight):
        from bitsandbytes.functional import dequantize_4bit  # there, as somebody packed the weight with it

        return dequantize_4bit(weight.data, weight.quant_state)
    return weight.detach()


def size(weight: Tensor) -> int:
    """How many values a weight holds, also where it is packed into 4 bits."""
    return weight.quant_state.shape.numel() if _packed(weight) else weight.numel()


def _packed(weight: Tensor) -> bool:
    """bitsandbytes keeps on a packed weight what unpacks it."""
    return getattr(weight, "quant_state", None) is not None


def _merged(layer: BaseTunerLayer) -> dict[str, Tensor]:
    """The weights of a wrapped module with its adapters' change added, under the module's own names."""
    alone = copy.deepcopy(layer)
    while isinstance(alone, BaseTunerLayer):  # a module of several stacks of experts is wrapped once for each
        _unpack(alone)
        alone.merge()
        alone = alone.base_layer
    return {name: weight.detach() for name, weight in alone.named_parameters()}


def _unpack(layer: BaseTunerLayer) -> None:
    """Put an ordinary linear layer where one of 4 bits is wrapped: merging into that would round once more."""
    packed = layer.base_layer
    if isinstance(packed, nn.Linear) and _packed(packed.weight):
        ordinary = nn.Linear(packed.in_features, packed.out_features, packed.bias is not None, device="meta")
        ordinary.weight, ordinary.bias = nn.Parameter(dense(packed.weight)), packed.bias
        layer.base_layer = ordinary


def _as_released(name: str, stack: str, kept: Sequence[int] | None) -> str:
    if kept is None or not name.startswith(f"{stack}."):
        return name
    number, _, rest = name[len(stack) + 1 :].partition(".")
    return f"{stack}.{kept[int(number)]}.{rest}"


def touched(found: Iterable[Change]) -> tuple[tuple[str, ...], float]:
    """Which weights differ from the released ones, alike ones named together, and the share of all parameters in them."""
    every = list(found)
    kinds = Counter(re.sub(r"\.\d+\.", ".*.", one.name) + " (removed)" * one.removed for one in every if one.changed)
    share = sum(one.size for one in every if one.changed) / max(1, sum(one.size for one in every))
    return tuple(f"{name} x{count}" if count > 1 else name for name, count in kinds.items()), share
