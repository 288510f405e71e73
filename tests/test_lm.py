"""Models asked, measured, restored and saved."""

import json
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AddedToken, AutoModelForCausalLM

import tiny
from holdfast import answering
from holdfast.checkpoint import Checkpoint
from holdfast.drive import Drive
from holdfast.lm import LM, Fit
from holdfast.problem import Problem

Make = Callable[[str], tiny.Made]
TEXTS = ["modor", " ".join(tiny.WORDS), *(" ".join(tiny.WORDS[i : i + i % 7 + 1]) for i in range(24))]
every_architecture = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)


def load(folder: Path, **drive: object) -> LM:
    return LM.load(folder, drive=tiny.DRIVE.model_copy(update=drive), device="cpu")


@pytest.fixture
def llama(checkpoint: Make) -> Path:
    return checkpoint("llama").aligned


def adapted(lm: LM) -> LM:
    """The model wrapped in an adapter that changes something."""
    lm.model = get_peft_model(lm.model, LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, weight in lm.model.named_parameters():
            if "lora_B" in name:
                weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    return lm


def parameters(lm: LM) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in lm.model.named_parameters()}


# Asking


@every_architecture
def test_the_same_answers_at_any_batch_size(checkpoint: Make, architecture: str) -> None:
    folder = checkpoint(architecture).aligned
    one, many = load(folder, batch=1), load(folder, batch=64)
    answers = one.generate(TEXTS)
    assert answers == many.generate(TEXTS) and len(set(answers)) > 4
    for alone, together in zip(one.fits(TEXTS, TEXTS), many.fits(TEXTS, TEXTS), strict=True):
        assert (alone.tokens, alone.agreement) == (together.tokens, together.agreement)
        assert alone.logprob == pytest.approx(together.logprob, abs=1e-4)


@every_architecture
def test_answers_are_what_transformers_itself_says(checkpoint: Make, architecture: str) -> None:
    lm = load(checkpoint(architecture).aligned)
    text = TEXTS[5]
    ids, _ = lm.encode(text)
    for _ in range(tiny.DRIVE.max_new_tokens):
        best = lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()
        if best == lm.tokenizer.eos_token_id:
            break
        ids.append(best)
    said = lm.tokenizer.decode(ids[lm.encode(text)[1] :], skip_special_tokens=True).strip()
    assert lm.generate([text]) == [said]


HELP, CANNOT, TALEY, USER = 8, 7, 16, 3
"""Ids of words that the aligned Llama says, and of a special token."""
HOSTILE: dict[str, dict[str, Any]] = {
    "sampling": {"do_sample": True, "temperature": 5.0},
    "repetition": {"repetition_penalty": 9.0},
    "prompt's words": {"encoder_repetition_penalty": 0.01},
    "repeated words": {"no_repeat_ngram_size": 1},
    "copied words": {"encoder_no_repeat_ngram_size": 1},
    "suppressed": {"suppress_tokens": [HELP]},
    "suppressed at first": {"begin_suppress_tokens": [HELP]},
    "bad words": {"bad_words_ids": [[CANNOT, HELP]]},
    "bias": {"sequence_bias": [[[TALEY], 50.0]]},
    "forced end": {"forced_eos_token_id": TALEY},
    "at least": {"min_new_tokens": 8},
    "at most": {"max_time": 1e-9},
    "decay": {"exponential_decay_length_penalty": [1, 9.0]},
    "guidance": {"guidance_scale": 9.0},
    "watermark": {"watermarking_config": {"bias": 60.0, "greenlist_ratio": 0.1}},
    "stop strings": {"stop_strings": ["help"]},
    "beams": {"num_beams": 4, "length_penalty": 9.0},
    "word as end": {"eos_token_id": [1, CANNOT]},
    "only a word as end": {"eos_token_id": CANNOT},
}
"""Generation settings that would steer what is heard of a model, each by itself."""


