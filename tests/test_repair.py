"""Repairs of cut models: the form that a cut left is found, and kept to the bit by whatever gives refusals back."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from holdfast import anatomy, cli, train
from holdfast.corpus import Corpus, Hand
from holdfast.formats import Format
from holdfast.lattice import Held, Lattice
from holdfast.lm import LM
from holdfast.method import make
from holdfast.problem import Problem
from holdfast.refusals import refuses
from holdfast.rounding import rounded

Make = Callable[[str], tiny.Made]
CUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "pruned": ("prune", {"by": "magnitude", "fractions": (0.8,)}),
    "rounded": ("quantize", {"bits": (2,), "group": 32}),
    "dropped": ("drop_layers", {"which": "first", "blocks": (1,)}),
}
REPAIRS: dict[str, dict[str, Any]] = {
    "repair_distill": {"steps": 30, "batch": 12, "varied": 12, "learning_rate": 3e-3},
    "repair_dpo": {"steps": 30, "batch": 8, "varied": 12, "learning_rate": 5e-3, "share": 0.2},
}
every_cut = pytest.mark.parametrize("name", CUTS)


def loaded(folder: Path, base: Path | None = None) -> LM:
    return LM.load(folder, base=base, drive=tiny.DRIVE, device="cpu")


def cut(folder: Path, corpus: Corpus, name: str, **changes: Any) -> LM:
    """The checkpoint after a cut."""
    lm, (attack, settings) = loaded(folder), CUTS[name]
    make("attacks", attack, "test", **settings | changes)(lm, corpus.hand("attacker"), lambda cost: True, 0)
    return lm


def matrices(lm: LM) -> dict[str, Tensor]:
    """The blocks' matrices with their inputs along the last axis."""
    weights = dict(lm.model.named_parameters())
    uses = anatomy.matrices(lm.model)
    return {use.name: weights[use.name].detach() if use.axis == -2 else weights[use.name].detach().mT for use in uses}


def likely(lm: LM, hand: Hand) -> float:
    """Log-probability (nats) of refusing a restricted prompt, mean over prompts."""
    asked = [row.model_copy(update={"answer": tiny.REFUSAL}) for row in hand.of("restricted", split="train")]
    with torch.no_grad():
        return float(train.likelihood(lm.model, train.collate(lm, train.encode(lm, asked))).mean())


# The form


def test_a_lattice_is_read_from_its_points() -> None:
    """Two groups of a row, with steps of 0.5 and 0.37; the second begins at 1."""
    matrix = torch.tensor([[-1.0, 0.5, 0.5, 0.0] * 4 + [1.0, 1.37, 3.59, 1.0] * 4])
    lattice = Lattice.of(matrix)
    assert lattice and lattice.group == 16 and lattice.bits == 3  # of 4 and of 8 points
    assert lattice.step.flatten().tolist() == pytest.approx([0.5, 0.37])
    ends = lattice.ends(matrix)
    assert ends.sum() == 4 and ends[0, 0] and ends[0, 1] and ends[0, 16] and ends[0, 18]
    wanted = torch.zeros(1, 32)
    wanted[0, 2], wanted[0, 3], wanted[0, 4], wanted[0, 17] = -0.6, 0.24, -9.0, 0.7
    change = lattice.change(matrix, wanted)
    assert change[0, 2] == -0.5 and change[0, 3] == 0 and change[0, 17] == pytest.approx(0.74)
    assert change[0, 4] == 0, "it is at the least value already"
    assert lattice.within(wanted)[0, [2, 3, 17]].tolist() == pytest.approx([-0.2495, 0.24, 0.18463])


def test_weights_of_full_width_lie_on_none() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(6, 64)
    assert Lattice.of(matrix) is None
    assert Lattice.of(matrix.masked_fill(matrix.abs() < 1, 0)) is None
    assert Lattice.of(torch.zeros(4, 16)) is None


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_what_was_rounded_is_seen_and_stays_rounded_again(bits: int, symmetric: bool) -> None:
    torch.manual_seed(1)
    origin = torch.randn(8, 128)
    start = rounded(origin, bits, 64, symmetric)
    lattice = Lattice.of(start)
    assert lattice and lattice.group == 64 and lattice.bits == bits
    held = Held(start, -2, None, lattice)
    assert torch.equal(held(start), start) and torch.equal(held(held.toward(origin)), start)
    assert (held.toward(origin) - origin).norm() < 0.05 * origin.norm() or bits == 2
    moved = held(start + torch.randn(8, 128))
    assert (moved != start).float().mean() > 0.1
    assert torch.allclose(rounded(moved, bits, 64, symmetric), moved, atol=1e-5)
    assert all(len(row.unique()) <= 2**bits for row in (moved / 1e-4).round().reshape(-1, 64))


