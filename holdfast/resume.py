"""Where a training that was interrupted goes on: weights and the optimizer's state, in one file that is whole or not there.

Whoever trains draws each step's chance from the step's own number, so that nothing else need be kept.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as packed
from torch import Tensor, nn

from holdfast import disk
from holdfast.problem import Problem

_TAKEN = "taken"


def save(path: Path, taken: int, weights: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Write what `taken` steps made of the weights, and the optimizer's state of each."""
    tensors = {_TAKEN: torch.tensor(taken)} | _parts(weights, optimizer)
    disk.write(path, packed({name: tensor.detach().contiguous() for name, tensor in tensors.items()}))


def load(path: Path, weights: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Put weights and state back as they were saved; returns how many steps that was, 0 where nothing was saved.

    Raises:
        Problem: the file is damaged, or of another model.
    """
    if not path.is_file():
        return 0
    try:
        saved = load_file(path)
        for number, weight in enumerate(weights):
            state = {name.split()[0]: tensor for name, tensor in saved.items() if name.endswith(f" {number}")}
            with torch.no_grad():
                weight.copy_(state.pop("weight"))
            optimizer.state[weight] = {
                key: value if value.dim() == 0 else value.to(weight.device) for key, value in state.items()
            }
        return int(saved[_TAKEN])
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise Problem(f"{path}: damaged, or of another model ({error}); delete it and begin again") from error


def _parts(weights: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    parts: dict[str, Tensor] = {}
    for number, weight in enumerate(weights):
        parts[f"weight {number}"] = weight
        parts |= {f"{key} {number}": value for key, value in optimizer.state[weight].items()}
    return parts
