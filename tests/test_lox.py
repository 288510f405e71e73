"""LoX from folder to folder and in memory: the formula, the controls, what it keeps, what it refuses, what a crash leaves."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from holdfast import spectrum, stream
from holdfast.checkpoint import Checkpoint
from holdfast.corpus import Hand, Row
from holdfast.defenses.lox import LoX
from holdfast.drive import Drive
from holdfast.lm import LM
from holdfast.problem import Problem

WORDS = ["<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(61))]
MATRIX = "model.layers.0.mlp.up_proj.weight"
DRIVE = Drive(template="plain", max_new_tokens=4)


class Notes:
    """A log that remembers."""

    folder = None

    def __init__(self) -> None:
        self.lines: list[dict[str, float | str | bool]] = []

    def metrics(self, **values: float | str | bool) -> None:
        self.lines.append(values)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    core = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def model(hidden: int = 32, tied: bool = True, vocabulary: int = 64) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        eos_token_id=1,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def aligned(base: LlamaForCausalLM) -> LlamaForCausalLM:
    """The base moved in every parameter by something whose singular values fall."""
    moved = type(base)(base.config)
    moved.load_state_dict(base.state_dict())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in moved.parameters():
            if weight.dim() == 1:
                weight += 0.01
                continue
            rank = 12
            left = torch.randn(weight.shape[0], rank, generator=generator) * torch.arange(1, rank + 1) ** -0.75
            weight += 0.003 * left @ torch.randn(rank, weight.shape[1], generator=generator)
            weight += 1e-4 * torch.randn(weight.shape, generator=generator)
    return moved


def save(lm: LlamaForCausalLM, folder: Path, dtype: torch.dtype = torch.float32, shard: str = "5GB") -> Path:
    lm.to(dtype).save_pretrained(folder, max_shard_size=shard)
    tokenizer().save_pretrained(folder)
    lm.to(torch.float32)
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """fp32, tied, in several shards; the two are cut into shards differently."""
    root = tmp_path_factory.mktemp("pair")
    base = model()
    return save(base, root / "base", shard="16KB"), save(aligned(base), root / "aligned", shard="12KB")


def harden(pair: tuple[Path, Path], out: Path, log: Notes | None = None, hand: Hand | None = None, **settings: object):
    torch.set_num_threads(2)  # two workers with one thread each
    LoX(**settings).harden(pair[0], pair[1], out, hand, log or Notes(), DRIVE)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    return weights(out)


def weights(folder: Path) -> dict[str, Tensor]:
    with Checkpoint(folder) as checkpoint:
        return {name: checkpoint.tensor(name).clone() for name in checkpoint}


def note(folder: Path) -> dict[str, dict[str, object]]:
    return {entry["name"]: entry for entry in json.loads((folder / "holdfast.json").read_text())["tensors"]}


def copied(folder: Path, target: Path, **changes: Callable[[Tensor], Tensor | None]) -> Path:
    """The folder again as one file, with some tensors changed (or dropped, where the change gives None)."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    tensors = {name: changes.get(name, lambda tensor: tensor)(tensor) for name, tensor in weights(folder).items()}
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, target / "model.safetensors", {"format": "pt"})
    return target


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


# The formula