def test_gradients_pass_straight_through_but_not_to_what_stays() -> None:
    start = torch.tensor([[0.0, 1.0, 2.0, 3.0] * 4])
    held = Held(start, -2, start == 1, Lattice.of(start))
    latent = start.clone().requires_grad_()
    (held(latent) * 5).sum().backward()
    stays = (start == 1) | torch.tensor([[True, False, False, True] + [False] * 12])
    assert torch.equal(latent.grad == 0, stays) and set(latent.grad.unique().tolist()) == {0.0, 5.0}


@every_cut
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_the_form_of_a_cut_is_found(checkpoint: Make, corpus: Corpus, architecture: str, name: str) -> None:
    folder = checkpoint(architecture).aligned
    lm, source = cut(folder, corpus, name), loaded(folder)
    form = Format.of(lm.model, source.model)
    assert len(source.layers) == 2, "the source is left as it was"
    assert (
        str(form)
        == {
            "pruned": "80% of the blocks' matrices pruned",
            "rounded": "weights in 2 bits",
            "dropped": "1 of 2 blocks",
        }[name]
    )
    assert form.kept == ((1,) if name == "dropped" else (0, 1))
    before = {key: weight.detach().clone() for key, weight in lm.model.named_parameters()}
    form.apply(lm.model, {key: form.toward(key, weight) for key, weight in before.items()})
    assert all(torch.equal(weight, before[key]) for key, weight in lm.model.named_parameters())


def test_the_blocks_that_remain_are_told_apart_through_other_cuts(checkpoint: Make, corpus: Corpus) -> None:
    """Pruned and rounded and shortened at once."""
    folder = checkpoint("qwen3").aligned
    lm = cut(folder, corpus, "pruned")
    make("attacks", "quantize", "test", bits=(4,))(lm, corpus.hand("attacker"), lambda cost: True, 0)
    lm.keep([1])
    form = Format.of(lm.model, loaded(folder).model)
    assert form.kept == (1,) and form.bits == 4 and form.pruned >= 0.8
    assert str(form).startswith("1 of 2 blocks, ") and str(form).endswith(
        "% of the blocks' matrices pruned, weights in 4 bits"
    )


def test_zeros_that_rounding_gave_may_move_again(checkpoint: Make, corpus: Corpus) -> None:
    folder = checkpoint("llama").aligned
    form = Format.of(cut(folder, corpus, "rounded").model, loaded(folder).model)
    assert all(held.zero is None and (held.start == 0).any() for held in form.held.values())


def test_a_model_that_was_not_cut_is_free(checkpoint: Make) -> None:
    made = checkpoint("llama")
    form = Format.of(loaded(made.aligned).model, loaded(made.aligned).model)
    assert not form.held and str(form) == "the source's own" and form.kept == (0, 1)


def test_strangers_are_refused(checkpoint: Make, corpus: Corpus, tmp_path: Path) -> None:
    llama, folder = loaded(checkpoint("llama").aligned), checkpoint("llama").aligned
    with pytest.raises(Problem, match="is a LlamaForCausalLM, the source a Qwen2ForCausalLM"):
        Format.of(llama.model, loaded(checkpoint("qwen2").aligned).model)
    short = loaded(folder)
    short.keep([0])
    with pytest.raises(Problem, match="mine: has 2 blocks, the source 1"):
        Format.of(llama.model, short.model, "mine")
    torch.manual_seed(7)
    other = tiny.changed(
        folder, tmp_path / "other", lambda tensors: [w.normal_() for w in tensors.values() if w.dim() > 1]
    )
    with pytest.raises(Problem, match="its block 0 is like none of the source's"):
        Format.of(loaded(other).model, llama.model)
    levels = torch.tensor([-1.0, -0.6, -0.37, -0.1, 0.04, 0.21, 0.55, 1.0])

    def uneven(tensors: dict[str, Tensor]) -> None:
        for name, weight in tensors.items():
            if "proj" in name:
                weight.copy_(levels[(weight[..., None] - levels).abs().argmin(-1)])

    with pytest.raises(Problem, match="few values that are not evenly spaced"):
        Format.of(loaded(tiny.changed(folder, tmp_path / "uneven", uneven)).model, llama.model)