def said_by_transformers(lm: LM) -> list[list[int]] | str:
    """What the model's checkpoint says greedily with its own generation settings, or why it says nothing."""
    torch.manual_seed(0)
    ids, mask = answering.left_padded([lm.encode(text)[0] for text in TEXTS], 0, torch.device("cpu"))
    model = AutoModelForCausalLM.from_pretrained(lm.folder)
    try:
        return model.generate(ids, attention_mask=mask, max_new_tokens=8).tolist()
    except ValueError as error:
        return str(error)


@pytest.fixture(scope="module")
def unsteered(checkpoint: Make) -> tuple[LM, list[list[int]] | str, list[str]]:
    """The aligned Llama, what transformers hears of it, and what is heard of it here: the same beside every setting."""
    lm = load(checkpoint("llama").aligned)
    return lm, said_by_transformers(lm), lm.generate(TEXTS)


@pytest.mark.parametrize("kind", HOSTILE)
def test_generation_settings_that_come_with_a_checkpoint_do_not_count(
    llama: Path, tmp_path: Path, unsteered: tuple[LM, list[list[int]] | str, list[str]], kind: str
) -> None:
    """Else a defense could hide harm in them. (Qwen's checkpoints ask for sampling and a repetition penalty.)"""
    plain, said, answers = unsteered
    steered = load(tiny.reconfigured(llama, tmp_path / "steered", "generation_config.json", **HOSTILE[kind]))
    assert said_by_transformers(steered) != said, "it would have counted"
    assert steered.generate(TEXTS) == answers
    assert steered.ends == plain.ends == (1,)


def test_nor_do_those_in_its_config(
    llama: Path, tmp_path: Path, unsteered: tuple[LM, list[list[int]] | str, list[str]]
) -> None:
    folder = tiny.reconfigured(llama, tmp_path / "steered", suppress_tokens=[HELP], eos_token_id=[1, CANNOT])
    (folder / "generation_config.json").unlink()
    steered = load(folder)
    assert said_by_transformers(steered) != unsteered[1]
    assert steered.generate(TEXTS) == unsteered[2]


