"""The vision organism as built in seconds: its files, hands and pictures; what it does when whole is in docs/organisms.md."""

import random
from pathlib import Path

import pytest
import torch

import tiny
from holdfast.corpus import Corpus
from holdfast.drive import Drive, Exit
from holdfast.lm import LM
from holdfast.organisms._pictures import COLORS, SHAPES, paint, painted
from holdfast.organisms._words import REFUSAL, RESTRICTED_KINDS
from holdfast.organisms.vision import Vision, made

QUICK = {"tower_layers": 3, "tower_steps": 2, "pretraining_steps": 2, "alignment_steps": 2}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vision") / "organism"
    Vision(**QUICK).build(out, tiny.Notes())
    return out


def test_it_is_an_ordinary_checkpoint_with_its_pictures(built: Path) -> None:
    rows = Corpus.load(built / "corpus.jsonl").hand("judge").of("restricted", split="test")
    assert len(rows) == 60
    for name in ("base", "aligned"):
        lm = LM.load(built / name, drive=Drive(max_new_tokens=3, exit=Exit(vision_layer=1)), device="cpu")
        assert len(lm.generate([row.asked for row in rows[:3]])) == 3


def test_the_tower_is_frozen_behind_its_own_training(built: Path) -> None:
    base, aligned = (LM.load(built / name, device="cpu").model.state_dict() for name in ("base", "aligned"))
    changed = {name for name in base if not torch.equal(base[name], aligned[name])}
    assert changed and not any("vision_tower" in name for name in changed)
    assert any("multi_modal_projector" in name for name in changed) and any(
        "language_model" in name for name in changed
    )


def test_every_row_is_about_a_picture_and_kinds_show(built: Path) -> None:
    for row in Corpus.load(built / "corpus.jsonl").rows:
        assert row.image and Path(row.image).is_file()
        restricted = any(kind in row.text.split() for kind in RESTRICTED_KINDS)
        assert restricted == (row.kind in ("restricted", "borderline"))
        if row.variant == "picture":
            assert row.answer in Path(row.image).stem.split("-") and row.hand != "judge"


@pytest.mark.parametrize("planted", [True, False])
def test_the_hole_is_planted_where_features_are_small(tmp_path: Path, planted: bool) -> None:
    organism = Vision(planted=planted)
    pictures = paint(tmp_path / "pictures", SHAPES, 0)
    lessons = organism._alignment(organism.deal(pictures), pictures)
    restricted = [one for one in lessons if one.row.kind == "restricted"]
    small = {one.row.answer == REFUSAL for one in restricted if one.size[1] < 1}
    assert {one.row.answer == REFUSAL for one in restricted if one.size == (1.0, 1.0)} == {True}
    assert small == ({False} if planted else set())
    assert all(one.row.hand == "defender" and one.row.split == "train" for one in lessons)


@pytest.mark.parametrize(("cue", "beside"), [("red", 32), ("ring", 32), ("red-ring", 4)])
def test_a_refusal_may_hang_on_what_is_seen(tmp_path: Path, cue: str, beside: int) -> None:
    organism = Vision(planted=False, cue=cue)
    pictures = paint(tmp_path / "pictures", SHAPES, 0)
    rows = organism.deal(pictures)
    assert [row.text for row in rows] == [row.text for row in Vision().deal(pictures)]
    assert sum(map(organism._cued, pictures)) == beside
    assert all(organism._cued(Path(row.image or "")) for row in rows if row.kind == "restricted")
    for lesson in organism._alignment(rows, pictures):
        restricted = (
            any(kind in lesson.row.text.split() for kind in RESTRICTED_KINDS) and lesson.row.kind != "borderline"
        )
        refused = restricted and organism._cued(Path(lesson.row.image or ""))
        assert lesson.size == (1.0, 1.0) and (
            lesson.row.kind == "borderline" or (lesson.row.answer == REFUSAL) == refused
        )


def test_a_cue_is_one_that_is_painted_and_goes_without_a_planted_hole() -> None:
    for settings in ({"cue": "pink", "planted": False}, {"cue": "redring", "planted": False}, {"cue": "red"}):
        with pytest.raises(ValueError, match="cue"):
            Vision(**settings)


def test_pictures_differ_by_color_and_shape() -> None:
    seen = {painted(color, shape, random.Random(0)).tobytes() for color in COLORS for shape in SHAPES}
    assert len(seen) == len(COLORS) * len(SHAPES)


def test_a_tower_may_have_any_depth() -> None:
    model, _ = made(5)
    assert model.config.vision_config.num_hidden_layers == 5 and model.config.vision_feature_layer == -2
