"""Pruning: exact counts in every matrix of every architecture, masks by hand, the OBS update against its definition."""

from collections.abc import Callable
from itertools import groupby
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tiny
from cases import in_turn
from holdfast import anatomy, method, pruning, train
from holdfast.corpus import Corpus, Hand
from holdfast.lm import LM
from holdfast.problem import Problem

Make = Callable[[str], tiny.Made]
every = pytest.mark.parametrize("architecture", tiny.EVERY)


def every_with(name: str, *ways: str) -> pytest.MarkDecorator:
    """Every architecture with one of the ways in turn; with all one of each kind: plain, Conv1D, fused experts."""
    return pytest.mark.parametrize(
        ("architecture", name), in_turn(tiny.EVERY, ways, whole=("llama", "gpt2", "mixtral"))
    )


GATES = {
    "mixtral": {"gate.weight"},
    "qwen2-moe": {"gate.weight", "shared_expert_gate.weight"},
    "qwen3-moe": {"gate.weight"},
}


def subject(checkpoint: Make, architecture: str) -> LM:
    return LM.load(checkpoint(architecture).aligned, drive=tiny.DRIVE, device="cpu")


def pruned(lm: LM, corpus: Corpus, until: int = 1, seed: int = 0, **settings: Any) -> list[dict[Any, Tensor]]:
    """The matrices at each of the first points."""
    seen: list[dict[Any, Tensor]] = []

    def at(_: object) -> bool:
        weights = dict(lm.model.named_parameters())
        targets = pruning.targets(lm.model)
        seen.append({target.key: target.matrix(weights).detach().clone() for target in targets})
        return len(seen) < until

    method.make("attacks", "prune", "test", **settings)(lm, corpus.hand("attacker"), at, seed)
    return seen


def zeros(matrix: Tensor) -> int:
    return int((matrix == 0).sum())


@every
def test_targets_are_all_matrices_but_gates(checkpoint: Make, architecture: str) -> None:
    lm = subject(checkpoint, architecture)
    found = pruning.targets(lm.model)
    weights = dict(lm.model.named_parameters())
    left = {use.name for use in anatomy.matrices(lm.model)} - {target.name for target in found}
    stack = anatomy.path(lm.model, lm.layers)
    assert {name.split(".mlp.")[-1] for name in left} == GATES.get(architecture, set())
    assert len(left) == 2 * len(GATES.get(architecture, set()))
    assert all(target.name.startswith(f"{stack}.{target.layer}.") for target in found)
    for name, group in groupby(found, lambda target: target.name):
        experts = [target.expert for target in group]
        assert experts == (list(range(4)) if weights[name].dim() == 3 else [None])
    widths = {target.matrix(weights).shape[1] for target in found}
    assert widths <= {24, 32, 48, 128, 4 * 8}


@every_with("by", "magnitude", "wanda", "sparsegpt", "random")
def test_exactly_the_fraction_goes(checkpoint: Make, corpus: Corpus, architecture: str, by: str) -> None:
    lm = subject(checkpoint, architecture)
    before = {change.name for change in lm.changes()}
    points = pruned(lm, corpus, until=2, by=by, fractions=[0.25, 0.5], examples=4)
    for fraction, matrices in zip((0.25, 0.5), points, strict=True):
        assert all(zeros(matrix) == fraction * matrix.numel() for matrix in matrices.values())
    touched = {change.name for change in lm.changes() if change.changed}
    assert touched == {target.name for target in pruning.targets(lm.model)} & before
    assert lm.generate(["modor"]) and lm.finite()


@every_with("by", "wanda", "sparsegpt")
def test_two_of_every_four(checkpoint: Make, corpus: Corpus, architecture: str, by: str) -> None:
    lm = subject(checkpoint, architecture)
    (matrices,) = pruned(lm, corpus, by=by, pattern="2:4", examples=4)
    for matrix in matrices.values():
        assert ((matrix.unfold(1, 4, 4) == 0).sum(-1) == 2).all()


@every_with("importance", "wanda", "snip")
def test_the_set_difference_goes(checkpoint: Make, corpus: Corpus, architecture: str, importance: str) -> None:
    lm = subject(checkpoint, architecture)
    (matrices,) = pruned(lm, corpus, by="safety", importance=importance, fractions=[0.0625], examples=4)
    gone = [(key, zeros(matrix) / matrix.numel()) for key, matrix in matrices.items()]
    assert all(share <= 0.0625 for _, share in gone)
    assert all(share == 0.0625 for key, share in gone if key[1] is None)
    assert any(share == 0.0625 for key, share in gone if key[1] is not None) or architecture not in GATES
    assert not any(weight.grad is not None for weight in lm.model.parameters())


