"""Whether the sizes that a file claims can be true of what lies in it, asked before anybody makes room for them.

A config of a million layers costs its writer one line, and whoever loads it an hour or all memory.
"""

import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from holdfast.problem import Problem

_LAYERS = re.compile(r"(^|_|\.)(num_hidden_layers|num_layers|n_layers?|\w*_layers|block_count|depth)$")
_SIZES = re.compile(r"(_|\.)(size|dim|heads|experts|length)$|(^|\.)(n_embd|n_inner|n_head|d_model|d_ff)$")
_FREE = re.compile(r"(context|image|patch|chunk|max|window|group|block)\w*_(size|length)$")
"""Sizes that no weight has."""
_SHARED = 64
"""Layers that may share the tensors of one."""


def refuse_absurd(settings: dict[str, Any], tensors: int, largest: int, file: Path) -> None:
    """Raise `Problem` where a config claims more or wider layers than so many tensors, the largest of so many weights, hold."""
    for key, value in _numbers(settings):
        if _LAYERS.search(key) and value > max(tensors, 1) * _SHARED:
            raise Problem(
                f"{file}: {key} is {value:.3g}, and there are {tensors} tensors; mend it, or fetch the file again"
            )
        if _SIZES.search(key) and not _FREE.search(key) and value > max(largest, 1) * _SHARED:
            raise Problem(
                f"{file}: {key} is {value:.3g}, and the largest tensor holds {largest} numbers; mend it, or fetch the file again"
            )


def _numbers(settings: Any, above: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a config by its key, those of configs inside it too."""
    inner = settings.items() if isinstance(settings, dict) else ()
    for key, value in inner:
        if isinstance(value, int | float) and not isinstance(value, bool) and value == value:  # no NaN
            yield f"{above}{key}", min(value, 10**300)
        yield from _numbers(value, f"{above}{key}.")


# GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_NESTED = 4
"""Arrays within arrays, at most."""


def refuse_false_gguf(file: Path) -> None:
    """Raise `Problem` where a GGUF file's header promises more than the file holds: its readers believe whatever it says."""
    try:
        with file.open("rb") as content:
            header = _Header(content, file.stat().st_size)
            fields, tensors = header.read()
    except (struct.error, ValueError, OverflowError) as error:
        raise Problem(f"{file}: is no GGUF file, or a damaged one ({error}); fetch it again") from error
    largest = max((math.prod(shape) for shape in tensors), default=0)
    refuse_absurd(fields, len(tensors), largest, file)


class _Header:
    """What stands before the tensors of a GGUF file."""

    def __init__(self, content: BinaryIO, size: int):
        self.content, self.size, self.order = content, size, "<"

    def read(self) -> tuple[dict[str, float], list[tuple[int, ...]]]:
        """Numbers by key, and the tensors' shapes."""
        if self._bytes(4) != b"GGUF":
            raise ValueError("it does not begin as one")
        if not self._number("I") & 0xFFFF:
            self.order = ">"
        count, keys = self._number("Q"), self._number("Q")
        self._room(count + keys, 12)
        fields: dict[str, float] = {}
        for _ in range(keys):
            name = self._text()
            value = self._value(self._number("I"))
            if isinstance(value, int | float):
                fields[name] = value
        return fields, [self._tensor() for _ in range(count)]

    def _tensor(self) -> tuple[int, ...]:
        self._text()
        dimensions = self._number("I")
        self._room(dimensions, 8)
        shape = tuple(self._number("Q") for _ in range(dimensions))
        self._bytes(12)
        if math.prod(shape) > 16 * self.size:
            raise ValueError(f"a tensor of shape {shape[:8]} in {self.size} bytes")
        return shape

    def _value(self, kind: int, depth: int = 0) -> float | None:
        if kind in _SCALARS:
            return float(self._number(_SCALARS[kind]))
        if kind == _STRING:
            self._text()
        elif kind == _ARRAY and depth < _NESTED:
            inner, count = self._number("I"), self._number("Q")
            if inner in _SCALARS:
                self._bytes(count * struct.calcsize(_SCALARS[inner]))
            else:
                self._room(count, 8)
                for _ in range(count):
                    self._value(inner, depth + 1)
        else:
            raise ValueError(f"a value of unknown type {kind}")
        return None

    def _text(self) -> str:
        return self._bytes(self._number("Q")).decode("utf-8", "replace")

    def _number(self, form: str) -> Any:
        return struct.unpack(self.order + form, self._bytes(struct.calcsize(form)))[0]

    def _room(self, count: int, each: int) -> None:
        """There must be room for so many things of so many bytes or more."""
        if count * each > self.size - self.content.tell():
            raise ValueError(f"it promises {count} parts and ends before them")

    def _bytes(self, count: int) -> bytes:
        self._room(count, 1)
        return self.content.read(count)
