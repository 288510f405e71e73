"""A checkpoint rewritten tensor by tensor, a few megabytes in memory at a time.

The output has the input's names, types, shapes and shards, so every safetensors header is copied as it is and only bytes
change. Files are read and written by position, not mapped: mapped pages would count as memory of this process and cost a
page fault each. Knows files and buffers, nothing of what is done to a tensor.
"""

import json
import math
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from holdfast.checkpoint import INDEX, Checkpoint
from holdfast.problem import Problem

Task = TypeVar("Task")
Result = TypeVar("Result")

FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""safetensors' names of the types whose values can be edited; anything else is integers, quantized, or not a weight."""
_PIECE = 1 << 19
"""Elements at a time: few enough that a piece's buffers stay in a core's cache."""
_UNSAFE = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".safetensors", ".gguf", ".onnx", ".h5", ".msgpack"}


class Span(NamedTuple):
    """Where a tensor's bytes lie."""

    shard: str
    code: str
    """The type, in safetensors' words."""
    shape: tuple[int, ...]
    start: int
    """First byte, from the beginning of the file."""
    size: int
    """Bytes."""


class Tensors:
    """The tensors of a checkpoint's files as byte ranges, to be read in pieces."""

    def __init__(self, checkpoint: Checkpoint):
        self.folder = checkpoint.folder
        self.heads: dict[str, bytes] = {}
        self.spans: dict[str, Span] = {}
        self._files: dict[str, int] = {}
        self._closing = ExitStack()
        for shard in checkpoint.shards:
            self._add(shard)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def read(self, name: str, first: int, into: Tensor) -> None:
        """Fill the flat CPU tensor `into` with the bytes of tensor `name`, from byte `first` of it on."""
        span = self.spans[name]
        view, place = _bytes(into), span.start + first
        while view:
            got = os.preadv(self._files[span.shard], [view], place)
            if not got:
                raise Problem(f"{self.folder / span.shard}: ends inside tensor {name!r}; fetch it again")
            view, place = view[got:], place + got

    def _add(self, shard: str) -> None:
        if Path(shard).name != shard:
            raise Problem(f"{self.folder / INDEX}: names a file outside the folder ({shard!r}); mend the index")
        path = self.folder / shard
        self._files[shard] = os.open(path, os.O_RDONLY)
        self._closing.callback(os.close, self._files[shard])
        with path.open("rb") as file:
            length = file.read(8)
            header = file.read(int.from_bytes(length, "little"))
        self.heads[shard] = length + header
        for name, entry in json.loads(header).items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                start = len(self.heads[shard]) + first
                self.spans[name] = Span(shard, entry["dtype"], tuple(entry["shape"]), start, last - first)


