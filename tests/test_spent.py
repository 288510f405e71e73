"""What models compute, counted: by hand, wherever the model came from, and on from where a killed one stood."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tiny
from holdfast import finetuning, spent
from holdfast.lm import LM

IDS = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 8], [0, 0, 9, 8]])
ASKED = {"input_ids": IDS, "attention_mask": (IDS > 0).long()}
TOKENS = 10


@pytest.fixture
def lm(checkpoint: Callable[[str], tiny.Made]) -> LM:
    return LM.load(checkpoint("llama").aligned, drive=tiny.DRIVE, device="cpu")


def test_a_step_is_six_operations_a_weight_and_token_and_a_look_is_two(lm: LM) -> None:
    weights = sum(weight.numel() for weight in lm.model.parameters())
    with spent.counted() as count:
        lm.model(**ASKED)
        assert count.cost.model_copy(update={"seconds": 0}) == spent.Cost(
            examples=3, tokens=TOKENS, flops=6.0 * weights * TOKENS
        )
        with torch.no_grad():
            copy.deepcopy(lm.model)(**ASKED)  # as a reference is
        assert (count.cost.tokens, count.cost.flops) == (TOKENS, 8.0 * weights * TOKENS)
    lm.model(**ASKED)
    assert count.cost.examples == 3


def test_what_does_not_learn_costs_less(lm: LM) -> None:
    """An adapter's gradients pass through all activations, and count for its own weights only."""
    finetuning.adapt(lm, "lora", 2, 0)
    sizes = [(weight.numel(), weight.requires_grad) for weight in lm.model.parameters()]
    whole, learns = sum(size for size, _ in sizes), sum(size for size, learned in sizes if learned)
    with spent.counted() as count:
        lm.model(**ASKED)
    assert count.cost.flops == (4.0 * whole + 2.0 * learns) * TOKENS and count.cost.examples == 3


def test_answers_are_operations_and_no_training(lm: LM) -> None:
    with spent.counted() as count:
        lm.generate(["modor tarin"])
    assert count.cost.flops > 0 and (count.cost.examples, count.cost.tokens) == (0, 0)


def test_a_pass_that_fails_leaves_the_count_right(lm: LM) -> None:
    with spent.counted() as count:
        with pytest.raises(IndexError):
            lm.model(input_ids=torch.tensor([[10_000]]))
        before = count.cost.examples
        lm.model(**ASKED)
        assert count.cost.examples == before + 3


def test_a_count_goes_on_after_a_kill(lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spent, "SAVED_EVERY", 0.0)
    for tries in (1, 2):
        with spent.counted(tmp_path / "count.json") as count:
            lm.model(**ASKED)
        assert (count.cost.examples, count.cost.tokens) == (3 * tries, TOKENS * tries)
