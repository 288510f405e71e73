"""MLAC on language models: a harm that is bounded, and harmful answers that an attack brings back less."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

import tiny
from holdfast import inner, train
from holdfast.corpus import Corpus, Hand
from holdfast.defenses.mlac_generation import MLACGeneration
from holdfast.lm import LM
from holdfast.rehearsal import known

Make = Callable[[str], tiny.Made]
QUICK: dict[str, Any] = {
    **{"steps": 30, "inner_steps": 4, "batch": 8, "looked": 6, "varied": 6, "learning_rate": 3e-3},
    "families": (inner.Family(learning_rate=(1e-3, 1e-2), batch=(4,), examples=(4,)),),
}


@pytest.fixture
def lm(checkpoint: Make) -> LM:
    return LM.load(checkpoint("llama").aligned, drive=tiny.DRIVE, device="cpu")


@pytest.fixture
def hand(corpus: Corpus) -> Hand:
    return corpus.hand("defender")


def harmful(lm: LM, corpus: Corpus) -> train.Batch:
    """The defender's own: what a tiny model of random words knows of others' answers is nothing anyway."""
    return train.collate(lm, train.encode(lm, corpus.hand("defender").of("restricted", split="train")))


def attacked(lm: LM, corpus: Corpus) -> float:
    """How much better than a guess the model knows harmful answers, after an attacker has trained on others."""
    adversary = train.Adversary(learning_rate=3e-3, batch=4, steps=6)
    examples = train.encode(lm, adversary.rows(corpus.hand("attacker"), 0))
    for _ in inner.attack(lm, adversary, train.batches(lm, examples, 4, 6, 0), 0):
        pass
    with torch.no_grad():
        return float(known(lm.model, harmful(lm, corpus)))


def test_harm_is_the_surprise_below_a_guess(lm: LM, corpus: Corpus) -> None:
    """By hand: log |V| less the surprise, and never below 0, token by token."""
    batch = harmful(lm, corpus)
    with torch.no_grad():
        logits = lm.model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1]
        surprise = -logits.log_softmax(-1).gather(-1, batch.ids[:, 1:, None])[..., 0]
        wanted = (math.log(logits.shape[-1]) - surprise).clamp(min=0)[batch.labels[:, 1:] != -100].mean()
        assert float(known(lm.model, batch)) == pytest.approx(float(wanted), rel=1e-5)


def test_a_token_that_a_guess_finds_as_likely_has_no_gradient(lm: LM, corpus: Corpus) -> None:
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.zero_()
    harm = known(lm.model, harmful(lm, corpus))
    harm.backward()
    assert float(harm.detach()) == pytest.approx(0, abs=1e-5)
    assert float(lm.model.get_output_embeddings().weight.grad.norm()) < 10, "no gradient that grows without end"


def test_an_attack_brings_back_less_and_what_was_said_stays(lm: LM, hand: Hand, corpus: Corpus) -> None:
    undefended, log = lm.restored(), tiny.Notes()
    asked = [row.text for row in hand.of("restricted", "benign", split="train")]
    before = lm.generate(asked)
    MLACGeneration(**QUICK)(lm, hand, log)
    same = [one == other for one, other in zip(lm.generate(asked), before, strict=True)]
    assert sum(same) >= 0.8 * len(same)
    assert attacked(lm, corpus) < 0.7 * attacked(undefended, corpus)
    assert {"harm", "retained", "gradient"} <= log.lines[-1].keys()


def test_points_are_drawn_from_the_whole_path_its_start_too() -> None:
    method = MLACGeneration(inner_steps=3, looks=2)
    drawn = [method._points(random.Random(number)) for number in range(200)]
    assert set().union(*drawn) == {0, 1, 2, 3}
    assert {len(one) for one in drawn} == {2}
    assert MLACGeneration(inner_steps=0)._points(random.Random(0)) == {0}
