"""Bytes of tensors that are alive, and operations, counted while a program runs: what it holds at its worst moment, by kind.

Storages are counted, so a view costs nothing; those on the meta device and of fake tensors count as if they were there. What no
operation touched while the count ran is not seen, nor is the scratch memory inside a kernel. Knows tensors.
"""

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Live(TorchDispatchMode):
    """Counts while it is entered. `kind` says of a tensor nobody named what it is."""

    def __init__(self, kind: Callable[[Tensor], str] = lambda tensor: "tensors"):
        super().__init__()
        self.now: Counter[str] = Counter()
        """Bytes alive, by kind."""
        self.worst: Counter[str] = Counter()
        """What `now` was when its sum was largest."""
        self.flops = 0
        """Operations of the matrix products, two for each multiplication and sum."""
        self._kind = kind
        self._known: dict[int, tuple[weakref.ref, str, int]] = {}

    @property
    def peak(self) -> int:
        """Most bytes alive at once."""
        return self.worst.total()

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "prim":
            return out
        for leaf in tree_leaves((args, kwargs, out)):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        if self.now.total() > self.peak:
            self.worst = self.now.copy()
        if count := flop_registry.get(func.overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out

    def again(self) -> Counter[str]:
        """What the worst moment was; it is looked for anew from here."""
        worst, self.worst = self.worst, self.now.copy()
        return worst

    def name(self, tensor: Tensor, kind: str) -> None:
        """Count the tensor as of this kind from now on, also where it was there before."""
        self._see(tensor)
        reference, before, size = self._known[id(tensor.untyped_storage())]
        self._known[id(tensor.untyped_storage())] = reference, kind, size
        self.now[before] -= size
        self.now[kind] += size

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known and self._known[key][0]() is storage:
            return
        kind, size = self._kind(tensor), storage.nbytes()
        self._known[key] = weakref.ref(storage, lambda _: self._gone(key)), kind, size
        self.now[kind] += size

    def _gone(self, key: int) -> None:
        _, kind, size = self._known.pop(key)
        self.now[kind] -= size
