"""Training steps as functions, so that a gradient can pass through a whole fine-tuning: parameters in, parameters out.

Nothing is changed in place. `exact` keeps the graph of every step (second order); `first` takes each step's gradient for a
number, which leaves the mean of the gradients along the path. Knows no model: parameters are named tensors.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

Parameters = dict[str, Tensor]
Order = Literal["first", "exact"]
Batch = TypeVar("Batch")
GUARD = 1e-20
"""Under Adam's root, whose slope at 0 is infinite."""


class Optimizer(Protocol):
    """One step at a time, of all parameters in one vector; whatever it remembers between steps is its own."""

    def __call__(self, place: Tensor, slope: Tensor, rate: Tensor) -> Tensor: ...


class SGD:
    """Plain descent, with momentum if asked."""

    def __init__(self, momentum: float = 0.0):
        self.momentum = momentum
        self._speed: Tensor | None = None

    def __call__(self, place: Tensor, slope: Tensor, rate: Tensor) -> Tensor:
        self._speed = slope if self._speed is None else self.momentum * self._speed + slope
        return place - rate * self._speed


class Adam:
    """As torch.optim.Adam. Its first step is nearly the gradient's sign, whose derivative spikes where the gradient is as small
    as `eps`."""

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self.betas, self.eps, self._steps = betas, eps, 0
        self._mean: Tensor | float = 0.0
        self._square: Tensor | float = 0.0

    def __call__(self, place: Tensor, slope: Tensor, rate: Tensor) -> Tensor:
        one, two = self.betas
        self._steps += 1
        self._mean = one * self._mean + (1 - one) * slope
        self._square = two * self._square + (1 - two) * slope**2
        mean = self._mean / (1 - one**self._steps)
        root = (self._square + GUARD).sqrt() / math.sqrt(1 - two**self._steps)
        return place - rate * mean / (root + self.eps)


def clipped(slope: Tensor, most: float) -> Tensor:
    """The slope, scaled down where its norm is above `most`; the norm itself is taken for a number."""
    return slope * torch.clamp(most / (slope.detach().norm() + GUARD), max=1.0)


def walk(
    start: Parameters,
    loss: Callable[[Parameters, Batch], Tensor],
    batches: Iterable[Batch],
    optimizer: Optimizer,
    rate: Tensor,
    order: Order,
    clip: float,
    frozen: frozenset[str] = frozenset(),
) -> Iterator[Parameters]:
    """The parameters at the start and after each step down the `loss`; `frozen` ones stay.

    With `first` each comes as leaves of its own, so that no more than one step's graph is held.
    """
    exact = order == "exact"
    parameters = start if exact else _leaves(start)
    moving = {name: value for name, value in parameters.items() if name not in frozen}
    place = _vector(moving.values())
    yield parameters
    for batch in batches:
        slopes = torch.autograd.grad(loss(parameters, batch), [parameters[name] for name in moving], create_graph=exact)
        with torch.set_grad_enabled(exact):
            place = optimizer(place, clipped(_vector(slopes), clip), rate)
        moved = _parted(place, moving)
        parameters = parameters | (moved if exact else _leaves(moved))
        yield parameters


def _vector(values: Iterable[Tensor]) -> Tensor:
    """All in one: a step is then a handful of operations, however many tensors a model has."""
    return torch.cat([value.flatten() for value in values])


def _parted(vector: Tensor, like: Parameters) -> Parameters:
    parts = vector.split([value.numel() for value in like.values()])
    return {name: part.view_as(value) for (name, value), part in zip(like.items(), parts, strict=True)}


def _leaves(parameters: Parameters) -> Parameters:
    return {name: value.detach().requires_grad_() for name, value in parameters.items()}


class Slopes(NamedTuple):
    """Two losses, each the mean along a path, and how they change with where the path began and how fast it went."""

    harm: float
    raw: float
    defender: Parameters
    """Of `harm`, by every parameter at the start."""
    adversary: Parameters
    """Of `raw`, by the parameters at the start that are the adversary's."""
    rate: Tensor
    """Of `raw`, by the logarithm of the rate; 0 where no step was made."""


def slopes(
    start: Parameters,
    path: Iterable[Parameters],
    look: Callable[[Parameters], tuple[Tensor, Tensor]],
    log_rate: Tensor,
    own: frozenset[str],
    order: Order,
) -> Slopes:
    """Walk the path, and `look` at each of its points: harm and raw loss there. `own` names the adversary's parameters."""
    return (_exact if order == "exact" else _first)(start, path, look, log_rate, own)


def _exact(
    start: Parameters,
    path: Iterable[Parameters],
    look: Callable[[Parameters], tuple[Tensor, Tensor]],
    log_rate: Tensor,
    own: frozenset[str],
) -> Slopes:
    harms, raws = zip(*[look(parameters) for parameters in path], strict=True)
    harm = torch.stack(harms).mean()
    raw = torch.stack(raws).mean() + 0 * log_rate  # so that it has a slope, 0, by the rate of a path without a step
    theirs = [name for name in start if name not in own]
    defender = torch.autograd.grad(harm, [start[name] for name in theirs], retain_graph=True)
    *adversary, rate = torch.autograd.grad(raw, [*(start[name] for name in own), log_rate])
    return Slopes(
        harm.item(),
        raw.item(),
        dict(zip(theirs, defender, strict=True)),
        dict(zip(own, adversary, strict=True)),
        rate,
    )


def _first(
    start: Parameters,
    path: Iterable[Parameters],
    look: Callable[[Parameters], tuple[Tensor, Tensor]],
    log_rate: Tensor,
    own: frozenset[str],
) -> Slopes:
    """As it walks: one point's graph is gone before the next step, so that memory does not grow with the steps."""
    theirs = {name: value for name, value in start.items() if name not in own}
    begin = _vector(start.values()).detach()
    defender, adversary = torch.zeros_like(_vector(theirs.values())), torch.zeros_like(begin)
    harms = raws = points = 0.0
    rate = torch.zeros_like(log_rate)
    for parameters in path:
        harm, raw = look(parameters)
        down = torch.autograd.grad(raw, list(parameters.values()), retain_graph=harm is not raw)
        up = [slope for name, slope in zip(parameters, down, strict=True) if name not in own]
        if harm is not raw:
            up = torch.autograd.grad(harm, [parameters[name] for name in theirs])
        defender += _vector(up)
        adversary += _vector(down)
        # Where gradients are numbers, all of the way from the start is proportional to the rate.
        rate += _vector(down) @ (_vector(parameters.values()).detach() - begin)
        harms, raws, points = harms + harm.item(), raws + raw.item(), points + 1
    mine = {name: slope for name, slope in _parted(adversary / points, start).items() if name in own}
    return Slopes(harms / points, raws / points, _parted(defender / points, theirs), mine, rate / points)