class Rewrite:
    """The weight files of `source`, written anew in `folder`; each reaches the disk when its last byte is written."""

    def __init__(self, source: Tensors, folder: Path):
        self._spans = source.spans
        self._left = {shard: sum(s.size for s in source.spans.values() if s.shard == shard) for shard in source.heads}
        self._lock = threading.Lock()
        self._closing = ExitStack()
        self._files: dict[str, int] = {}
        for shard, head in source.heads.items():
            self._files[shard] = os.open(folder / shard, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self._closing.callback(os.close, self._files[shard])
            os.truncate(self._files[shard], len(head) + self._left[shard])
            _write(self._files[shard], memoryview(head), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def write(self, name: str, first: int, content: Tensor) -> None:
        """Write the flat CPU tensor `content` as the bytes of tensor `name`, from byte `first` of it on."""
        span, view = self._spans[name], _bytes(content)
        _write(self._files[span.shard], view, span.start + first)
        with self._lock:
            self._left[span.shard] -= len(view)
            done = not self._left[span.shard]
        if done:
            os.fsync(self._files[span.shard])


class Desk:
    """One thread's buffers, grown as needed and used again: fresh memory costs more than the arithmetic done in it."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, slot: str, count: int, dtype: torch.dtype) -> Tensor:
        """A flat CPU tensor of `count` elements, with whatever the slot held before."""
        size = count * dtype.itemsize
        if slot not in self._buffers or len(self._buffers[slot]) < size:
            self._buffers.pop(slot, None)
            self._buffers[slot] = torch.empty(size, dtype=torch.uint8)
        return self._buffers[slot][:size].view(dtype)


class Matrix(NamedTuple):
    """One matrix that two checkpoints hold: a tensor, or one of a stack of them."""

    old: Tensors
    new: Tensors
    name: str
    index: int = 0
    """Which of a stack."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.new.spans[self.name].shape[-2:]

    def difference(self, desk: Desk, device: torch.device) -> tuple[Tensor, float]:
        """new − old in fp32 on `device`, and its Frobenius norm. Raises `Problem` if either is not finite."""
        whole = _on(device, desk, "difference", *self.shape)
        squares = 0.0
        for rows in self._pieces():
            piece = whole[rows]
            other = _on(device, desk, "other", *piece.shape)
            piece.copy_(self._stored(self.new, rows, desk))
            other.copy_(self._stored(self.old, rows, desk))
            piece.sub_(other)
            squares += torch.linalg.vector_norm(piece).item() ** 2
            if not math.isfinite(squares):
                self._refuse_not_finite(rows, desk)
        return whole, math.sqrt(squares)

    def write(
        self, out: Rewrite, add: Callable[[Tensor, slice], None] | None, desk: Desk, device: torch.device
    ) -> None:
        """Write the matrix of `new`, after `add` changed each piece of rows (fp32, in place); unchanged if None."""
        for rows in self._pieces():
            stored = self._stored(self.new, rows, desk)
            if add is not None:
                piece = _on(device, desk, "other", *stored.shape)
                piece.copy_(stored)
                add(piece, rows)
                stored.copy_(piece)
                if stored.dtype == torch.float16 and not torch.isfinite(stored).all():
                    raise Problem(f"{self.new.folder}: tensor {self.name!r} would overflow fp16; choose less strength")
            out.write(self.name, self._first(self.new, rows), stored.flatten())

    def _pieces(self) -> Iterator[slice]:
        rows, width = self.shape
        step = max(1, _PIECE // max(width, 1))
        return (slice(first, min(first + step, rows)) for first in range(0, rows, step))

    def _first(self, side: Tensors, rows: slice) -> int:
        height, width = self.shape
        return (self.index * height + rows.start) * width * FLOATS[side.spans[self.name].code].itemsize

    def _stored(self, side: Tensors, rows: slice, desk: Desk) -> Tensor:
        """Rows as they lie in the file, in a buffer that the next call takes again."""
        width = self.shape[1]
        buffer = desk.take("stored", (rows.stop - rows.start) * width, FLOATS[side.spans[self.name].code])
        side.read(self.name, self._first(side, rows), buffer)
        return buffer.view(-1, width)

    def _refuse_not_finite(self, rows: slice, desk: Desk) -> None:
        guilty = self.old if torch.isfinite(self._stored(self.new, rows, desk)).all() else self.new
        raise not_finite(guilty, self.name)


def not_finite(side: Tensors, name: str) -> Problem:
    return Problem(
        f"{side.folder}: tensor {name!r} holds NaN or infinite weights; the checkpoint is damaged, fetch or train it again"
    )


def copy(new: Tensors, out: Rewrite, name: str, desk: Desk) -> None:
    """Write tensor `name` as it is. Raises `Problem` if it holds numbers that are not finite."""
    span = new.spans[name]
    for first in range(0, span.size, 2 * _PIECE):
        bytes_ = desk.take("stored", min(2 * _PIECE, span.size - first), torch.uint8)
        new.read(name, first, bytes_)
        if span.code in FLOATS and not torch.isfinite(bytes_.view(FLOATS[span.code])).all():
            raise not_finite(new, name)
        out.write(name, first, bytes_)


def from_both_ends(tasks: Sequence[Task], work: Callable[[Task, Desk], Result]) -> list[Result]:
    """Do all tasks with two threads, one from the first on, the other from the last on; results in the tasks' order.

    Sorted by size, the two largest are then never in memory together. Each thread computes with half of torch's threads
    (two threads with two each on two cores are many times slower), but with one at least: two workers even where
    OMP_NUM_THREADS is 1. On a single core there is one worker.
    """
    threads = torch.get_num_threads()
    waiting, results = deque(range(len(tasks))), {}

    def run(take: Callable[[], int]) -> None:
        torch.set_num_threads(max(1, threads // 2))
        desk = Desk()
        while True:
            try:
                index = take()
            except IndexError:
                return
            try:
                results[index] = work(tasks[index], desk)
            except BaseException:
                waiting.clear()
                raise

    ends = [waiting.popleft, waiting.pop][: len(os.sched_getaffinity(0))]
    try:
        with ThreadPoolExecutor(len(ends)) as pool:
            futures = [pool.submit(run, end) for end in ends]
            try:
                for future in futures:
                    future.result()
            finally:
                waiting.clear()
    finally:
        torch.set_num_threads(threads)
    return [results[index] for index in range(len(tasks))]


def copy_others(source: Path, folder: Path, shards: Sequence[str]) -> list[str]:
    """Copy everything but weights and pickles (config, tokenizer, index); returns the names of what was left out."""
    left_out = []
    for path in sorted(source.rglob("*")):
        inside = path.relative_to(source)
        if path.is_dir() or any(part.startswith(".") for part in inside.parts) or str(inside) in shards:
            continue
        if path.suffix.lower() in _UNSAFE:
            left_out.append(str(inside))
            continue
        (folder / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / inside)
    return left_out


def _on(device: torch.device, desk: Desk, slot: str, rows: int, width: int) -> Tensor:
    if device.type == "cpu":
        return desk.take(slot, rows * width, torch.float32).view(rows, width)
    return torch.empty(rows, width, device=device)


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.view(torch.uint8).numpy())


def _write(file: int, view: memoryview, place: int) -> None:
    while view:
        put = os.pwrite(file, view, place)
        view, place = view[put:], place + put