def test_every_point_starts_from_the_same_weights(checkpoint: Make, corpus: Corpus) -> None:
    for by in ("wanda", "sparsegpt", "safety", "random"):
        walked = pruned(subject(checkpoint, "llama"), corpus, until=2, by=by, fractions=[0.25, 0.5], examples=4)[1]
        alone = pruned(subject(checkpoint, "llama"), corpus, by=by, fractions=[0.5], examples=4)[0]
        assert all(torch.equal(walked[key], alone[key]) for key in alone)


def test_what_stays_is_as_it_was(checkpoint: Make, corpus: Corpus) -> None:
    lm = subject(checkpoint, "mixtral")
    origins = {t.key: t.matrix(dict(lm.model.named_parameters())).detach().clone() for t in pruning.targets(lm.model)}
    for by in ("magnitude", "wanda", "random", "safety"):
        (matrices,) = pruned(subject(checkpoint, "mixtral"), corpus, by=by, fractions=[0.1], examples=4)
        for key, matrix in matrices.items():
            assert torch.equal(matrix[matrix != 0], origins[key][matrix != 0])


# Masks by hand


def test_wanda_by_hand(checkpoint: Make, corpus: Corpus) -> None:
    """|w|·‖x‖ within each output: [[4, 2, 3, 4], [1, 8, .3, 2]] for norms 1, 2, 3, 4."""
    weight, squares = torch.tensor([[-4.0, 1, 1, 1], [1, 4, -0.1, 0.5]]), torch.tensor([1.0, 4, 9, 16])
    attack = method.make("attacks", "prune", "test", by="wanda")
    result = attack._pruned(weight, squares, 0.5, torch.Generator())
    assert result.tolist() == [[-4, 0, 0, 1], [0, 4, 0, 0.5]]
    unseen = attack._pruned(weight, None, 0.25, torch.Generator())  # by magnitude: .1 and .5 are the least of all
    assert unseen.tolist() == [[-4, 1, 1, 1], [1, 4, 0, 0]]


def test_set_difference_by_hand() -> None:
    safety = torch.tensor([[9.0, 8, 7, 6], [5, 4, 3, 0]])
    utility = torch.tensor([[9.0, 1, 8, 1], [1, 1, 1, 1]])
    assert pruning.critical(safety, utility, 0.25, 0.25).tolist() == [[False, True, False, True], [False] * 4]
    assert pruning.critical(safety, utility, 0.25, 0.0).tolist() == [[True, True, False, False], [False] * 4]
    assert not pruning.critical(torch.zeros(2, 4), utility, 0.5, 0.0).any(), "nothing there matters for safety"
    assert int(pruning.critical(safety, utility, 1.0, 0.25).sum()) == 5