def test_the_edit_is_the_formula(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, before = weights(pair[0]), weights(pair[1])
    after = harden(pair, tmp_path / "out", rank=3, strength=1.25)
    assert after.keys() == before.keys()
    for name, weight in before.items():
        if weight.dim() == 1:
            assert torch.equal(after[name], weight)
            continue
        left, values, right = torch.linalg.svd(weight - base[name], full_matrices=False)
        part = (left[:, :3] * values[:3]) @ right[:3]
        assert torch.allclose(after[name], weight + 1.25 * part, atol=1e-6)
        inflated = torch.linalg.svdvals(after[name] - base[name])
        assert torch.allclose(inflated[:3], 2.25 * values[:3], atol=2e-6)
        assert torch.allclose(inflated[3:], values[3:], atol=2e-6)


def test_strength_0_is_the_aligned_model_to_the_bit(pair: tuple[Path, Path], tmp_path: Path) -> None:
    harden(pair, tmp_path / "out", rank=6, strength=0)
    with Checkpoint(tmp_path / "out") as after, Checkpoint(pair[1]) as before:
        assert after.hash() == before.hash()


def test_full_at_full_rank_is_expo(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, before = weights(pair[0]), weights(pair[1])
    for part in ("full", "top"):
        after = harden(pair, tmp_path / part, rank=999, strength=0.5, part=part)
        for name, weight in before.items():
            expected = weight + 0.5 * (weight - base[name]) if weight.dim() == 2 else weight
            assert torch.allclose(after[name], expected, atol=1e-6)


def test_r_align_rises_as_arithmetic_says(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base = weights(pair[0])
    after = harden(pair, tmp_path / "out", rank=6, strength=1.25)
    told = note(tmp_path / "out")[MATRIX]
    share = told["r_align"]
    assert isinstance(share, float)
    values = torch.linalg.svdvals(after[MATRIX] - base[MATRIX])
    found = (values[:6].norm() / values.norm()).item()
    assert found == pytest.approx(2.25 * share / math.sqrt((2.25 * share) ** 2 + 1 - share**2), abs=1e-4)
    assert told["edit"] == pytest.approx(1.25 * share)


def test_dividing_the_top_down_again_undoes_it(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Why it does not protect against somebody who owns the base: the gap shows the rank, and the edit is invertible."""
    base, before = weights(pair[0])[MATRIX], weights(pair[1])[MATRIX]
    after = harden(pair, tmp_path / "out", rank=6, strength=1.25)[MATRIX]
    top = spectrum.top(after - base, 6, seed=0)
    undone = after - (1 - 1 / 2.25) * (top.left * top.values) @ top.right.T
    assert (undone - before).norm() <= 1e-4 * (before - base).norm()
    assert top.values[-1] / top.following > 2


@pytest.mark.parametrize("part", ["full", "bottom", "random"])
def test_controls_have_the_norm_of_lox_in_every_matrix(pair: tuple[Path, Path], tmp_path: Path, part: str) -> None:
    before = weights(pair[1])
    lox = harden(pair, tmp_path / "lox", rank=3, strength=1.25)
    control = harden(pair, tmp_path / "control", rank=3, strength=1.25, part=part)
    for name, weight in before.items():
        wanted = (lox[name] - weight).norm().item()
        assert (control[name] - weight).norm().item() == pytest.approx(wanted, rel=1e-3, abs=1e-9)
    assert not torch.allclose(lox[MATRIX], control[MATRIX], atol=1e-4)


def test_twice_is_one_plus_strength_squared_and_is_warned_about(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, before, log = weights(pair[0])[MATRIX], weights(pair[1])[MATRIX], Notes()
    harden(pair, tmp_path / "once", rank=3, strength=1.0)
    twice = harden((pair[0], tmp_path / "once"), tmp_path / "twice", log, rank=3, strength=1.0)[MATRIX]
    values = torch.linalg.svdvals(before - base)
    assert torch.allclose(torch.linalg.svdvals(twice - base)[:3], 4 * values[:3], rtol=1e-3)
    assert any("already" in str(line.get("warning")) for line in log.lines)
    assert json.loads((tmp_path / "twice" / "holdfast.json").read_text())["earlier"]["strength"] == 1.0


def test_more_of_the_difference_refuses_more_and_less_of_it_less() -> None:
    """The sign of the edit: +1 widens the refusal margin that alignment made, -1 narrows it."""
    base = model()
    tuned = type(base)(base.config)
    tuned.load_state_dict(base.state_dict())
    prompts, refusal, comply = torch.arange(10, 40)[:, None], 5, 6
    optimizer = torch.optim.Adam(tuned.parameters(), lr=1e-3)

    def margin(lm: LlamaForCausalLM) -> Tensor:
        logits = lm(prompts).logits[:, -1]
        return (logits[:, refusal] - logits[:, comply]).mean()

    for _ in range(10):
        optimizer.zero_grad()
        (-margin(tuned)).backward()
        optimizer.step()
    margins = []
    before = {name: weight.detach().clone() for name, weight in tuned.named_parameters()}
    with torch.no_grad():
        for strength in (-1.0, 0.0, 1.0):
            for (name, weight), origin in zip(tuned.named_parameters(), base.parameters(), strict=True):
                weight.copy_(before[name])
                if weight.dim() == 2 and (edit := spectrum.edit(weight - origin, 3, "top", 0)):
                    edit.add_to(weight, strength)
            margins.append(margin(tuned).item())
    assert margins[0] < margins[1] < margins[2]


# What it keeps


def test_layout_and_other_files_stay(pair: tuple[Path, Path], tmp_path: Path) -> None:
    source = tmp_path / "aligned"
    shutil.copytree(pair[1], source)
    (source / "training_args.bin").write_bytes(b"pickled")
    (source / "adapter.safetensors").write_bytes(b"not ours")
    (source / "notes").mkdir()
    (source / "notes" / "card.md").write_text("card")
    harden((pair[0], source), tmp_path / "out", rank=3, strength=1.0)
    out = tmp_path / "out"
    here = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    there = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert there == here - {"training_args.bin", "adapter.safetensors"} | {"holdfast.json"}
    assert json.loads((out / "holdfast.json").read_text())["left_out"] == ["adapter.safetensors", "training_args.bin"]
    assert len([name for name in there if name.endswith(".safetensors")]) > 3
    for name in there - {"holdfast.json"}:
        if not name.endswith(".safetensors"):
            assert (out / name).read_bytes() == (source / name).read_bytes()
        else:
            length = 8 + int.from_bytes((source / name).read_bytes()[:8], "little")
            assert (out / name).read_bytes()[:length] == (source / name).read_bytes()[:length]
    assert out.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in out.iterdir() if path.is_file())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
def test_half_precision_loads_plainly_and_ties_stay(tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
    base = model(tied=tied)
    folders = save(base, tmp_path / "base", dtype), save(aligned(base), tmp_path / "aligned", dtype)
    after = harden(folders, tmp_path / "out", rank=3, strength=1.0)
    assert ("lm_head.weight" in after) != tied
    assert all(weight.dtype == dtype for weight in after.values())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    name = "model.embed_tokens.weight"
    old, new = weights(folders[0])[name].float(), weights(folders[1])[name].float()
    expected = new + spectrum_part(new - old, 3)
    assert torch.equal(after[name], expected.to(dtype)) or (after[name].float() - expected).abs().max() < 2e-4
    assert torch.equal(loaded.model.embed_tokens.weight, after[name])


def spectrum_part(difference: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(difference, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def test_embeddings_can_be_left_out(pair: tuple[Path, Path], tmp_path: Path) -> None:
    after = harden(pair, tmp_path / "out", rank=3, strength=1.0, embeddings=False)
    name = "model.embed_tokens.weight"
    assert torch.equal(after[name], weights(pair[1])[name])
    assert note(tmp_path / "out")[name]["kept"] == "embeddings are excluded"
    assert not torch.equal(after[MATRIX], weights(pair[1])[MATRIX])


def test_the_note_says_what_was_done_to_each_tensor(pair: tuple[Path, Path], tmp_path: Path) -> None:
    harden(pair, tmp_path / "out", rank=3, strength=1.0)
    told = note(tmp_path / "out")
    assert list(told) == list(weights(pair[1]))
    entry = told[MATRIX]
    assert entry.keys() == {"name", "rank", "strength", "norm", "r_align", "edit", "gap", "method"}
    assert entry["norm"] == pytest.approx((weights(pair[1])[MATRIX] - weights(pair[0])[MATRIX]).norm().item(), rel=1e-5)
    assert told["model.norm.weight"]["kept"] == "has 1 axes"
    settings = json.loads((tmp_path / "out" / "holdfast.json").read_text())["defense"]
    assert settings["method"] == "lox" and LoX(**{k: v for k, v in settings.items() if k != "method"}).rank == 3


def test_stacks_of_experts_one_by_one_and_integers_kept(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    stack, moved = (torch.randn(3, 24, 16, generator=generator) for _ in range(2))
    base = {"experts": stack, "packed": torch.arange(12).view(3, 4), "conv": torch.randn(2, 2, 2, 2)}
    for kind, tensors in (("base", base), ("aligned", {**base, "experts": stack + 0.1 * moved})):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_text("{}")
        save_file(tensors, tmp_path / kind / "model.safetensors")
    after = harden((tmp_path / "base", tmp_path / "aligned"), tmp_path / "out", rank=2, strength=1.0)
    told = note(tmp_path / "out")
    for index in range(3):
        expected = stack[index] + 0.1 * moved[index] + spectrum_part(0.1 * moved[index], 2)
        assert torch.allclose(after["experts"][index], expected, atol=1e-5)
        assert told[f"experts[{index}]"]["rank"] == 2
    assert torch.equal(after["packed"], base["packed"]) and told["packed"]["kept"] == "type I64"
    assert torch.equal(after["conv"], base["conv"]) and told["conv"]["kept"] == "has 4 axes"


def test_same_seed_same_bits_in_memory_and_on_disk(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectrum, "OVERSAMPLING", 1)  # so that these small matrices take the randomized way
    monkeypatch.setattr(stream, "_PIECE", 100)  # and are read in many pieces
    before = torch.random.get_rng_state()
    one = harden(pair, tmp_path / "one", rank=3, strength=1.0, part="random")
    other = harden(pair, tmp_path / "other", rank=3, strength=1.0, part="random")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(before, torch.random.get_rng_state())
    on_disk = harden(pair, tmp_path / "top", rank=3, strength=1.0)
    assert "randomized" in {entry.get("method") for entry in note(tmp_path / "top").values()}
    lm = LM.load(pair[1], base=pair[0], drive=DRIVE)
    LoX(rank=3, strength=1.0)(lm, None, Notes())
    for name, weight in lm.model.named_parameters():
        assert torch.allclose(weight, on_disk[name], atol=1e-6)


# Rank and strength chosen


def rows() -> Hand:
    found = [
        Row(id=f"r{i}", text=f"w{i}", kind="restricted", hand="defender", split="held-out", source="t")
        for i in range(4)
    ]
    for i in range(20):
        kind = "benign" if i < 12 else "borderline"
        made = Row(
            id=f"b{i}", text=f"w{i} w5", answer="w7 w8", kind=kind, hand="defender", split="held-out", source="t"
        )
        found.append(made)
    return Hand("defender", [*found, Row(id="x", text="w9", kind="benign", hand="defender", split="train", source="t")])


def staged(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, share: float, limit: float) -> None:
    """Let answers depend on the weights: refuse once `share` of the way from the base, break benign beyond `limit`."""
    base, before = weights(pair[0])[MATRIX], weights(pair[1])[MATRIX]

    def generate(lm: LM, texts: Sequence[str]) -> list[str]:
        now = lm.model.get_parameter(MATRIX).detach()
        way = ((now - base).norm() / (before - base).norm()).item()
        restricted = "I cannot do that." if way >= share else "w1"
        return [restricted if len(text.split()) == 1 else "w7 w8" if way <= limit else "w3" for text in texts]

    monkeypatch.setattr(LM, "generate", generate)


def test_auto_takes_the_smallest_rank_and_the_largest_strength(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = torch.linalg.svdvals(weights(pair[1])[MATRIX] - weights(pair[0])[MATRIX])
    way = (values.square().cumsum(0).sqrt() / values.norm()).tolist()
    share = (way[1] + way[2]) / 2  # rank 3 is enough, rank 2 is not
    strength = 0.7
    grown = values.clone()
    grown[:3] *= 1 + strength
    staged(pair, monkeypatch, share, (grown.norm() / values.norm()).item())
    log = Notes()
    harden(pair, tmp_path / "out", log, rows(), rank="auto", strength="auto", utility="exact")
    kept = json.loads((tmp_path / "out" / "holdfast.json").read_text())
    chosen = kept["defense"]
    assert chosen["rank"] == 3 and chosen["utility"] == "exact"
    assert strength - 0.02 <= chosen["strength"] <= strength
    assert kept["trials"] == log.lines[: len(kept["trials"])]
    assert {"rank": 3, "strength": chosen["strength"], "utility": 1.0, "over_refusal": 0.0} in kept["trials"]
    assert [line["rank"] for line in log.lines if "refusal" in line] == [1, 2, 3]
    assert {"rank", "strength", "utility", "over_refusal"} <= set(log.lines[4])
    fixed = harden(pair, tmp_path / "fixed", rank=3, strength=chosen["strength"])
    assert all(torch.equal(fixed[name], weight) for name, weight in weights(tmp_path / "out").items())


def test_auto_in_memory_is_the_same_choice(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    staged(pair, monkeypatch, share=0.0, limit=1e9)
    lm = LM.load(pair[1], base=pair[0], drive=DRIVE)
    LoX()(lm, rows(), Notes())
    direct = LM.load(pair[1], base=pair[0], drive=DRIVE)
    LoX(rank=1, strength=4.0)(direct, None, Notes())
    for one, other in zip(lm.model.parameters(), direct.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_utility_by_agreement(pair: tuple[Path, Path]) -> None:
    lm, log = LM.load(pair[1], base=pair[0], drive=DRIVE), Notes()
    LoX(rank=3, utility="agreement", utility_loss=1, over_refusal_rise=1)(lm, rows(), log)
    assert log.lines[-1]["strength"] == 4.0


def test_no_strength_within_the_bounds_is_a_problem(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged(pair, monkeypatch, share=0.0, limit=1.0001)
    with pytest.raises(Problem, match="loosen"):
        harden(pair, tmp_path / "out", hand=rows(), rank=3, utility="exact")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("settings", [{}, {"rank": 3}, {"strength": 1.0}])
def test_auto_without_a_corpus_is_a_problem(
    pair: tuple[Path, Path], tmp_path: Path, settings: dict[str, object]
) -> None:
    with pytest.raises(Problem, match="--corpus"):
        harden(pair, tmp_path / "out", **settings)
    empty = Hand("defender", [])
    with pytest.raises(Problem, match="holds no"):
        harden(pair, tmp_path / "out", hand=empty, **settings)


# What it refuses


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 0}, "part 'full'"),
        ({"rank": -3}, "at least 1"),
        ({"strength": -0.5}, "remove the alignment"),
        ({"strength": float("nan")}, "0 or more|finite"),
        ({"preset": "paper", "rank": 3}, "preset 'paper' means rank 6"),
        ({"preset": "paper", "strength": 1.0}, "preset 'paper' means strength 1.25"),
        ({"utility_loss": -1}, "greater than or equal"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        LoX(**settings)


def test_the_paper_s_preset() -> None:
    lox = LoX(preset="paper")
    assert (lox.rank, lox.strength) == (6, 1.25)
    assert LoX(**lox.model_dump()) == lox


def grown(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor[:1]])


def poisoned(tensor: Tensor) -> Tensor:
    tensor[0, 0] = float("nan")
    return tensor


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (MATRIX, grown, "give two checkpoints of one shape"),
        (MATRIX, lambda tensor: None, "lacks tensor"),
        (MATRIX, poisoned, "NaN or infinite"),
    ],
)
def test_checkpoints_that_do_not_fit(
    pair: tuple[Path, Path], tmp_path: Path, side: int, name: str, change: Callable[[Tensor], Tensor | None], words: str
) -> None:
    folders = list(pair)
    folders[side] = copied(pair[side], tmp_path / "changed", **{name: change})
    with pytest.raises(Problem, match=words) as raised:
        harden((folders[0], folders[1]), tmp_path / "out", rank=3, strength=1.0)
    assert name in str(raised.value)
    assert leftovers(tmp_path) == ["changed"]


def test_nan_in_a_tensor_that_is_kept(pair: tuple[Path, Path], tmp_path: Path) -> None:
    bad = copied(pair[1], tmp_path / "bad", **{"model.norm.weight": lambda tensor: tensor / 0})
    with pytest.raises(Problem, match=r"model\.norm\.weight"):
        harden((pair[0], bad), tmp_path / "out", rank=3, strength=1.0)
    assert leftovers(tmp_path) == ["bad"]


def test_a_quantized_base(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base = copied(pair[0], tmp_path / "base", **{MATRIX: lambda tensor: (tensor * 100).to(torch.int8)})
    with pytest.raises(Problem, match="unquantized"):
        harden((base, pair[1]), tmp_path / "out", rank=3, strength=1.0)


def test_equal_checkpoints(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(Problem, match="equals"):
        harden((pair[0], pair[0]), tmp_path / "out", rank=3, strength=1.0)
    assert leftovers(tmp_path) == []


def test_other_tokenizers(pair: tuple[Path, Path], tmp_path: Path) -> None:
    swapped = shutil.copytree(pair[1], tmp_path / "swapped")
    tokenizer([*WORDS[:5], WORDS[6], WORDS[5], *WORDS[7:]]).save_pretrained(swapped)
    with pytest.raises(Problem, match="tokenizer gives"):
        harden((pair[0], swapped), tmp_path / "out", rank=3, strength=1.0)
    extended = shutil.copytree(pair[1], tmp_path / "extended")
    more = tokenizer([*WORDS, "w61"])
    more.chat_template = "{{ messages }}"
    more.save_pretrained(extended)
    harden((pair[0], extended), tmp_path / "out", rank=3, strength=1.0)
    (extended / "tokenizer.json").write_text("{}")
    with pytest.raises(Problem, match="not a tokenizer"):
        harden((pair[0], extended), tmp_path / "again", rank=3, strength=1.0)


def test_damaged_folders(pair: tuple[Path, Path], tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    lacking = shutil.copytree(pair[1], tmp_path / "lacking")
    next(iter(sorted(lacking.glob("*.safetensors")))).unlink()
    short = shutil.copytree(pair[1], tmp_path / "short")
    shard = next(iter(sorted(short.glob("*.safetensors"))))
    shard.write_bytes(shard.read_bytes()[:-10])
    outside = shutil.copytree(pair[1], tmp_path / "outside")
    index = json.loads((outside / "model.safetensors.index.json").read_text())
    index["weight_map"][MATRIX] = (
        "../" + shutil.copy(pair[1] / index["weight_map"][MATRIX], tmp_path / "a.safetensors").name
    )
    (outside / "model.safetensors.index.json").write_text(json.dumps(index))
    cases = {pickled: "pickled", lacking: "missing", short: "cut short", outside: "outside the folder"}
    for folder, words in cases.items():
        with pytest.raises(Problem, match=words):
            harden((pair[0], folder), tmp_path / "out", rank=3, strength=1.0)
    with pytest.raises(Problem, match="needs the checkpoint from before"):
        LoX(rank=3, strength=1.0).harden(None, pair[1], tmp_path / "out", None, Notes(), DRIVE)
    with pytest.raises(Problem, match="no base"):
        LoX(rank=3, strength=1.0)(LM.load(pair[1], drive=DRIVE), None, Notes())
    assert not (tmp_path / "out").exists()


def test_fp16_overflow(tmp_path: Path) -> None:
    for kind, value in (("base", 0.0), ("aligned", 60000.0)):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_text("{}")
        save_file({"weight": torch.full((4, 4), value).half()}, tmp_path / kind / "model.safetensors")
    with pytest.raises(Problem, match="overflow"):
        harden((tmp_path / "base", tmp_path / "aligned"), tmp_path / "out", rank=1, strength=1.0)


# Crashes


def test_a_full_disk_leaves_nothing(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def pwrite(file: int, data: memoryview, place: int) -> int:
        written.append(place)
        if len(written) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(Problem, match="disk is full"):
        harden(pair, tmp_path / "out", rank=3, strength=1.0)
    assert leftovers(tmp_path) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").write_text("")
    with pytest.raises(Problem, match="not empty"):
        harden(pair, tmp_path / "out", rank=3, strength=1.0)


SLOW = """
import sys, time
from pathlib import Path
from holdfast import stream
from holdfast.defenses.lox import LoX
from holdfast.drive import Drive
whole = stream.Rewrite.write
def slow(self, name, first, content):
    whole(self, name, first, content)
    sys.stdout.write("wrote\\n")  # one write a line: several threads write tensors at once
    sys.stdout.flush()
    time.sleep(0.2)
stream.Rewrite.write = slow
class Silent:
    folder = None
    def metrics(self, **values): pass
LoX(rank=3, strength=1.0).harden(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), None, Silent(), Drive())
"""


@pytest.mark.hard
def test_killed_halfway_leaves_no_checkpoint_at_the_place(pair: tuple[Path, Path], tmp_path: Path) -> None:
    runs = []
    for sign in (signal.SIGKILL, signal.SIGTERM):
        command = [sys.executable, "-c", SLOW, str(pair[0]), str(pair[1]), str(tmp_path / sign.name)]
        runs.append((sign, subprocess.Popen(command, stdout=subprocess.PIPE, text=True)))
    for sign, run in runs:
        assert run.stdout and run.stdout.readline() == "wrote\n"
        time.sleep(0.1)
        run.send_signal(sign)
        assert run.wait() == -sign
        run.stdout.close()
        assert not (tmp_path / sign.name).exists()
        harden(pair, tmp_path / sign.name, rank=3, strength=1.0)
        assert AutoModelForCausalLM.from_pretrained(tmp_path / sign.name)
