"""Clipped policy gradients against numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, tensor

from holdfast import ppo

MASK = tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])


def test_numbers_of_answers_of_any_length_stand_in_rows() -> None:
    labels = tensor([[-100, -100, 5, 6, 7], [-100, 8, -100, -100, -100]])
    assert ppo.dense(tensor([1.0, 2.0, 3.0, 4.0]), labels).tolist() == [[1, 2, 3], [4, 0, 0]]
    assert ppo.said(labels).tolist() == MASK.tolist()


def test_advantages_by_hand() -> None:
    """γ and λ are ½: the last token is surprised by 3 − 2, the first by 1 + ½·2 − 1 and a quarter of what follows."""
    found = ppo.advantages(tensor([[1.0, 3.0]]), tensor([[1.0, 2.0]]), torch.ones(1, 2), 0.5, 0.5)
    assert found.tolist() == [[1.0 + 0.25 * 1.0, 1.0]]


numbers = st.lists(st.floats(-5, 5), min_size=1, max_size=6)


@given(numbers, st.data())
def test_looking_to_the_end_an_advantage_is_what_is_still_gained_less_the_value(
    gains: list[float], data: st.DataObject
) -> None:
    values = data.draw(st.lists(st.floats(-5, 5), min_size=len(gains), max_size=len(gains)))
    found = ppo.advantages(tensor([gains]), tensor([values]), torch.ones(1, len(gains)), 1.0, 1.0)
    expected = [sum(gains[token:]) - value for token, value in enumerate(values)]
    assert found[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_what_stands_behind_an_answer_counts_for_nothing() -> None:
    values, gains = torch.randn(2, 3), torch.randn(2, 3)
    odd = [one + 9 * (1 - MASK) for one in (gains, values)]
    usual = ppo.advantages(gains * MASK, values * MASK, MASK, 0.9, 0.8)
    assert torch.equal(ppo.advantages(*odd, MASK, 0.9, 0.8) * MASK, usual)
    assert not ppo.whitened(odd[0], MASK)[1, 1:].any()


def test_whitened_is_so_over_the_tokens_alone() -> None:
    found = ppo.whitened(tensor([[1.0, 2.0, 3.0], [6.0, 99.0, 99.0]]), MASK)
    assert float(ppo.mean(found, MASK)) == pytest.approx(0, abs=1e-6)
    assert float(ppo.mean(found**2, MASK)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "learns"),
    [
        (1.1, 1.0, -1.1, True),  # a good token, a little likelier
        (1.5, 1.0, -1.2, False),  # likelier than the clip allows: no more to gain
        (0.5, 1.0, -0.5, True),  # a good token that became unlikely is still drawn back
        (0.5, -1.0, 0.8, False),  # a bad one that is unlikely enough
        (1.5, -1.0, 1.5, True),  # a bad one that became likelier
    ],
)
def test_the_ratio_is_clipped_where_it_went_far_enough(
    ratio: float, advantage: float, loss: float, learns: bool
) -> None:
    logprobs = tensor([[math.log(ratio)]], requires_grad=True)
    found = ppo.policy_loss(logprobs, torch.zeros(1, 1), tensor([[advantage]]), 0.2)
    assert float(found.detach()) == pytest.approx(loss)
    found.sum().backward()
    gradient: Tensor = logprobs.grad if logprobs.grad is not None else torch.zeros(1)
    assert (float(gradient) != 0) == learns


def test_a_value_that_jumped_is_held_to_the_worse_of_two_errors() -> None:
    before, returns = torch.zeros(1, 1), tensor([[1.0]])
    assert float(ppo.value_loss(tensor([[0.1]]), before, returns, 0.2)) == pytest.approx(0.9**2 / 2)
    assert float(ppo.value_loss(tensor([[1.0]]), before, returns, 0.2)) == pytest.approx(0.8**2 / 2)