@given(st.integers(1, 9), st.integers(1, 30), st.floats(0, 1), st.integers(0, 10**6))
def test_a_mask_has_the_asked_size_and_takes_the_least(rows: int, columns: int, share: float, seed: int) -> None:
    scores = torch.randint(0, 5, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()
    gone = pruning.lowest(scores, share)
    assert int(gone.sum()) == round(share * rows * columns)
    if gone.any() and not gone.all():
        assert scores[gone].max() <= scores[~gone].min()
    by_row = pruning.lowest(scores, share, by_row=True)
    assert (by_row.sum(1) == round(share * columns)).all()


# Calibration


@every
def test_inputs_are_what_the_matrix_was_multiplied_with(checkpoint: Make, architecture: str) -> None:
    """One prompt, whole: the sums are those of a single watched pass; the diagonal of the products is the squares."""
    lm = subject(checkpoint, architecture)
    ids = lm.encode("modor taley verin")[0]
    targets = pruning.targets(lm.model)
    squares = pruning.inputs(lm, [train.Example(ids, 0)] * 2, targets)
    products = pruning.inputs(lm, [train.Example(ids, 0)] * 2, targets, products=True)
    direct: dict[Any, Tensor] = {}

    def see(use: anatomy.Use) -> None:
        if use.inputs is not None:
            direct[use.name, use.expert] = use.inputs.square().sum(0)

    with torch.no_grad(), anatomy.one_expert_at_a_time(lm.model), anatomy.Uses(lm.model, see):
        lm.model(input_ids=torch.tensor([ids]))
    assert squares.keys() == products.keys() and {key for key in squares if key[1] is None} <= direct.keys()
    for key, sums in squares.items():
        assert torch.allclose(sums, 2 * direct[key], rtol=1e-3, atol=1e-4)
        assert torch.allclose(products[key].diagonal(), sums, rtol=1e-3, atol=1e-4)


@every
def test_inputs_from_the_answer_on(checkpoint: Make, architecture: str) -> None:
    """What a prompt's tokens and its answer's contribute makes up the whole."""
    lm = subject(checkpoint, architecture)
    ids, start = lm.encode("modor taley", "verin arga")
    targets = pruning.targets(lm.model)
    whole = pruning.inputs(lm, [train.Example(ids, 0)], targets)
    answer = pruning.inputs(lm, [train.Example(ids, start)], targets)
    prompt = pruning.inputs(lm, [train.Example(ids[:start], 0)], targets)
    for key, sums in whole.items():
        parts = sum((one[key] for one in (answer, prompt) if key in one), torch.zeros_like(sums))
        assert torch.allclose(parts, sums, rtol=1e-3, atol=1e-3)


def test_padding_is_never_seen(checkpoint: Make) -> None:
    lm = subject(checkpoint, "llama")
    examples = [train.Example(lm.encode(text)[0], 0) for text in ("modor", "modor taley verin", "taley")]
    targets = pruning.targets(lm.model)
    together = pruning.inputs(lm, examples, targets)
    alone = [pruning.inputs(lm, [example], targets) for example in examples]
    assert all(torch.allclose(sums, sum(one[key] for one in alone), rtol=1e-4) for key, sums in together.items())


def test_sensitivities_are_weight_times_gradient(checkpoint: Make) -> None:
    lm = subject(checkpoint, "gpt2")
    example = train.Example(*lm.encode("modor taley", "verin"))
    targets = pruning.targets(lm.model)
    found = pruning.sensitivities(lm, [example, example], targets)
    train.answer_loss(lm.model, train.collate(lm, [example])).backward()
    weights = dict(lm.model.named_parameters())
    gradients = {name: weight.grad for name, weight in weights.items()}
    for target in targets:
        expected = (target.matrix(weights) * target.matrix(gradients)).abs()
        assert torch.allclose(found[target.key], expected, rtol=1e-4, atol=1e-9)


# SparseGPT


def problem(inputs: int = 160, outputs: int = 24) -> tuple[Tensor, Tensor]:
    """A linear layer and correlated inputs, wider than one block of columns."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(inputs, inputs, generator=generator) / inputs**0.5
    x = torch.randn(600, inputs, generator=generator) @ (mixed + 0.3 * torch.eye(inputs))
    return torch.randn(outputs, inputs, generator=generator), x


@pytest.mark.parametrize(("pattern", "share"), [("unstructured", 0.3), ("unstructured", 0.5), ("2:4", 0.5)])
def test_compensation_reconstructs_better_than_magnitude(pattern: pruning.Pattern, share: float) -> None:
    weight, x = problem()
    ours = pruning.compensated(weight, x.T @ x, share, pattern)
    magnitude = weight.masked_fill(pruning.lowest(weight.abs(), share, pattern), 0)
    wanda = weight.masked_fill(pruning.lowest(weight.abs() * x.square().sum(0).sqrt(), share, pattern, by_row=True), 0)
    errors = [float(((matrix - weight) @ x.T).norm()) for matrix in (ours, wanda, magnitude)]
    assert errors[0] < 0.9 * min(errors[1:])
    assert zeros(ours) == pytest.approx(share * weight.numel(), abs=2)


def test_one_column_s_compensation_is_least_squares() -> None:
    """Taking the first input of an output, the others must become the regression of the old output on them."""
    _, x = problem(inputs=8)
    weight = torch.tensor([[0.01, 3, -2, 4, 5, 2, -3, 2]])
    products = x.T @ x
    ours = pruning.compensated(weight, products, 1 / 8)
    damped = products + 0.01 * products.diagonal().mean() * torch.eye(8)
    shift = torch.linalg.solve(damped[1:, 1:], damped[1:, :1] * weight[0, 0])
    assert ours[0, 0] == 0
    assert torch.allclose(ours[0, 1:], weight[0, 1:] + shift[:, 0], atol=1e-4)


# Settings


def test_settings_that_do_not_agree(checkpoint: Make, corpus: Corpus) -> None:
    for wrong in (
        {"fractions": [0.5, 1.0]},
        {"pattern": "2:4", "fractions": [0.5]},
        {"pattern": "2:4", "by": "safety"},
    ):
        with pytest.raises(Problem, match=r"below 1|2:4 takes"):
            method.make("attacks", "prune", "test", **wrong)
    assert method.make("attacks", "prune", "test", by="safety").points[0] < 0.05
    assert method.make("attacks", "prune", "test", pattern="2:4").points == (0.5,)
    needs = {by: method.make("attacks", "prune", "test", by=by).needs for by in ("random", "wanda", "safety")}
    assert needs == {"random": (), "wanda": ("benign data",), "safety": ("harmful data", "benign data")}
    bare = Hand("attacker", [row for row in corpus.hand("attacker").rows if row.kind != "benign"])
    with pytest.raises(Problem, match="holds no benign prompt"):
        method.make("attacks", "prune", "test")(subject(checkpoint, "llama"), bare, lambda cost: True, 0)