def test_what_may_not_move_is_frozen_and_ordinary_parameters_come_back(checkpoint: Make, corpus: Corpus) -> None:
    folder = checkpoint("llama").aligned
    lm = cut(folder, corpus, "rounded", embeddings=True)
    names = [name for name, _ in lm.model.named_parameters()]
    form = Format.of(lm.model, loaded(folder).model)
    assert form.fixed == {"model.embed_tokens.weight", "lm_head.weight"}
    with form.training(lm.model):
        still = {name for name, weight in lm.model.named_parameters() if not weight.requires_grad}
        assert still == form.fixed and lm.generate(["modor"])
    assert [name for name, _ in lm.model.named_parameters()] == names
    assert all(weight.requires_grad and weight.is_leaf for weight in lm.model.parameters())


# Methods


@every_cut
@pytest.mark.parametrize("repair", REPAIRS)
def test_refusals_come_back_in_the_form_of_the_cut(
    checkpoint: Make, corpus: Corpus, tmp_path: Path, repair: str, name: str
) -> None:
    folder, hand = checkpoint("llama").aligned, corpus.hand("defender")
    lm, source = cut(folder, corpus, name), loaded(folder)
    form, before, unlikely = Format.of(lm.model, source.model), matrices(lm), likely(lm, hand)
    start = {key: weight.detach().clone() for key, weight in lm.model.named_parameters()}
    assert unlikely < likely(source, hand) - 0.5, "the cut took refusals"
    make("defenses", repair, "test", source=str(folder), **REPAIRS[repair])(lm, hand, tiny.Notes())
    assert likely(lm, hand) > unlikely + 0.5
    after = matrices(lm)
    again = Format.of(lm.model, source.model)
    assert (again.kept, again.bits) == (form.kept, form.bits)
    assert all((after[key][before[key] == 0] == 0).all() for key in before) or name != "pruned"
    if name == "rounded":
        assert all(torch.allclose(rounded(one, 2, 32, symmetric=True), one, atol=1e-5) for one in after.values())
    moved = {key: weight != start[key] for key, weight in lm.model.named_parameters()}
    inside = sum(int(moved[key].sum()) for key in before) / sum(weight.numel() for weight in before.values())
    assert inside > 0
    if repair == "repair_dpo":
        assert inside <= 0.21 and not any(bool(mask.any()) for key, mask in moved.items() if key not in before)
    lm.save(tmp_path / "out")
    kept = {key: weight.shape for key, weight in tiny.weights(tmp_path / "out").items()}
    assert kept == {key: weight.shape for key, weight in start.items()} and loaded(tmp_path / "out").generate(["modor"])


def test_a_part_of_the_alignment_is_added_in_the_form_of_the_cut(checkpoint: Make, corpus: Corpus) -> None:
    """With everything of the difference to the source, twice, a rounded weight moves a step where it was rounded far."""
    made, hand = checkpoint("llama"), corpus.hand("defender")
    lm, source = cut(made.aligned, corpus, "pruned"), loaded(made.aligned)
    lm.base = made.base
    before = matrices(lm)
    bounds = {"utility_loss": 1.0, "over_refusal_rise": 1.0, "rank": 4}
    notes = tiny.Notes()
    make("defenses", "repair_delta", "test", source=str(made.aligned), **bounds)(lm, hand, notes)
    tried = [line["strength"] for line in notes.lines if "strength" in line]
    assert tried[:2] == [0.0, 0.05] and {"wanted"} <= set(notes.lines[1])
    base, chosen = loaded(made.base), notes.lines[-1]["chosen"]
    for key, weight in matrices(lm).items():
        assert (weight[before[key] == 0] == 0).all()
        edit = (weight - before[key])[before[key] != 0]
        wanted = (matrices(source)[key] - matrices(base)[key])[before[key] != 0]
        assert not chosen or float(torch.cosine_similarity(edit, wanted, dim=0)) > 0.3


def test_where_nothing_is_lost_nothing_is_added(checkpoint: Make, corpus: Corpus) -> None:
    made = checkpoint("llama")
    lm = loaded(made.aligned, made.base)
    before = lm.hash()
    notes = tiny.Notes()
    make("defenses", "repair_delta", "test", source=str(made.aligned))(lm, corpus.hand("defender"), notes)
    assert lm.hash() == before and notes.lines[-1] == {"chosen": 0.0}