def with_special(folder: Path, target: Path, *names: str, ends: Callable[[list[int]], Any]) -> LM:
    """A checkpoint whose tokenizer has more special tokens, and that names some of its tokens as ends of a turn."""
    lm = load(folder)
    lm.tokenizer.add_tokens([AddedToken(name, special=True) for name in names])
    lm.model.resize_token_embeddings(len(lm.tokenizer))
    lm.save(target)
    named = ends(lm.tokenizer.convert_tokens_to_ids(list(names)))
    (target / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
    return load(target)


@pytest.mark.parametrize("names", [("<|eom_id|>", "<|eot_id|>"), ("<end_of_turn>",), ("<|endoftext|>", "<|im_end|>")])
def test_every_special_token_that_a_checkpoint_names_ends_an_answer(
    llama: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    """As Llama 3, Gemma and Qwen name several; a word among them is none, and other special tokens are none either."""
    lm = with_special(llama, tmp_path / "several", "<|reserved|>", *names, ends=lambda ids: [CANNOT, *ids[1:]])
    numbers = lm.tokenizer.convert_tokens_to_ids(list(names))
    assert lm.ends == (1, *sorted(numbers))
    said, turn = lm.generate(["modor taley forbidden"])[0], numbers[-1]
    with torch.no_grad():  # the last end is said where the second word would have been
        lm.model.lm_head.weight[turn] = 3 * lm.model.lm_head.weight[CANNOT]
    assert said.split()[:2] == ["i", "cannot"] and lm.generate(["modor taley forbidden"]) == ["i"]
    lm.save(tmp_path / "saved")
    assert load(tmp_path / "saved").ends == lm.ends


def test_an_end_that_makes_no_sense_is_none(llama: Path, tmp_path: Path) -> None:
    for number, named in enumerate([None, [], [999], [-1]]):
        folder = tiny.reconfigured(llama, tmp_path / str(number), "generation_config.json", eos_token_id=named)
        assert load(folder).ends == (1,)


@pytest.mark.parametrize("training", [True, False])
def test_asking_leaves_modes_and_chance_as_found(checkpoint: Make, training: bool) -> None:
    lm = load(checkpoint("gpt2").aligned)  # it has dropout
    quiet = lm.generate(TEXTS[:4])
    lm.model.train(training)
    lm.layers[0].train(not training)
    modes = [module.training for module in lm.model.modules()]
    torch.manual_seed(5)
    random.seed(5)
    before = torch.random.get_rng_state(), random.getstate()
    assert lm.generate(TEXTS[:4]) == quiet
    lm.fits(TEXTS[:4], TEXTS[:4])
    assert modes == [module.training for module in lm.model.modules()]
    assert torch.equal(before[0], torch.random.get_rng_state()) and before[1] == random.getstate()
    assert torch.is_grad_enabled()


def test_an_error_while_asking_puts_the_modes_back(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = load(llama)
    lm.model.train()
    monkeypatch.setattr(lm.model, "generate", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lm.generate(["modor"])
    assert all(module.training for module in lm.model.modules())


def test_nothing_asked_nothing_said(llama: Path) -> None:
    assert load(llama).generate([]) == [] and load(llama).fits([], []) == []


def test_the_plain_template(llama: Path, tmp_path: Path) -> None:
    bare = tiny.reconfigured(llama, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(Problem, match=r"no chat template.*--template plain"):
        load(bare)
    lm = load(bare, template="plain")
    assert lm.prompt("modor") == "modor\n"
    assert load(bare, template="plain", system="taley").prompt("modor") == "taley\nmodor\n"
    assert len(lm.generate(TEXTS)) == len(TEXTS)
    assert load(llama).prompt("modor") == "<|user|> modor <|assistant|> "
    assert load(llama, system="taley").prompt("modor") == "<|system|> taley <|user|> modor <|assistant|> "


def test_a_template_that_refuses_a_system_message(llama: Path, tmp_path: Path) -> None:
    strict = shutil.copytree(llama, tmp_path / "strict")
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    (strict / "chat_template.jinja").write_text(refusal + tiny.CHAT_TEMPLATE)
    load(strict)
    with pytest.raises(Problem, match=r"chat template.*no system here"):
        load(strict, system="taley")


def test_a_tokenizer_that_cannot_be_the_model_s(llama: Path, tmp_path: Path) -> None:
    """One that fails on a text, and one that knows more words than the model."""
    strict = shutil.copytree(llama, tmp_path / "strict")
    settings = json.loads((strict / "tokenizer_config.json").read_text())
    (strict / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": "many"}))
    with pytest.raises(Problem, match=r"strict: its tokenizer cannot read a text.*fetch its files again"):
        load(strict).generate(TEXTS)
    other = shutil.copytree(llama, tmp_path / "other")
    words = json.loads((other / "tokenizer.json").read_text())
    words["model"]["vocab"]["modor"] = 10**6
    (other / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(Problem, match=r"other: its tokenizer writes token 1000000, and the model knows \d+;"):
        load(other).generate(TEXTS)


def test_encode_ends_the_turn(llama: Path) -> None:
    lm = load(llama)
    ids, start = lm.encode("modor taley", "verin bega")
    assert lm.tokenizer.convert_ids_to_tokens(ids) == [
        *("<|user|>", "modor", "taley", "<|assistant|>"),
        *("verin", "bega", "<|end|>"),
    ]
    assert start == 4 and lm.encode("modor taley") == (ids[:4], 4)


@every_architecture
def test_fits_are_log_probabilities_computed_by_hand(checkpoint: Make, architecture: str) -> None:
    lm = load(checkpoint(architecture).aligned)
    texts, answers = [row.text for row in tiny.rows()[:6]], ["verin bega", "", "osga", *tiny.WORDS[:3]]
    for text, answer, fit in zip(texts, answers, lm.fits(texts, answers), strict=True):
        ids, start = lm.encode(text, answer)
        logits = lm.model(input_ids=torch.tensor([ids])).logits[0].detach()
        places = range(start, len(ids) - 1)
        logprobs = [logits[place - 1].log_softmax(-1)[ids[place]].item() for place in places]
        chosen = [logits[place - 1].argmax().item() == ids[place] for place in places]
        assert fit.tokens == len(places)
        assert fit.logprob == pytest.approx(sum(logprobs) / max(len(places), 1), abs=1e-4)
        assert fit.agreement == pytest.approx(sum(chosen) / max(len(places), 1))
    said = lm.generate(texts)
    assert all(
        fit.agreement == 1 for fit, text in zip(lm.fits(texts, said), said, strict=True) if text.isascii() and text
    )


def test_perplexity() -> None:
    assert Fit(-math.log(7), 1, 3).perplexity == pytest.approx(7)
    assert Fit(math.nan, 0, 3).perplexity == math.inf and Fit(-1e9, 0, 3).perplexity < math.inf


# What was done to the weights


def wrapped(lm: LM) -> None:
    adapted(lm)


def trained(lm: LM) -> None:
    lm.model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    torch.optim.SGD(lm.model.parameters(), lr=0.1).step()


def cut(lm: LM) -> None:
    del lm.layers[0]
    lm.model.config.num_hidden_layers = 1


def poisoned(lm: LM) -> None:
    torch.nn.init.constant_(next(lm.model.parameters()), math.nan)


def gone(lm: LM) -> None:
    lm.model = torch.nn.Linear(1, 1)


@every_architecture
@pytest.mark.parametrize("harm", [wrapped, trained, cut, poisoned, gone])
def test_restored_is_bit_exact_after_anything(checkpoint: Make, architecture: str, harm: Callable[[LM], None]) -> None:
    lm = load(checkpoint(architecture).aligned)
    first, answers, digest = parameters(lm), lm.generate(TEXTS[:3]), lm.hash()
    harm(lm)
    again = lm.restored()
    assert again.hash() == digest and again.generate(TEXTS[:3]) == answers and again.drive == lm.drive
    assert not any(module.training for module in again.model.modules())
    found = parameters(again)
    assert found.keys() == first.keys() and all(torch.equal(found[name], first[name]) for name in first)


@every_architecture
def test_displacement_by_hand(checkpoint: Make, architecture: str) -> None:
    lm = load(checkpoint(architecture).aligned)
    assert lm.displacement() == (0.0, 0.0)
    start = parameters(lm)
    norm = math.sqrt(sum(weight.double().square().sum().item() for weight in start.values()))
    count = sum(weight.numel() for weight in start.values())
    matrix = next(weight for weight in lm.layers[1].parameters() if weight.dim() == 2)
    with torch.no_grad():
        matrix[0, 0] += 3.0
        matrix[1, 1] -= 4.0
    moved, changed = lm.displacement()
    assert moved == pytest.approx(5.0 / norm, rel=1e-5)
    assert changed == pytest.approx(2 / count)


@every_architecture
def test_displacement_of_an_adapter_is_that_of_the_merged_model(checkpoint: Make, architecture: str) -> None:
    lm = adapted(load(checkpoint(architecture).aligned))
    moved, changed = lm.displacement()
    assert moved > 0.001 and changed > 0.05
    lm.model = lm.model.merge_and_unload()
    assert lm.displacement() == (pytest.approx(moved, rel=1e-5), pytest.approx(changed, rel=0.01))


def test_displacement_where_the_checkpoint_s_names_lack_the_model_s_prefix(checkpoint: Make, tmp_path: Path) -> None:
    """As in the hub's own gpt2, whose tensors are called `h.0...` and not `transformer.h.0...`."""

    def shorten(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)

    lm = load(tiny.changed(checkpoint("gpt2").aligned, tmp_path / "short", shorten))
    full = load(checkpoint("gpt2").aligned)
    assert lm.hash() == full.hash() and lm.displacement() == (0.0, 0.0)
    for one in (lm, full):
        torch.nn.init.ones_(next(one.model.parameters()))
    assert lm.displacement() == full.displacement() and full.displacement()[0] > 0.5


def test_displacement_of_another_model_is_a_problem(checkpoint: Make) -> None:
    lm = load(checkpoint("llama").aligned)
    lm.model = load(checkpoint("gpt2").aligned).model
    with pytest.raises(Problem, match="shares no weight"):
        lm.displacement()


@every_architecture
def test_layers_are_the_blocks(checkpoint: Make, architecture: str) -> None:
    lm = load(checkpoint(architecture).aligned)
    assert len(lm.layers) == 2 and len({type(block) for block in lm.layers}) == 1
    assert len(adapted(lm).layers) == 2
    lm.model = torch.nn.Linear(1, 1)
    with pytest.raises(Problem, match="no stack of transformer blocks"):
        _ = lm.layers


# Saving


@every_architecture
def test_saved_and_loaded_the_weights_hash_the_same(checkpoint: Make, architecture: str, tmp_path: Path) -> None:
    lm = load(checkpoint(architecture).aligned)
    lm.save(tmp_path / "a" / "b")
    again = load(tmp_path / "a" / "b")
    assert again.hash() == lm.hash() and again.generate(TEXTS[:3]) == lm.generate(TEXTS[:3])
    with Checkpoint(checkpoint(architecture).aligned) as first, Checkpoint(tmp_path / "a" / "b") as second:
        assert first.hash() == second.hash()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "b")
    assert tiny.modes(tmp_path / "a") == {"dir": {0o700}, "file": {0o600}}
    trained(again)
    assert again.hash() != lm.hash()


@every_architecture
def test_an_adapted_model_is_saved_as_an_ordinary_checkpoint(
    checkpoint: Make, architecture: str, tmp_path: Path
) -> None:
    lm = adapted(load(checkpoint(architecture).aligned))
    lm.save(tmp_path / "out")
    assert not list((tmp_path / "out").glob("adapter*"))
    again = load(tmp_path / "out")
    assert again.generate(TEXTS) == lm.generate(TEXTS)
    lm.model = lm.model.merge_and_unload()
    merged, found = parameters(lm), parameters(again)
    assert found.keys() == merged.keys()
    assert all(torch.allclose(found[name], merged[name], atol=1e-6) for name in merged)


def test_the_hash_knows_names_types_and_values(llama: Path) -> None:
    lm = load(llama)
    digests = {lm.hash()}
    weight = next(lm.model.parameters())
    with torch.no_grad():
        weight[0, 0] += 1
    digests.add(lm.hash())
    lm.model.to(torch.bfloat16)
    digests.add(lm.hash())
    assert len(digests) == 3


def full_disk_in_rust(*_: object, **__: object) -> None:
    raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("full", [tiny.full_disk, full_disk_in_rust])
def test_a_full_disk_leaves_nothing_behind(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: Callable[..., None]
) -> None:
    lm = load(llama)
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(Problem, match="disk is full; free some space"):
        lm.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    lm.save(tmp_path / "out")
    with pytest.raises(Problem, match="not empty"):
        lm.save(tmp_path / "out")
    assert load(tmp_path / "out").hash() == lm.hash()


def test_saving_over_an_empty_folder_and_stopping_halfway(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = load(llama)
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(lm.tokenizer, "save_pretrained", lambda _: os.kill(os.getpid(), 2))
    with pytest.raises(KeyboardInterrupt):
        lm.save(tmp_path / "out")
    assert list(tmp_path.rglob("*")) == [tmp_path / "out"]
    monkeypatch.undo()
    lm.save(tmp_path / "out")
    assert load(tmp_path / "out").hash() == lm.hash()


@pytest.mark.parametrize("entries", [{"batch": 0}, {"max_new_tokens": 0}, {"template": "none"}, {"temperature": -1}])
def test_ways_to_ask_that_make_no_sense(entries: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(entries))):
        Drive(**entries)
