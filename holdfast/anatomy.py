"""What a transformer is made of, found by watching it compute: blocks, what writes the residual stream, what reads it.

No list of layer names, which silently misses a new architecture (2609.09793 measured what that hides on mixtures of experts):
a forward pass is watched operation by operation. Knows modules and tensors, nothing of tokenizers or prompts.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import PreTrainedModel

from holdfast.problem import Problem


class Use(NamedTuple):
    """One weight matrix at work: `outputs = inputs · matrix`, whichever way round it is stored."""

    name: str
    """The parameter's name."""
    expert: int | None
    """Which matrix of a stacked parameter of shape (experts, ·, ·); None for a plain one."""
    axis: int
    """The matrix' output axis, -2 (as in `nn.Linear`) or -1 (as in GPT-2's `Conv1D`, or an embedding)."""
    inputs: Tensor | None
    """What it is multiplied with, shape (tokens, inputs); None for an embedding."""
    bias: str | None
    """The parameter that is added to its output, if one is."""


class Writer(NamedTuple):
    """A weight whose output is added to the residual stream with no other matrix between."""

    name: str
    axis: int
    """Its output axis, -2 or -1; the stream's width lies along it. Stacks of experts are 3-D."""
    bias: str | None
    norm: str | None
    """The module that normalizes its output before the sum (Gemma 2, OLMo 2); its weight scales what is written."""
    layer: int | None
    """The block it belongs to; None for embeddings."""


def blocks(model: nn.Module) -> nn.ModuleList:
    """The stack of transformer blocks: of all lists of equal modules the one that holds most parameters. Of a model that sees
    pictures its language model's."""
    sees = getattr(getattr(model, "config", None), "vision_config", None) is not None
    writing = model.get_decoder() if sees else model
    lists = [module for module in writing.modules() if isinstance(module, nn.ModuleList)]
    stacks = [stack for stack in lists if len(stack) and len({type(block) for block in stack}) == 1]
    if not stacks:
        raise Problem(f"{type(model).__name__}: no stack of transformer blocks found in it")
    return max(stacks, key=lambda stack: sum(p.numel() for p in stack.parameters()))


@contextlib.contextmanager
def stream(stack: nn.ModuleList, last: int) -> Iterator[list[Tensor]]:
    """Gathers the residual stream before each block and after the last, at the `last` tokens: (rows, last, width), fp32, CPU."""
    kept: list[Tensor] = []

    def before(_: nn.Module, inputs: tuple, kwargs: dict[str, Tensor]) -> None:
        kept.append((inputs[0] if inputs else kwargs["hidden_states"])[:, -last:].float().cpu())

    def after(_: nn.Module, __: tuple, out: Tensor | tuple) -> None:
        kept.append(_first(out)[:, -last:].float().cpu())

    hooks = [block.register_forward_pre_hook(before, with_kwargs=True) for block in stack]
    hooks.append(stack[-1].register_forward_hook(after))
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def path(model: nn.Module, part: nn.Module) -> str:
    """The dotted name of a module inside another."""
    return next(name for name, module in model.named_modules() if module is part)


def writers(model: PreTrainedModel) -> list[Writer]:
    """Every weight that writes the residual stream, in the order of the parameters.

    Raises:
        Problem: some block shows no writer: a structure this cannot read, so nothing is edited half.
    """
    stack = blocks(model)
    watch = _Provenance(model)
    told: list[frozenset[tuple[str, int]]] = []
    last = stack[-1].register_forward_hook(lambda _, __, out: told.append(watch.of(_first(out))))
    try:
        run(model, watch)
    finally:
        last.remove()
        watch.release()
    width = model.config.get_text_config().hidden_size
    weights = dict(model.named_parameters())
    homes = {name: layer for layer, block in enumerate(stack) for name in _names_below(model, block)}
    found = [
        Writer(name, axis, watch.biases.get(name), watch.norms.get(name), homes.get(name))
        for name, axis in told[-1]
        if weights[name].shape[axis] == width
    ]
    if missing := sorted(set(range(len(stack))) - {writer.layer for writer in found}):
        raise Problem(f"{type(model).__name__}: no weight was seen to write the residual stream in block {missing[0]}")
    order = {name: number for number, name in enumerate(weights)}
    return sorted(found, key=lambda writer: order[writer.name])


def matrices(model: PreTrainedModel) -> list[Use]:
    """Every weight matrix that the blocks multiply with, once each (a stack of experts is one), in parameter order."""
    seen: dict[str, Use] = {}
    run(model, Uses(model, lambda use: seen.setdefault(use.name, use._replace(expert=None, inputs=None))))
    inside = {name for block in blocks(model) for name in _names_below(model, block)}
    return [seen[name] for name, _ in model.named_parameters() if name in seen and name in inside]


def scale(model: nn.Module, writer: Writer) -> Tensor | None:
    """What the norm behind a writer multiplies each of the stream's values by, shape (width,); None without such a norm."""
    if writer.norm is None:
        return None
    norm = model.get_submodule(writer.norm)
    probe = torch.ones_like(next(norm.parameters()).detach())
    probe[1::2] = -1  # of mean 0 and variance 1: a LayerNorm takes nothing from it either
    with torch.no_grad():
        return ((norm(probe[None]) - norm(-probe[None])) / 2)[0] * probe


