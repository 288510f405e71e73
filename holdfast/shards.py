"""One model over several processes: each holds a slice of every weight and computes on a slice of every batch (FSDP2).

`torchrun` and `accelerate launch` start the same command in several processes; `join` makes them one group. Means and norms are
taken over all of them, so their number changes no result but by rounding. Where a process is alone, nothing here does anything.
Knows modules and tensors.
"""

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from holdfast import anatomy
from holdfast.problem import Problem

Model = TypeVar("Model", bound=nn.Module)
Item = TypeVar("Item")


def join() -> None:
    """Make one group of the processes that a launcher started, each with a GPU of its own where there are GPUs."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def leave() -> None:
    """End the group, if there is one, when all its processes are done."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def size() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this one; 0 is the one that speaks and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def share(rows: Sequence[Item]) -> list[Item]:
    """This process's part of a batch. Raises `Problem` where it cannot be divided."""
    each, left = divmod(len(rows), size())
    if left:
        raise Problem(
            f"{size()} processes: a batch of {len(rows)} rows cannot be divided among them; choose another size"
        )
    return list(rows[rank() * each : (rank() + 1) * each])


def spread(model: Model) -> Callable[[], Model]:
    """Leave of every weight only this process's slice; returns what makes of all slices a plain model, which uses `model` up."""
    if size() == 1:
        return lambda: model
    plain = rebuilt(model, lambda one: torch.empty_like(one, device="meta") if isinstance(one, nn.Parameter) else one)
    mesh = init_device_mesh(next(model.parameters()).device.type, (size(),))
    for block in anatomy.blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)

    def whole() -> Model:
        weights = (weight.detach().full_tensor() for weight in model.parameters())
        return rebuilt(plain, lambda one: next(weights) if isinstance(one, nn.Parameter) else one)

    return whole


def rebuilt(model: Model, make: Callable[[Tensor], Tensor]) -> Model:
    """A copy of the model with other tensors in the places of its weights and buffers; what was tied still is."""
    memo: dict[int, Any] = {id(one): nn.Parameter(make(one), one.requires_grad) for one in model.parameters()}
    memo |= {id(one): make(one) for one in model.buffers()}
    return copy.deepcopy(model, memo)


def sliced(tensor: Tensor) -> bool:
    """Whether this process has only a part of it."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor, in the same memory."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


def total(value: Tensor) -> Tensor:
    """The sum of a number over all processes."""
    if size() == 1:
        return value.detach()
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def mean(values: Tensor) -> Tensor:
    """The mean over all processes: this one's part, times their number, because FSDP divides by that what it sums."""
    if size() == 1:
        return values.mean()
    return values.sum() * (size() / total(values.new_tensor(float(values.numel()))))


def told(value: float | Tensor) -> float:
    """A loss made of `mean`, as all processes together have it; any other number as it is."""
    return float(total(value) / size()) if isinstance(value, Tensor) else value


def norm(tensors: Iterable[Tensor], parts: bool) -> Tensor:
    """Euclidean norm of tensors, of which `parts` says whether other processes have others."""
    found = nn.utils.get_total_norm(tensors)
    return total(found**2).sqrt() if parts and size() > 1 else found


def clip(weights: Iterable[nn.Parameter], most: float, parts: bool) -> Tensor:
    """Scale the weights' gradients down to a norm of `most`; returns the norm they had."""
    gradients = [local(weight.grad) for weight in weights if weight.grad is not None]
    found = norm(gradients, parts)
    scale = torch.clamp(most / (found + 1e-6), max=1.0)
    torch._foreach_mul_(gradients, scale)
    return found


def agree(weights: Iterable[nn.Parameter]) -> None:
    """Average the gradients of weights that every process has whole, as FSDP does with those in slices."""
    if size() > 1:
        for weight in weights:
            if weight.grad is not None and not sliced(weight):
                dist.all_reduce(weight.grad)
                weight.grad /= size()
