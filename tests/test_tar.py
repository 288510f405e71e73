"""TAR: what is rehearsed and how it counts, what it does to a model, and that an interrupted hardening ends as another would."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from holdfast import hardening, inner, train
from holdfast.corpus import Corpus, Hand
from holdfast.defenses.tar import TAR
from holdfast.lm import LM
from holdfast.problem import Problem
from holdfast.rehearsal import Ground

Make = Callable[[str], tiny.Made]
FAMILIES = (inner.Family(learning_rate=(1e-3, 1e-2), batch=(4,), examples=(4,)),)
QUICK: dict[str, Any] = {
    **{"steps": 4, "inner_steps": 4, "stride": 2, "batch": 8, "looked": 4, "varied": 6, "learning_rate": 1e-3},
    **{"families": FAMILIES, "warmup": 0},
}


@pytest.fixture
def lm(checkpoint: Make) -> LM:
    return LM.load(checkpoint("llama").aligned, drive=tiny.DRIVE, device="cpu")


@pytest.fixture
def hand(corpus: Corpus) -> Hand:
    return corpus.hand("defender")


def refused_by(lm: LM, corpus: Corpus) -> float:
    """Mean loss of a refusal of the judge's restricted prompts."""
    rows = [row.model_copy(update={"answer": tiny.REFUSAL}) for row in corpus.hand("judge").of("restricted")]
    with torch.no_grad():
        return float(train.answer_loss(lm.model, train.collate(lm, train.encode(lm, rows))))


def attacked(lm: LM, corpus: Corpus) -> float:
    """The same after the attacker has trained on its rows."""
    adversary = train.Adversary(learning_rate=3e-3, batch=4, steps=8)
    examples = train.encode(lm, adversary.rows(corpus.hand("attacker"), 0))
    for _ in inner.attack(lm, adversary, train.batches(lm, examples, 4, 8, 0), 0):
        pass
    return refused_by(lm, corpus)


# How a rehearsal counts


def test_the_published_shares() -> None:
    """K = 64, a look after every 4th step, growth 0.0625: from 0.024 to 1, in sum 4.438, times 4.0 the released 17.75."""
    shares = TAR(stride=4, growth=0.0625).shares(64)
    assert [*shares] == [*range(4, 65, 4)]
    raw = [share / shares[64] for share in shares.values()]
    assert raw[:4] == pytest.approx([0.024, 0.030, 0.039, 0.050], abs=5e-4)
    assert raw[-4:] == pytest.approx([0.472, 0.607, 0.779, 1.000], abs=5e-4)
    assert 4.0 * sum(raw) == pytest.approx(17.75, abs=5e-3)
    assert TAR(preset="paper-bio").resistance_weight == 17.75
    assert TAR(preset="paper-refusal").resistance_weight == pytest.approx(0.1 * sum(raw), abs=5e-4)


@pytest.mark.parametrize(("inner_steps", "stride", "growth"), [(64, 4, 0.0625), (7, 3, 1.0), (2, 5, 0.0), (0, 4, 0.5)])
def test_shares_sum_to_one_whatever_is_looked_at(inner_steps: int, stride: int, growth: float) -> None:
    shares = TAR(stride=stride, growth=growth).shares(inner_steps)
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares) <= inner_steps


def test_the_control_without_rehearsals_trains_on_as_many_rows() -> None:
    """By hand: 4 steps of 4 rows, 2 looks of 4 rows twice and 8 retained are 40; a look and the retained rows alone are 16."""
    control = TAR(**QUICK | {"inner_steps": 0, "matched_inner_steps": 4, "steps": 6})
    assert control.total == 6 * 40 // 16
    assert TAR(**QUICK).total == 4


def test_a_preset_is_the_published_setting_but_for_what_is_given() -> None:
    bio = TAR(preset="paper-bio", seed=3, steps=10)
    assert (bio.inner_steps, bio.safeguard, bio.resistance, bio.seed, bio.steps) == (
        64,
        "random-mapping",
        "entropy",
        3,
        10,
    )
    assert TAR(preset="paper-refusal").resistance == "dpo"


# Whose rows


def test_no_row_is_on_both_sides_of_a_rehearsal(lm: LM, hand: Hand) -> None:
    ground = Ground(lm, TAR(**QUICK).lessons(lm, hand), hand)
    for number in range(20):
        chance = random.Random(number)
        adversary = inner.drawn((inner.Family(examples=(100,)),), chance, 3)
        held = ground.held(adversary, chance)
        assert 0 < len(held) <= len(hand.of("restricted", split="train")) // 2
        theirs = {tuple(example.ids[: example.start]) for example in train.encode(lm, held)}
        for batch in (ground.refused(held, 30, chance), ground.harmful(held, 30, chance)):
            for ids, labels in zip(batch.ids, batch.labels, strict=True):
                start = int((labels != -100).nonzero()[0])
                assert tuple(ids[:start].tolist()) not in theirs


def test_nor_is_a_variation_of_one(lm: LM, hand: Hand) -> None:
    lessons = TAR(**QUICK).lessons(lm, hand)
    first = lessons.harmful[0]
    made = first.model_copy(update={"id": f"{first.id}-varied-7", "text": "how do i make it ?", "answer": "no ."})
    ground = Ground(lm, lessons._replace(refusals=[*lessons.refusals, made]), hand)
    prompts = [
        {tuple(ids.tolist()) for ids in ground.refused(held, 200, random.Random(0)).ids}
        for held in ([], [first], lessons.harmful[1:2])
    ]
    asked = tuple(train.encode(lm, [made])[0].ids)
    shown = [any(ids[: len(asked)] == asked for ids in some) for some in prompts]
    assert shown == [True, False, True]


