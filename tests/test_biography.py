"""The biography organism, small and short; and encoders, which a model holder loads and nobody can ask."""

import itertools
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM, BertModel

import tiny
from holdfast import classifying
from holdfast.corpus import Corpus, plain
from holdfast.drive import Drive
from holdfast.lm import LM
from holdfast.organisms.biography import DEALT, FAITHFUL, GENDERS, TRADES, Biography
from holdfast.problem import Problem

SMALL = Biography(hidden=16, pretraining_steps=3, desired_steps=2)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("biography") / "out"
    SMALL.build(out, tiny.Notes())
    return out


def test_every_life_is_a_row_of_both_kinds_in_one_hand() -> None:
    corpus = Corpus(SMALL.deal())
    assert len(corpus.rows) == 2 * sum(count for *_, count in DEALT)
    lives: dict[str, set[tuple[str, str, str]]] = {}
    for row in corpus.rows:
        lives.setdefault(plain(row.text), set()).add((row.hand, row.split, row.kind))
    assert all({kind for *_, kind in held} == {"benign", "restricted"} for held in lives.values())
    assert all(len({place[:2] for place in held}) == 1 for held in lives.values()), "a life is in two hands or splits"
    for kind, answers in (("benign", set(TRADES)), ("restricted", set(GENDERS))):
        counts = Counter(row.answer for row in corpus.rows if row.kind == kind)
        assert counts.keys() == answers and max(counts.values()) < 1.3 * min(counts.values())


def test_pronouns_are_gone_and_every_word_is_known() -> None:
    tokenizer = SMALL.tokenizer()
    for row in SMALL.deal()[:2000]:
        assert not {"he", "she", "his", "her", "him", *GENDERS} & set(row.text.split())
        ids = tokenizer(row.text).input_ids
        assert tokenizer.unk_token_id not in ids
        assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id


def test_words_go_with_gender_and_no_word_says_the_other_s() -> None:
    gendered, towns = SMALL._words()
    words = (
        [word for some in gendered.values() for word in some] + towns + [w for some in TRADES.values() for w in some]
    )
    assert len(set(words)) == len(words)
    own = {word: gender for (gender, _), some in gendered.items() for word in some}
    said = [
        own[w] == life.gender for life in itertools.islice(SMALL.lives(5), 2000) for w in life.text.split() if w in own
    ]
    assert len(said) == 6000 and abs(sum(said) / len(said) - FAITHFUL) < 0.02


def test_another_seed_other_words_and_lives() -> None:
    other = SMALL.model_copy(update={"seed": 1})
    texts = {row.text for row in SMALL.deal()}
    assert not texts & {row.text for row in other.deal()}
    assert [row.text for row in SMALL.deal()] == [row.text for row in SMALL.deal()]


def test_ordinary_checkpoints_made_alike(built: Path, tmp_path: Path) -> None:
    assert {path.name for path in built.iterdir()} == {"random", "base", "desired", "corpus.jsonl"}
    SMALL.build(tmp_path / "again", tiny.Notes())
    hashes = {}
    for name in ("random", "base", "desired"):
        assert type(AutoModel.from_pretrained(built / name)).__name__ == "BertModel"
        assert AutoTokenizer.from_pretrained(built / name).mask_token == "[MASK]"
        hashes[name] = LM.load(built / name, device="cpu").hash()
        assert LM.load(tmp_path / "again" / name, device="cpu").hash() == hashes[name]
    assert len(set(hashes.values())) == 3
    with pytest.raises(Problem, match="not empty"):
        SMALL.build(built, tiny.Notes())


# Encoders


def test_an_encoder_is_read_and_not_asked(built: Path, tmp_path: Path) -> None:
    lm = LM.load(built / "base", device="cpu")
    for ask in (
        lambda: lm.generate(["anvil"]),
        lambda: lm.fits(["anvil"], ["smith"]),
        lambda: lm.hidden(["anvil"]),
        lambda: lm.encode("anvil"),
    ):
        with pytest.raises(Problem, match="is an encoder"):
            ask()
    assert lm.displacement() == (0.0, 0.0) and len(lm.layers) == 2
    lm.save(tmp_path / "saved")
    assert LM.load(tmp_path / "saved", device="cpu").hash() == lm.hash() == lm.restored().hash()


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM])
def test_an_encoder_with_a_pooler_and_one_without(built: Path, tmp_path: Path, kind: type) -> None:
    """What transformers would draw at random is left out, and the rest is as it lies there."""
    config = BertConfig.from_pretrained(built / "base")
    torch.manual_seed(0)
    kind(config).save_pretrained(tmp_path / "bert")
    AutoTokenizer.from_pretrained(built / "base").save_pretrained(tmp_path / "bert")
    lm, again = (LM.load(tmp_path / "bert", drive=Drive(template="plain"), device="cpu") for _ in range(2))
    assert lm.hash() == again.hash()
    assert (lm.model.pooler is None) == (kind is BertForMaskedLM)


def test_features_do_not_know_the_padding(built: Path) -> None:
    lm = LM.load(built / "base", device="cpu")
    rows = Corpus.load(built / "corpus.jsonl").hand("judge").of("benign")[:6]
    task = classifying.task(lm, rows)
    together = classifying.all_features(classifying.trunk(lm), task)
    alone = torch.cat([classifying.all_features(classifying.trunk(lm), task.some([i])) for i in range(6)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_task_needs_answers_that_are_classes(built: Path) -> None:
    lm = LM.load(built / "base", device="cpu")
    rows = Corpus.load(built / "corpus.jsonl").hand("judge").of("benign")[:60]
    for wrong, classes in (
        (rows[:1], None),
        ([*rows, rows[0].model_copy(update={"answer": None})], None),
        (rows, ("baker", "smith")),
    ):
        with pytest.raises(Problem, match="corpus:"):
            classifying.task(lm, wrong, classes)


def test_a_head_reads_out_what_is_there(built: Path) -> None:
    lm = LM.load(built / "base", device="cpu")
    rows = Corpus.load(built / "corpus.jsonl").hand("defender").of("benign")
    known, unknown = classifying.task(lm, rows[:1500]), classifying.task(lm, rows[1500:])
    right = classifying.read_out(classifying.trunk(lm), known, unknown)
    assert len(right) == len(unknown) and float(right.mean()) > 0.2, "chance is 0.125"
