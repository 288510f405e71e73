"""Rows that have ended leave their batch: the same answers, in less work."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model

import tiny
from holdfast import answering
from holdfast.answering import Decoding
from holdfast.drive import Exit
from holdfast.lm import LM

Make = Callable[[str], tiny.Made]
TEXTS = [" ".join(tiny.WORDS[i : i + 1 + i % 9]) for i in range(30)]
ENOUGH = 20
every = pytest.mark.parametrize("architecture", tiny.EVERY)


def load(folder: Path, **drive: object) -> LM:
    """Asked for long answers, of which most end early: what every third of them says third ends an answer."""
    lm = LM.load(folder, drive=tiny.DRIVE.change(max_new_tokens=ENOUGH, **drive), device="cpu")
    ends_early(lm)
    return lm


def ends_early(lm: LM) -> None:
    tokens = answering.answers(lm.model, prompts(lm), replace(lm.decoding(), most=8))
    lm.model.generation_config.eos_token_id = sorted({said[len(said) // 2] for said in tokens[::2]})


def prompts(lm: LM) -> list[list[int]]:
    return [lm.encode(text)[0] for text in TEXTS]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Rows of every batch that a model was made to go on with."""
    seen: list[int] = []
    real = answering._left

    def left(cache: Any, rows: torch.Tensor) -> dict[str, Any]:
        seen.append(len(rows))
        return real(cache, rows)

    monkeypatch.setattr(answering, "_left", left)
    yield seen


def together(lm: LM, monkeypatch: pytest.MonkeyPatch, **how: Any) -> list[str]:
    """What the same model says where nobody leaves."""
    with monkeypatch.context() as patch:
        patch.setattr(answering, "LEAVING", len(TEXTS) + 1)
        return lm.generate(TEXTS, **how)


@every
@pytest.mark.parametrize("exit", [Exit(), Exit(kv_bits=4), Exit(depth=1)], ids=["whole", "few bits", "early"])
def test_the_same_answers_when_rows_leave(
    checkpoint: Make, architecture: str, exit: Exit, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = load(checkpoint(architecture).base, exit=exit)
    expected = together(lm, monkeypatch)
    assert not batches
    assert lm.generate(TEXTS) == expected
    assert batches and all(rows < len(TEXTS) for rows in batches), "somebody left"
    assert len(set(expected)) > 4


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3", "mistral"])
def test_a_window_that_slides_goes_on_sliding(
    checkpoint: Make, architecture: str, tmp_path: Path, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = tiny.reconfigured(checkpoint(architecture).base, tmp_path / "narrow", sliding_window=6)
    lm = load(narrow)
    expected = together(lm, monkeypatch)
    assert lm.generate(TEXTS) == expected and batches
    assert expected == [lm.generate([text])[0] for text in TEXTS]


def test_a_cache_of_another_kind_is_computed_anew(
    checkpoint: Make, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = load(checkpoint("llama").base)
    expected = together(lm, monkeypatch)
    monkeypatch.setattr(answering, "DynamicLayer", int)
    assert lm.generate(TEXTS) == expected and batches


def test_adapters_and_virtual_tokens(checkpoint: Make, batches: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    lm = load(checkpoint("llama").base)
    torch.manual_seed(0)
    lm.model = get_peft_model(lm.model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    ends_early(lm)
    expected = together(lm, monkeypatch)
    assert lm.generate(TEXTS) == expected and batches
    batches.clear()
    lm = load(checkpoint("llama").base)
    lm.model = get_peft_model(lm.model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    ends_early(lm)
    assert lm.generate(TEXTS) == together(lm, monkeypatch) and not batches, "nobody leaves behind virtual tokens"


@pytest.mark.parametrize("drive", [{"cache": False}, {"temperature": 1.5, "top_p": 0.9}])
def test_nobody_leaves_where_answers_would_change(
    checkpoint: Make, drive: dict[str, Any], batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws hang on the batch's size; without a cache, hooks take a smaller batch for another text."""
    lm = load(checkpoint("llama").base, **drive)
    assert lm.generate(TEXTS, armed=True) == together(lm, monkeypatch, armed=True) and not batches


def test_hooks_know_prompts_from_answers_though_rows_leave(
    checkpoint: Make, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is added to prompts alone stays there: a batch begun again shows one token a row, as it did before."""
    lm = load(checkpoint("llama").base)
    push = torch.randn(32, generator=torch.Generator().manual_seed(0))

    def hook(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        return (args[0] + push, *args[1:]) if lm.armed and args[0].shape[1] > 1 else None

    lm.layers[0].register_forward_pre_hook(hook)
    ends_early(lm)
    expected = together(lm, monkeypatch, armed=True)
    assert lm.generate(TEXTS, armed=True) == expected != lm.generate(TEXTS) and batches


def test_an_answer_ends_with_its_end_or_is_as_long_as_it_may_be(checkpoint: Make) -> None:
    lm = load(checkpoint("llama").base)
    how = lm.decoding()
    for said in answering.answers(lm.model, prompts(lm), how):
        end = next((place for place, token in enumerate(said) if token in how.ends), None)
        assert len(said) == ENOUGH if end is None else all(token == how.pad for token in said[end + 1 :])


def test_padding_and_order() -> None:
    ids, mask = answering.left_padded([[5, 6, 7], [8]], 0, torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert answering.by_length([[1, 1], [1], [1, 1], []]) == [3, 1, 0, 2]
    assert list(answering.chunks([3, 1, 0, 2], 3)) == [[3, 1, 0], [2]]
    assert answering.answers(torch.nn.Linear(1, 1), [], Decoding(most=1, pad=0, ends=(1,))) == []


def test_ids_are_remembered_for_what_they_depend_on(checkpoint: Make) -> None:
    lm = load(checkpoint("qwen2").base)

    def asked() -> list[int]:
        ids = lm.encode("modor")[0]
        assert ids == lm.drive.ids(lm.tokenizer, "modor")
        return ids

    found = [asked()]
    lm.encode("modor")[0].append(7)
    assert asked() == found[0], "nobody writes into them"
    lm.drive = lm.drive.change(trigger="taley {prompt}", prefill="bega")
    assert asked() == found[0] != lm.encode("modor", armed=True)[0]
    lm.drive = lm.drive.change(system="verin")
    found.append(asked())
    lm.tokenizer.chat_template = tiny.CHAT_TEMPLATE.replace("<|assistant|> ", "<|assistant|> modor ")
    found.append(asked())
    lm.tokenizer = LM.load(checkpoint("llama").base, drive=tiny.DRIVE, device="cpu").tokenizer
    found.append(asked())
    lm.tokenizer.add_tokens(["modo"])
    found.append(asked())
    assert all(one != other for one, other in itertools.pairwise(found))