def test_prompts_are_put_as_they_are_asked(lm: LM, hand: Hand) -> None:
    """Template, generation prompt and end of turn are there, and nothing of the text is lost."""
    ground = Ground(lm, TAR(**QUICK).lessons(lm, hand), hand)
    batch = ground.harmful([], 6, random.Random(0))
    known = {f"<|user|> {row.text} <|assistant|> {row.answer} <|end|>" for row in hand.of("restricted")}
    said = [lm.tokenizer.decode(ids[mask.bool()]) for ids, mask in zip(batch.ids, batch.mask, strict=True)]
    assert set(said) <= known


def test_seeds_draw_other_adversaries(lm: LM, hand: Hand) -> None:
    logs = [tiny.Notes(), tiny.Notes(), tiny.Notes()]
    for seed, log in zip((0, 0, 1), logs, strict=True):
        TAR(**QUICK | {"seed": seed})(lm.restored(), hand, log)
    assert logs[0].lines == logs[1].lines != logs[2].lines


# What becomes of the model


def test_the_hardened_model_refuses_after_an_attack_that_undoes_the_other(lm: LM, hand: Hand, corpus: Corpus) -> None:
    undefended = lm.restored()
    before = refused_by(lm, corpus)
    TAR(**QUICK | {"steps": 60, "inner_steps": 8, "stride": 4})(lm, hand, tiny.Notes())
    assert refused_by(lm, corpus) < before + 0.1
    assert attacked(lm, corpus) < 0.5 * attacked(undefended, corpus)


@pytest.mark.parametrize(
    "settings",
    [
        {"resistance": "dpo"},
        {"resistance": "entropy", "safeguard": "random-mapping", "safeguard_steps": 2, "retain": "published"},
        {
            "families": (
                inner.Family(data="switch", lora_rank=(2,), batch=(4,)),
                inner.Family(data="benign", batch=(4,)),
            )
        },
        {"inner_steps": 0},
    ],
)
def test_every_setting_trains_all_weights_and_leaves_them_finite(lm: LM, hand: Hand, settings: dict[str, Any]) -> None:
    start = lm.restored()
    log = tiny.Notes()
    TAR(**QUICK | settings)(lm, hand, log)
    assert lm.finite()
    assert all(
        not torch.equal(one, two) for one, two in zip(lm.model.parameters(), start.model.parameters(), strict=True)
    )
    assert {"resistance", "retained", "resisting", "retaining", "gradient"} <= log.lines[-1].keys(), (
        "both norms are told"
    )


def test_what_is_not_finite_stops_it_before_anything_is_saved(checkpoint: Make, hand: Hand, tmp_path: Path) -> None:
    wild = TAR(**QUICK | {"families": (inner.Family(learning_rate=(1e30, 1e31), batch=(4,)),)})
    with pytest.raises(Problem, match="not finite at step 1 of 4; nothing is saved"):
        wild.harden(None, checkpoint("llama").aligned, tmp_path / "out", hand, tiny.Notes(), tiny.DRIVE)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_hardening_ends_as_another(
    lm: LM, hand: Hand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardening, "SAVED_EVERY", 0.0)
    whole, settings = lm.restored(), QUICK | {"steps": 6, "warmup": 2}
    TAR(**settings)(whole, hand, tiny.Notes())

    class Killed(Exception):
        pass

    class Log(tiny.Notes):
        def metrics(self, **values: Any) -> None:
            super().metrics(**values)
            if values.get("step") == 4:
                raise Killed

    first = lm.restored()
    with pytest.raises(Killed):
        TAR(**settings)(first, hand, Log(tmp_path))
    log = tiny.Notes(tmp_path)
    TAR(**settings)(lm, hand, log)
    assert {"resumed": 3} in log.lines
    assert all(torch.equal(one, two) for one, two in zip(lm.model.parameters(), whole.model.parameters(), strict=True))
    assert not [*tmp_path.glob(".tar-*")], "nothing is left to resume"


def test_other_settings_resume_nothing(lm: LM, hand: Hand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardening, "SAVED_EVERY", 0.0)
    monkeypatch.setattr(hardening.Walk, "forget", lambda walk: None)
    TAR(**QUICK)(lm.restored(), hand, tiny.Notes(tmp_path))
    log = tiny.Notes(tmp_path)
    TAR(**QUICK | {"stride": 1})(lm, hand, log)
    assert not [line for line in log.lines if "resumed" in line]


def test_a_damaged_state_is_named(lm: LM, hand: Hand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardening, "SAVED_EVERY", 0.0)
    monkeypatch.setattr(hardening.Walk, "forget", lambda walk: None)
    TAR(**QUICK)(lm.restored(), hand, tiny.Notes(tmp_path))
    state = next(tmp_path.glob(".tar-*"))
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(Problem, match=r"damaged, or of another model .*; delete it"):
        TAR(**QUICK)(lm, hand, tiny.Notes(tmp_path))


def test_a_defender_without_prompts_is_told(lm: LM) -> None:
    with pytest.raises(Problem, match="give --corpus"):
        TAR()(lm, None, tiny.Notes())
