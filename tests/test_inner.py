"""Rehearsed adversaries: drawn from their families, looked at where they stand, and undone bit for bit."""

import copy
import math
import random
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import tiny
from holdfast import inner, thrift, train
from holdfast.corpus import Corpus, Row
from holdfast.lm import LM
from holdfast.moved import settled

Make = Callable[[str], tiny.Made]


@pytest.fixture
def lm(checkpoint: Make) -> LM:
    return LM.load(checkpoint("llama").aligned, drive=tiny.DRIVE, device="cpu")


def weights(lm: LM) -> list[nn.Parameter]:
    return list(lm.model.parameters())


def copies(lm: LM) -> list[Tensor]:
    return [weight.detach().clone() for weight in weights(lm)]


def harmful(corpus: Corpus) -> list[Row]:
    return corpus.hand("defender").of("restricted", split="train")


def work(lm: LM, corpus: Corpus, steps: int) -> list[train.Batch]:
    return list(train.batches(lm, train.encode(lm, harmful(corpus)), 4, steps, 0))


# Drawing


def test_rates_are_log_uniform_over_their_range() -> None:
    family, chance = inner.Family(learning_rate=(1e-6, 1e-3)), random.Random(0)
    rates = [math.log10(family.draw(chance, 8).learning_rate) for _ in range(3000)]
    thirds = Counter(int(rate + 6) for rate in rates)
    assert set(thirds) == {0, 1, 2}
    assert all(900 < count < 1100 for count in thirds.values()), "each decade is as likely as another"


def test_families_are_drawn_by_their_shares() -> None:
    families = [inner.Family(share=3), inner.Family(optimizer="sgd", lora_rank=(4, 8))]
    drawn = [inner.drawn(families, random.Random(number), 5) for number in range(2000)]
    counts = Counter((one.optimizer, one.peft) for one in drawn)
    assert set(counts) == {("adamw", "full"), ("sgd", "lora")}
    assert 1400 < counts["adamw", "full"] < 1600
    assert {one.lora_rank for one in drawn} == {None, 4, 8}
    assert {one.steps for one in drawn} == {5}


def test_a_switch_is_drawn_as_published() -> None:
    drawn = [inner.Family(data="switch").draw(random.Random(number), 9).switch for number in range(2000)]
    assert sum(drawn) / len(drawn) == pytest.approx(2 / 3, abs=0.02), "the mean of Beta(6, 3)"


@pytest.mark.parametrize("rates", [(0.0, 1.0), (1e-3, 1e-4)])
def test_a_range_of_rates_rises_from_above_zero(rates: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="lowest rate"):
        inner.Family(learning_rate=rates)


# Attacking


def test_a_rehearsed_attack_is_the_attack(lm: LM, corpus: Corpus) -> None:
    """The rehearsal takes the very steps that the plain loop of an attack takes."""
    adversary = train.Adversary(learning_rate=1e-3, schedule="cosine", warmup=1, batch=4, steps=5)
    other = lm.restored()
    assert list(inner.attack(lm, adversary, work(lm, corpus, 5), 0)) == [0, 1, 2, 3, 4, 5]
    optimizer = train.make_optimizer(other.model.parameters(), "adamw", 1e-3)
    train.fit(other, work(other, corpus, 5), optimizer, train.make_schedule(optimizer, "cosine", 1, 5))
    assert all(torch.equal(one, two) for one, two in zip(weights(lm), weights(other), strict=True))


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 2}, {"optimizer": "sgd-momentum"}, {"data": "switch"}])
@pytest.mark.parametrize("apart", [False, True])
def test_weights_come_back_bit_for_bit(lm: LM, corpus: Corpus, settings: dict, apart: bool) -> None:
    before, model = copies(lm), lm.model
    outer = torch.optim.AdamW(weights(lm))
    outer.step()
    state = copy.deepcopy(outer.state_dict())
    with inner.kept(weights(lm), before if apart else None):
        adversary = train.Adversary(learning_rate=0.1, batch=4, steps=3, **settings)
        for _ in inner.attack(lm, adversary, work(lm, corpus, 3), 0):
            pass
        if "lora_rank" not in settings:
            assert not any(torch.equal(one, two) for one, two in zip(weights(lm)[1:3], before[1:3], strict=True))
    assert lm.model is model
    assert all(torch.equal(one, two) for one, two in zip(weights(lm), before, strict=True))
    assert all(weight.requires_grad and weight.grad is None for weight in weights(lm))
    assert str(outer.state_dict()) == str(state), "the outer optimizer noticed nothing"


def test_weights_come_back_where_the_attack_fails(lm: LM, corpus: Corpus) -> None:
    before = copies(lm)
    with pytest.raises(RuntimeError, match="in the middle"), inner.kept(weights(lm)):
        for taken in inner.attack(lm, train.Adversary(learning_rate=0.1, steps=3), work(lm, corpus, 3), 0):
            if taken == 2:
                raise RuntimeError("in the middle")
    assert all(torch.equal(one, two) for one, two in zip(weights(lm), before, strict=True))


def test_beneath_an_adapter_the_gradient_is_that_of_the_merged_model(lm: LM, corpus: Corpus) -> None:
    adversary = train.Adversary(learning_rate=0.05, lora_rank=2, batch=4, steps=3)
    held_out = work(lm, corpus, 1)[0]
    for taken in inner.attack(lm, adversary, work(lm, corpus, 3), 0):
        if taken == 3:
            train.answer_loss(lm.model, held_out).backward()
            merged = settled(copy.deepcopy(lm.model))
    merged.requires_grad_(True)
    merged.zero_grad()
    train.answer_loss(merged, held_out).backward()
    for ours, theirs in zip(weights(lm), merged.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_gradients_are_gathered_by_their_shares() -> None:
    """By hand: half of 2·1 and a quarter of 2·3, and the sum is given to whatever gradient is there."""
    weight = nn.Parameter(torch.tensor([1.0]))
    gathered = inner.Gathered(thrift.Masters([weight], thrift.Memory()))
    for value, share in ((1.0, 0.5), (3.0, 0.25)):
        weight.data.fill_(value)
        (weight**2).sum().backward()
        gathered.take(share)
        assert weight.grad is None
    assert gathered.norm() == pytest.approx(2.5)
    weight.grad = torch.tensor([1.0])
    gathered.give(2.0)
    assert float(weight.grad) == 6.0
    weight.grad = None
    gathered.give()
    assert float(weight.grad) == 0.0, "and the sum began anew"


def test_the_gradient_is_first_order_at_the_attacked_weights() -> None:
    """On L = (w − 3)², attacked by two steps of gradient descent on w² at rate 0.1: w goes 1 → 0.8 → 0.64."""
    weight = nn.Parameter(torch.tensor([1.0]))
    gathered = inner.Gathered(thrift.Masters([weight], thrift.Memory()))
    with inner.kept([weight]):
        for _ in range(2):
            weight.data -= 0.1 * 2 * weight.data
            ((weight - 3) ** 2).sum().backward()
            gathered.take(0.5)
    gathered.give()
    assert float(weight.detach()) == 1.0
    assert float(weight.grad) == pytest.approx((2 * (0.8 - 3) + 2 * (0.64 - 3)) / 2)