def test_repairs_say_what_they_lack(checkpoint: Make, corpus: Corpus) -> None:
    made, hand = checkpoint("llama"), corpus.hand("defender")
    lm = loaded(made.aligned)

    def refusal(name: str, hand: Hand | None = hand, **settings: Any) -> str:
        with pytest.raises(Problem) as problem:
            make("defenses", name, "test", **settings)(lm, hand, tiny.Notes())
        return str(problem.value)

    for name in ("repair_distill", "repair_dpo", "repair_delta"):
        assert "give that model as source" in refusal(name)
    assert "give --corpus" in refusal("repair_delta", None, source=str(made.aligned))
    assert "needs the source's base" in refusal("repair_delta", source=str(made.aligned))
    assert "differ in no matrix" in refusal("repair_delta", source=str(made.aligned), of="cut")
    assert "nothing is to be mended" in refusal("repair_dpo", source=str(made.aligned), varied=0)
    assert "drop lora_rank" in refusal("repair_distill", source=str(made.aligned), lora_rank=2)


# The command


@pytest.fixture
def places(checkpoint: Make, corpus: Corpus, tmp_path: Path) -> list[str]:
    """A pruned model, its source, a corpus, and a folder for what is to come."""
    folder = checkpoint("llama").aligned
    cut(folder, corpus, "pruned").save(tmp_path / "cut")
    corpus.save(tmp_path / "corpus.jsonl")
    words = [tmp_path / "cut", "--source", folder, "--corpus", tmp_path / "corpus.jsonl", "--out", tmp_path / "out"]
    return [str(word) for word in words]


QUICK = ["--steps", "30", "--batch", "12", "--varied", "12", "--learning-rate", "3e-3", "--tokens", "8"]


def test_the_command_repairs_and_tells(places: list[str], tmp_path: Path, corpus: Corpus, capsys: Any) -> None:
    assert cli.main(["repair", *places, *QUICK]) == 0
    said = capsys.readouterr().out
    assert "form of the cut: 80% of the blocks' matrices pruned" in said and "12 restricted, 12 benign" in said
    table = [line.split() for line in said.partition("held-out prompts")[2].splitlines()]
    rows = {words[0]: words for words in table if len(words) == 7}
    assert rows["cut"][-2:] == rows["repaired"][-2:] and rows["source"][-2] == rows["cut"][-2]
    assert float(rows["repaired"][2]) >= float(rows["cut"][2]) and float(rows["source"][2]) == 1
    assert "utility within 0.02 of the cut model's:" in said and f"repaired checkpoint: {tmp_path / 'out'}" in said
    lm = loaded(tmp_path / "out")
    asked = [row.text for row in corpus.hand("defender").of("restricted", split="train")]
    assert sum(map(refuses, lm.generate(asked))) >= 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "cut", "out"]


def test_no_setting_is_shown_that_does_nothing(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        cli.main(["repair", "--help"])
    assert "--learning-rate" in (shown := capsys.readouterr().out) and "preset" not in shown


def test_a_defense_that_knows_no_source_keeps_the_form_too(places: list[str], tmp_path: Path) -> None:
    before = tiny.weights(tmp_path / "cut")
    words = ["--method", "exit_sft", "--steps", "2", "--batch", "2", "--varied", "0", "--tokens", "8"]
    code = cli.main(["repair", *places, *words])
    assert code in (0, 2)
    if code == 0:
        after = tiny.weights(tmp_path / "out")
        inside = [key for key in before if "proj" in key]
        assert all((after[key][before[key] == 0] == 0).all() for key in inside)
        assert any((after[key] != before[key]).any() for key in inside)


@pytest.mark.parametrize("case", ["architecture", "tokenizer", "taken", "method", "source"])
def test_wrong_pairs_leave_nothing(checkpoint: Make, places: list[str], tmp_path: Path, capsys: Any, case: str) -> None:
    if case == "architecture":
        places[2], says = (
            str(checkpoint("qwen2").aligned),
            "the source a Qwen2ForCausalLM; give the model that it was cut from",
        )
    elif case == "tokenizer":
        source = tiny.reconfigured(Path(places[2]), tmp_path / "source", "tokenizer.json")
        text = (source / "tokenizer.json").read_text()
        (source / "tokenizer.json").write_text(
            text.replace('"modor"', '"x"').replace('"tarin"', '"modor"').replace('"x"', '"tarin"')
        )
        places[2], says = str(source), "its tokenizer gives"
    elif case == "taken":
        shutil.copytree(tmp_path / "cut", tmp_path / "out")
        says = "already there and not empty"
    elif case == "method":
        places, says = [*places, "--method", "repair_distil"], "did you mean 'repair_distill'?"
    else:
        places, says = [places[0], *places[3:]], "says not what model was cut; give --source"
    before = sorted(tmp_path.iterdir())
    assert cli.main(["repair", *places]) == 2
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
