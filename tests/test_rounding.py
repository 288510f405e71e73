"""A tensor in few bits, against numbers computed by hand."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.rounding import compensated, rounded

numbers = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=24)


@settings(deadline=None)
@given(numbers, st.integers(2, 16), st.booleans())
def test_a_rounded_value_is_within_half_a_step(values: list[float], bits: int, symmetric: bool) -> None:
    row = torch.tensor(values)
    step = row.abs().max() / (2 ** (bits - 1) - 1) if symmetric else (row.max() - row.min()) / (2**bits - 1)
    back = rounded(row, bits, symmetric=symmetric)
    assert ((back - row).abs() <= step * 0.5 + 1e-4).all() and len(back.unique()) <= 2**bits
    assert torch.allclose(rounded(back, bits, symmetric=symmetric), back, atol=1e-4), "what was rounded stays"
    assert torch.allclose(rounded(-row, bits, symmetric=symmetric), -back, atol=1e-4) or not symmetric


@settings(deadline=None)
@given(numbers)
def test_more_bits_are_nearer(values: list[float]) -> None:
    """Of every single value where the grids lie in one another: 1, 3, 15, 255 steps, and 1, 3 and 15 to either side of 0."""
    row = torch.tensor(values)
    for symmetric, widths in ((False, (1, 2, 4, 8, 16)), (True, (2, 3, 5, 9))):
        errors = [(rounded(row, bits, symmetric=symmetric) - row).abs() for bits in widths]
        assert all((fine <= coarse + 1e-4).all() for coarse, fine in pairwise(errors))


@given(st.floats(-100, 100, width=32), st.integers(1, 16), st.integers(1, 9))
def test_a_constant_row_is_exact(value: float, bits: int, size: int) -> None:
    assert torch.equal(rounded(torch.full((2, size), value), bits), torch.full((2, size), value))


def test_rounding_by_hand() -> None:
    row = torch.tensor([[0.0, 1.0, 2.2, 3.0, 10.0, 10.4, 10.6, 13.0]])
    assert torch.allclose(rounded(row, 2, group=4), torch.tensor([[0.0, 1, 2, 3, 10, 10, 11, 13]]))
    assert torch.allclose(rounded(row, 1), torch.tensor([[0.0, 0, 0, 0, 13, 13, 13, 13]]))
    assert torch.equal(rounded(row, 2, group=3), rounded(row, 2)), "three does not divide eight"
    signed = torch.tensor([[-6.0, 2.9, 3.1, 0.0, 6.0, -1.0]])
    assert torch.equal(rounded(signed, 2, symmetric=True), torch.tensor([[-6.0, 0, 6, 0, 6, 0]]))
    assert torch.equal(rounded(signed, 3, symmetric=True), torch.tensor([[-6.0, 2, 4, 0, 6, 0]]))


def test_compensating_beats_the_nearest_where_inputs_go_together() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(12, 32, generator=generator)
    inputs = torch.randn(200, 8, generator=generator) @ torch.randn(8, 32, generator=generator)
    inputs += 0.1 * torch.randn(200, 32, generator=generator)
    for group in (None, 8):
        for bits in (2, 3, 4):
            ways = (compensated(matrix, inputs.t() @ inputs, bits, group), rounded(matrix, bits, group))
            made_up, nearest = ((inputs @ (way - matrix).t()).norm() for way in ways)
            assert made_up < 0.7 * nearest
    unseen = torch.zeros(32, 32)
    for moment in (unseen, torch.eye(32)):
        assert torch.allclose(compensated(matrix, moment, 3, 8), rounded(matrix, 3, 8), atol=1e-6)