def run(model: PreTrainedModel, watch: TorchDispatchMode, tokens: int = 64) -> None:
    """One forward pass over arbitrary tokens, watched. The loop over experts shows which expert is at work."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.get_text_config().vocab_size, (1, tokens), generator=generator).to(device)
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), one_expert_at_a_time(model), watch:
            model(input_ids=ids, use_cache=False)
    finally:
        model.train(training)


@contextlib.contextmanager
def one_expert_at_a_time(model: PreTrainedModel) -> Iterator[None]:
    """Mixtures of experts compute by their plain loop, in which every product belongs to one expert."""
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}.values()
    before = [(config, config._experts_implementation) for config in configs]
    for config, _ in before:
        config._experts_implementation = "eager"
    try:
        yield
    finally:
        for config, implementation in before:
            config._experts_implementation = implementation


_MATRIX_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "convolution", "_grouped_mm", "embedding"}
_VIEWS = {
    "t",
    "transpose",
    "permute",
    "select",
    "view",
    "_unsafe_view",
    "detach",
    "alias",
    "_to_copy",
    "clone",
    "slice",
}


class _Stored(NamedTuple):
    """A tensor that is a view of a parameter: which, which expert of it, and whether rows and columns are swapped."""

    name: str
    expert: int | None = None
    swapped: bool = False


class Uses(TorchDispatchMode):
    """Calls `see` for every product of a parameter with something, while the mode is entered."""

    def __init__(self, model: nn.Module, see: Callable[[Use], Any]):
        super().__init__()
        self.see = see
        self.stored = WeakTensorKeyDictionary()
        for name, weight in model.named_parameters():
            self.stored[weight] = _Stored(name)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        operation = func.overloadpacket.__name__
        if operation in _VIEWS and isinstance(args[0], Tensor) and (stored := self.stored.get(args[0])):
            self.stored[out] = _viewed(stored, operation, args)
        use = self._use(operation, args)
        if use:
            self.see(use)
        self.computed(operation, use, args, out)
        return out

    def computed(self, operation: str, use: Use | None, args: tuple, out: Any) -> None:
        """Called after every operation."""

    def _use(self, operation: str, args: tuple) -> Use | None:
        if operation == "embedding" and (weight := self.stored.get(args[0])):
            return Use(weight.name, None, -1, None, None)
        if operation not in ("mm", "addmm", "linear"):
            return None
        bias = args[0] if operation == "addmm" else args[2] if operation == "linear" and len(args) > 2 else None
        left, right = args[-2:] if operation != "linear" else args[:2]
        told = self.stored.get(bias) if isinstance(bias, Tensor) else None
        if weight := self.stored.get(right):
            axis = -1 if weight.swapped == (operation == "linear") else -2
            return Use(weight.name, weight.expert, axis, left.flatten(0, -2), told and told.name)
        if (weight := self.stored.get(left)) and operation != "linear":
            return Use(weight.name, weight.expert, -1 if weight.swapped else -2, right.t(), told and told.name)
        return None


def _viewed(stored: _Stored, operation: str, args: tuple) -> _Stored:
    tensor = args[0]
    if operation == "select" and tensor.dim() == 3 and args[1] == 0:
        return stored._replace(expert=int(args[2]))
    turns = operation == "t"
    turns |= operation == "transpose" and {one % tensor.dim() for one in args[1:3]} == {
        tensor.dim() - 1,
        tensor.dim() - 2,
    }
    turns |= operation == "permute" and list(args[1])[-2:] == [tensor.dim() - 1, tensor.dim() - 2]
    return stored._replace(swapped=stored.swapped != turns)


class _Provenance(Uses):
    """Which weights had the last word in every tensor: the products that reach it through no other product."""

    def __init__(self, model: nn.Module):
        super().__init__(model, lambda use: None)
        self.biases: dict[str, str | None] = {}
        self.norms: dict[str, str] = {}
        self._from = WeakTensorKeyDictionary()
        self._embeddings: set[str] = set()
        bare = {
            name: module
            for name, module in model.named_modules()
            if (own := list(module.parameters())) and all(weight.dim() == 1 for weight in own)
        }
        self._hooks = [module.register_forward_pre_hook(self._normalizes(name)) for name, module in bare.items()]

    def release(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def of(self, tensor: Tensor) -> frozenset[tuple[str, int]]:
        """Names and output axes of the weights that wrote `tensor`."""
        return self._from.get(tensor, frozenset())

    def computed(self, operation: str, use: Use | None, args: tuple, out: Any) -> None:
        if use:
            wrote = frozenset({(use.name, use.axis)})
            self.biases[use.name] = use.bias
            if use.inputs is None:
                self._embeddings.add(use.name)
        elif operation in _MATRIX_PRODUCTS or "attention" in operation:
            wrote = frozenset()
        else:
            wrote = frozenset().union(*(self.of(one) for one in tree_leaves(args) if isinstance(one, Tensor)))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self._from[tensor] = wrote

    def _normalizes(self, name: str) -> Callable[[nn.Module, tuple], None]:
        """A norm that reads the stream sees the embeddings too; one that reads only what a block is about to write does not."""

        def hook(_: nn.Module, inputs: tuple) -> None:
            wrote = {weight for weight, _ in self.of(inputs[0])}
            if wrote and not wrote & self._embeddings:
                self.norms.update(dict.fromkeys(wrote, name))

        return hook


def _names_below(model: nn.Module, part: nn.Module) -> list[str]:
    prefix = path(model, part)
    return [f"{prefix}.{name}" for name, _ in part.named_parameters()]


def _first(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]
