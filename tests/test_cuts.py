"""What small devices make of a model: every claim on every architecture, against numbers computed by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from cases import in_turn
from holdfast import anatomy, calibration, exits, method, quantizers
from holdfast.attacks.drop_layers import _influence
from holdfast.corpus import Corpus, Hand
from holdfast.drive import Exit
from holdfast.lm import LM
from holdfast.problem import Problem
from holdfast.quantizers import quantizer
from holdfast.record import Cost

Make = Callable[[str], tiny.Made]
every = pytest.mark.parametrize("architecture", tiny.EVERY)
IDS = torch.tensor([[3, 9, 4, 11, 6, 17, 2, 8]])
MIXTURES = ("mixtral", "qwen2-moe", "qwen3-moe")


def subject(checkpoint: Make, architecture: str) -> LM:
    return LM.load(checkpoint(architecture).aligned, drive=tiny.DRIVE, device="cpu")


def walked(lm: LM, corpus: Corpus, name: str, look: Callable[[], Any] = lambda: None, /, **setting: Any) -> list[Any]:
    """What `look` saw at each point, with the severities."""
    seen = []

    def at(cost: Cost) -> bool:
        seen.append((cost.severity, look()))
        return True

    method.make("attacks", name, "test", **setting)(lm, corpus.hand("attacker"), at, 0)
    return seen


@torch.no_grad()
def logits(lm: LM, **how: Any) -> Tensor:
    return lm.model(input_ids=IDS, **how).logits


def four_blocks(checkpoint: Make, architecture: str = "llama") -> LM:
    """A subject with two more blocks of its own kind."""
    lm = subject(checkpoint, architecture)
    config = type(lm.model.config)(**{**lm.model.config.to_dict(), "num_hidden_layers": 4, "layer_types": None})
    torch.manual_seed(0)
    lm.model = type(lm.model)(config).eval()
    return lm


# Weights


@every
def test_every_matrix_of_every_block_is_rounded(checkpoint: Make, corpus: Corpus, architecture: str) -> None:
    lm = subject(checkpoint, architecture)
    whole = logits(lm)
    expected = {use.name for use in anatomy.matrices(lm.model)}

    def look() -> tuple[int | None, Tensor]:
        return lm.drive.exit.weight_bits, (logits(lm) - whole).norm() / whole.norm()

    seen = walked(lm, corpus, "quantize", look, bits=(15, 8, 4, 2))
    assert [(severity, bits) for severity, (bits, _) in seen] == [(1, 15), (8, 8), (12, 4), (14, 2)]
    error = [found for _, (_, found) in seen]
    assert error[0] < 1e-2 and error[1] < 0.2 and error[-1] > 5 * error[1]
    assert {change.name for change in lm.changes() if change.changed} == expected
    assert all(isinstance(text, str) for text in lm.generate(["modor taley"]))


@every
def test_each_expert_and_each_way_round_has_its_own_scale(checkpoint: Make, corpus: Corpus, architecture: str) -> None:
    """A row of a matrix as it multiplies, whichever way round it is stored, keeps its largest value and 0 in 2 bits."""
    lm = subject(checkpoint, architecture)
    before = {name: weight.detach().clone() for name, weight in lm.model.named_parameters()}
    walked(lm, corpus, "quantize", bits=(2,))
    for use in anatomy.matrices(lm.model):
        rows = lm.model.get_parameter(use.name).movedim(use.axis, -2).flatten(0, -2)
        largest = before[use.name].movedim(use.axis, -2).flatten(0, -2).abs().amax(-1)
        assert all(
            set(row.abs().unique().tolist()) <= {0.0, float(top)} for row, top in zip(rows, largest, strict=True)
        )


@every
def test_calibrated_rounding(checkpoint: Make, corpus: Corpus, architecture: str) -> None:
    """It reaches every matrix, and what it was calibrated on is nearer the model's own than by the nearest values."""
    nearest, made_up = subject(checkpoint, architecture), subject(checkpoint, architecture)
    texts = [row.text for row in corpus.hand("attacker").of("benign")]
    own = nearest.hidden(texts, last=2)[-1]
    walked(nearest, corpus, "quantize", bits=(4,))
    walked(made_up, corpus, "quantize", bits=(4,), by="gptq")
    assert {c.name for c in made_up.changes() if c.changed} == {use.name for use in anatomy.matrices(made_up.model)}
    errors = [(lm.hidden(texts, last=2)[-1] - own).norm() for lm in (nearest, made_up)]
    assert errors[1] < 0.9 * errors[0]
    assert made_up.generate(["modor"])


def test_calibration_is_somebody_s(checkpoint: Make, corpus: Corpus) -> None:
    found = []
    for kind in ("benign", "harmful"):
        lm = subject(checkpoint, "llama")
        walked(lm, corpus, "quantize", bits=(2,), by="gptq", calibration=kind)
        found.append(logits(lm))
    assert not torch.allclose(*found)
    attack = method.make("attacks", "quantize", "test", by="gptq", calibration="harmful")
    assert attack.needs == ("harmful data",) and method.make("attacks", "quantize", "test").needs == ()
    with pytest.raises(Problem, match="holds no restricted prompt"):
        attack(subject(checkpoint, "llama"), Hand("attacker", []), lambda cost: True, 0)


@pytest.mark.parametrize("width", [32, 48, 64, 100])
def test_nf4_makes_its_usual_error_at_any_width(width: int) -> None:
    """0.09 of the norm of normal values; the library's own way with odd rows doubles it on a CPU."""
    matrix = torch.randn(96, width, generator=torch.Generator().manual_seed(0))
    error = quantizer("bitsandbytes-nf4", 64)(matrix) - matrix
    assert float(error.norm() / matrix.norm()) == pytest.approx(0.092, abs=0.006)


@pytest.mark.parametrize(
    ("architecture", "by"),
    in_turn(
        tiny.EVERY,
        ("torchao-int8-weight", "torchao-int4-weight", "bitsandbytes-nf4"),
        whole=("llama", "gpt2", "mixtral"),  # plain matrices, Conv1D, fused experts
    ),
)
def test_libraries_round_every_matrix(checkpoint: Make, corpus: Corpus, architecture: str, by: str) -> None:
    lm = subject(checkpoint, architecture)
    whole = logits(lm)
    ((severity, _),) = walked(lm, corpus, "quantize", by=by, group=16)
    assert severity == 16 - quantizers.BITS[by] and lm.drive.exit.weight_bits == quantizers.BITS[by]
    assert {c.name for c in lm.changes() if c.changed} == {use.name for use in anatomy.matrices(lm.model)}
    assert (logits(lm) - whole).norm() < (0.1 if "int8" in by else 0.8) * whole.norm() and lm.finite()
    assert lm.generate(["modor"])


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi"])
@pytest.mark.parametrize("by", ["torchao-int8-weight", "torchao-int8-dynamic", "torchao-int4-weight"])
@torch.no_grad()
def test_it_computes_as_torchao_s_own_modules(checkpoint: Make, corpus: Corpus, architecture: str, by: str) -> None:
    from torchao import quantization

    lm, other = subject(checkpoint, architecture), subject(checkpoint, architecture)
    walked(lm, corpus, "quantize", by=by, group=16)
    config = {
        "torchao-int8-weight": quantization.Int8WeightOnlyConfig(),
        "torchao-int8-dynamic": quantization.Int8DynamicActivationInt8WeightConfig(),
        "torchao-int4-weight": quantization.IntxWeightOnlyConfig(
            weight_dtype=torch.int4, granularity=quantization.PerGroup(16)
        ),
    }[by]
    quantization.quantize_(other.layers, config)
    generator = torch.Generator().manual_seed(0)
    pairs = [
        pair for pair in zip(lm.layers.modules(), other.layers.modules(), strict=True) if type(pair[0]) is nn.Linear
    ]
    for mine, theirs in pairs:
        inputs = torch.randn(2, 5, mine.in_features, generator=generator)
        assert torch.allclose(mine(inputs), theirs(inputs), atol=1e-4)
        rounds = not torch.allclose(mine(inputs), nn.functional.linear(inputs, mine.weight, mine.bias), atol=1e-4)
        assert rounds == (by == "torchao-int8-dynamic")


@pytest.mark.parametrize("architecture", MIXTURES)
def test_what_cannot_be_reached_is_said(checkpoint: Make, corpus: Corpus, architecture: str) -> None:
    lm = subject(checkpoint, architecture)
    with pytest.raises(Problem, match=r"stack of experts.*torchao-int8-weight"):
        walked(lm, corpus, "quantize", by="torchao-int8-dynamic")
    assert lm.displacement() == (0.0, 0.0)


def test_a_missing_library_is_said(checkpoint: Make, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.functional", None)
    with pytest.raises(Problem, match=r"bitsandbytes-nf4 cannot run.*holdfast\[quantize\]"):
        walked(subject(checkpoint, "llama"), corpus, "quantize", by="bitsandbytes-nf4")


@every
def test_embeddings_and_head_are_rounded_where_asked(checkpoint: Make, corpus: Corpus, architecture: str) -> None:
    lm = subject(checkpoint, architecture)
    walked(lm, corpus, "quantize", bits=(4,), embeddings=True)
    for part in (lm.model.get_input_embeddings(), lm.model.get_output_embeddings()):
        assert all(len(row.unique()) <= 16 for row in part.weight)
    touched = {c.name for c in lm.changes() if c.changed}
    assert touched > {use.name for use in anatomy.matrices(lm.model)}


@pytest.mark.parametrize("bits", [(4, 8), (4, 4), (16,), (2, 0), ()])
def test_widths_fall(bits: tuple[int, ...]) -> None:
    for name in ("quantize", "kv_quantize"):
        with pytest.raises(Problem, match=r"bits.*fall"):
            method.make("attacks", name, "test", bits=bits)


def test_a_library_s_width_is_its_own() -> None:
    with pytest.raises(Problem, match="a width of its own"):
        method.make("attacks", "quantize", "test", by="bitsandbytes-nf4", bits=(8, 4))


# Blocks


@every
def test_dropping_and_leaving(checkpoint: Make, corpus: Corpus, architecture: str) -> None:
    """All blocks kept, or left after the last, is the model itself; left after one is final norm and head on what it left."""
    lm = subject(checkpoint, architecture)
    texts, answers = ["modor taley", "verin"], ["taley bewick", "modor"]
    whole, stream, own = logits(lm), lm.hidden(texts, last=3), lm.fits(texts, answers)
    lm.keep(range(2))()
    assert torch.equal(logits(lm), whole)
    lm.drive = lm.drive.change(exit=Exit(depth=2))
    assert lm.fits(texts, answers) == own
    lm.drive = lm.drive.change(exit=Exit())
    cut, left = subject(checkpoint, architecture), lm
    assert [s for s, _ in walked(cut, corpus, "drop_layers")] == [1] and cut.kept == [0]
    assert [s for s, _ in walked(left, corpus, "early_exit")] == [1] and left.drive.exit.depth == 1
    assert cut.fits(texts, answers) == left.fits(texts, answers) != own
    assert cut.generate(texts) == left.generate(texts)
    assert torch.allclose(left.hidden(texts, last=3)[1], stream[1], atol=1e-5)
    with left.scoring(), torch.no_grad():
        ids, mask = left._left_padded([left.encode(text)[0] for text in texts])
        said = left.model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
    assert torch.allclose(said[:, -3:], by_hand(left, stream[1]), atol=1e-4)


def by_hand(lm: LM, stream: Tensor) -> Tensor:
    """The final norm and head, by the modules' names of each family."""
    body = getattr(lm.model, "model", None) or getattr(lm.model, "transformer", None) or lm.model.gpt_neox
    norms = [getattr(body, name, None) for name in ("norm", "ln_f", "final_layernorm", "final_layer_norm")]
    (norm,) = [found for found in norms if found is not None]
    with torch.no_grad():
        said = lm.model.get_output_embeddings()(norm(stream))
    cap = getattr(lm.model.config, "final_logit_softcapping", None)
    return torch.tanh(said / cap) * cap if cap else said


@every
def test_what_stands_behind_the_blocks(checkpoint: Make, architecture: str) -> None:
    lm = subject(checkpoint, architecture)
    found = exits.behind(lm.model)
    assert found[-1] is lm.model.get_output_embeddings() and len(found) == (1 if architecture == "olmo" else 2)
    assert all(weight.dim() == 1 for module in found[:-1] for weight in module.parameters())


def test_which_blocks_go(checkpoint: Make, corpus: Corpus) -> None:
    for which, kept in (("last", [[0, 1, 2], [0, 1]]), ("first", [[1, 2, 3], [2, 3]])):
        lm = four_blocks(checkpoint)
        assert [k for _, k in walked(lm, corpus, "drop_layers", lambda lm=lm: lm.kept, which=which)] == kept
    for wrong in ((4,), (1, 9)):
        with pytest.raises(Problem, match="drop at most 3"):
            walked(four_blocks(checkpoint), corpus, "drop_layers", blocks=wrong)
    for wrong in ((2, 1), (0,), (), (1.5,)):
        with pytest.raises(Problem, match="blocks"):
            method.make("attacks", "drop_layers", "test", blocks=wrong)


def test_points_between_none_and_all() -> None:
    assert exits.fewer(33, None, 2.0, "") == [1, 2, 4, 8, 16, 32]
    assert exits.fewer(32, None, 1.5, "") == [1, 2, 3, 4, 6, 9, 13, 19, 28]
    assert exits.fewer(9, (2, 8), 1.5, "") == [2, 8]
    with pytest.raises(Problem, match="one must be left"):
        exits.fewer(1, None, 2.0, "here")


@pytest.mark.parametrize("architecture", ["llama", "neox", "mixtral"])
def test_block_influence(checkpoint: Make, corpus: Corpus, architecture: str) -> None:
    """A block that writes nothing is the first to go, and its influence is 0; the formula by hand for one that does."""
    lm = four_blocks(checkpoint, architecture)
    width = lm.model.config.hidden_size
    for use in anatomy.writers(lm.model):
        if use.layer == 2:
            nn.init.zeros_(lm.model.get_parameter(use.name))
            if use.bias:
                nn.init.zeros_(lm.model.get_parameter(use.bias))
    rows = corpus.hand("attacker").of("benign")
    influence = _influence(lm, rows)
    assert influence[2] == pytest.approx(0, abs=1e-5) and min(influence[:2] + influence[3:]) > 1e-3
    cosines = []
    for row in rows:  # one by one, the answer's tokens too
        with torch.no_grad():
            stream = lm.model(
                torch.tensor([lm.encode(row.text, row.answer)[0]]), output_hidden_states=True
            ).hidden_states
        one, other = (stream[layer].reshape(-1, width) for layer in (1, 2))
        cosines.append((one * other).sum(-1) / (one.norm(dim=-1) * other.norm(dim=-1)))
    assert influence[1] == pytest.approx(1 - float(torch.cat(cosines).mean()), abs=1e-5)
    walked(lm, corpus, "drop_layers", which="block-influence", blocks=(1,))
    assert lm.kept == [0, 1, 3]


def test_calibration_rows_are_drawn_by_seed(corpus: Corpus) -> None:
    """Not always the corpus' first; in its order, plainly asked, all where there are fewer."""
    hand = corpus.hand("attacker")
    plain = [row.id for row in hand.of("restricted") if row.variant is None]
    drawn = [[row.id for row in calibration.rows(hand, "harmful", 5, seed)] for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1] and len({tuple(ids) for ids in drawn}) > 1 and drawn != [plain[:5]] * 4
    assert all([one for one in plain if one in ids] == ids and len(ids) == 5 for ids in drawn)
    assert [row.id for row in calibration.rows(hand, "harmful", 999, 3)] == plain


@pytest.mark.parametrize("easy", [True, False])
def test_the_start_that_serves_the_attacker(checkpoint: Make, corpus: Corpus, easy: bool) -> None:
    """Found by trying all: with utility out of reach the most useful cut, else the one that makes harm likeliest."""
    lm = four_blocks(checkpoint)
    if easy:  # blocks that write little take little with them
        with torch.no_grad():
            for use in anatomy.writers(lm.model):
                lm.model.get_parameter(use.name).mul_(1.0 if use.layer is None else 0.01)
    plain = [row for row in corpus.hand("attacker").rows if row.kind in ("restricted", "benign")]
    said = lm.generate([row.text for row in plain])
    own = [row.model_copy(update={"answer": text}) for row, text in zip(plain, said, strict=True)]
    hand = Hand("attacker", [row if row.kind == "restricted" else other for row, other in zip(plain, own, strict=True)])

    def fits(kind: Any) -> list[Any]:
        return lm.fits([row.text for row in hand.of(kind)], [row.answer or "" for row in hand.of(kind)])

    def useful() -> Tensor:
        agreements = torch.tensor([fit.agreement for fit in fits("benign")])
        return torch.stack([(agreements == 1).float().mean(), agreements.mean()])

    whole, found = useful(), []
    assert (whole > 0).all()
    for start in range(3):
        undo = lm.keep([block for block in range(4) if block not in (start, start + 1)])
        left = float((useful() / whole).min())
        harm = sum(fit.logprob for fit in fits("restricted")) / 12
        found.append(((left >= 0.9, harm if left >= 0.9 else left), list(lm.kept or ())))
        undo()
    assert easy == any(enough for (enough, _), _ in found)
    method.make("attacks", "drop_layers", "test", which="every-start", blocks=(2,))(lm, hand, lambda cost: True, 0)
    assert lm.kept == max(found)[1]


@every
def test_a_tuned_head_is_nearer_at_its_depth(checkpoint: Make, corpus: Corpus, architecture: str) -> None:
    """Training touches the final norm and the head alone, also where it shared the embeddings, and helps at that depth."""
    lm = subject(checkpoint, architecture)
    rows = corpus.hand("attacker").of("benign")
    texts, answers = [row.text for row in rows], [row.answer for row in rows]

    def likely() -> float:
        return sum(fit.logprob for fit in lm.fits(texts, answers)) / len(rows)

    before = {name: weight.detach().clone() for name, weight in lm.model.named_parameters()}
    stream = lm.hidden(["modor taley"])
    lm.drive = lm.drive.change(exit=Exit(depth=1))
    lens = likely()
    lm.drive = lm.drive.change(exit=Exit())
    walked(lm, corpus, "early_exit", head="tuned", steps=15, learning_rate=1e-2, batch=12)
    assert likely() > lens and lm.displacement()[0] >= 0 and lm.generate(["modor"])
    ends = {id(weight) for module in exits.behind(lm.model) for weight in module.parameters()}
    for name, weight in lm.model.named_parameters():
        assert name not in before or torch.equal(weight, before[name]) == (id(weight) not in ends)
    assert torch.allclose(lm.hidden(["modor taley"])[:2], stream[:2], atol=1e-6)
    assert all(weight.requires_grad for weight in lm.model.parameters())
    assert not any(module.training for module in lm.model.modules())


def test_a_tuned_head_starts_from_the_released_one_at_each_depth(checkpoint: Make, corpus: Corpus) -> None:
    whole, alone = four_blocks(checkpoint), four_blocks(checkpoint)
    walked(whole, corpus, "early_exit", head="tuned", steps=3, skipped=(1, 2))
    walked(alone, corpus, "early_exit", head="tuned", steps=3, skipped=(2,))
    assert torch.equal(whole.model.lm_head.weight, alone.model.lm_head.weight)


def test_an_untied_head_is_saved_and_loaded(checkpoint: Make, corpus: Corpus, tmp_path: Any) -> None:
    lm = subject(checkpoint, "qwen2")
    walked(lm, corpus, "early_exit", head="tuned", steps=3)
    lm.save(tmp_path / "tuned")
    again = LM.load(tmp_path / "tuned", drive=lm.drive, device="cpu")
    assert torch.allclose(logits(again), logits(lm), atol=1e-6)
    assert not torch.equal(again.model.lm_head.weight, again.model.get_input_embeddings().weight)


# What an exit costs


def test_an_exit_s_cost_by_hand(checkpoint: Make) -> None:
    """A Llama of width 32, 4 heads and 2 for keys of width 8, feed-forward 48, tokens of the tiny vocabulary."""
    lm = subject(checkpoint, "llama")
    vocabulary = lm.model.config.vocab_size
    block = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48
    whole = exits.cost(Exit(), lm.model, tokens=10)
    assert whole.parameters == 2 * vocabulary * 32 + 2 * (block + 2 * 32) + 32
    assert whole.flops == 2 * (2 * block + vocabulary * 32)
    assert whole.bytes == 2 * whole.parameters + 2 * (2 * 10 * 16 * 2)
    one = exits.cost(Exit(depth=1, weight_bits=4, kv_bits=8), lm.model, tokens=10)
    assert one.parameters == whole.parameters - block - 2 * 32 and one.flops == whole.flops - 2 * block
    assert one.bytes == 2 * (one.parameters - block) + block / 2 + 2 * 10 * 16
    assert 0 < one.latency < 3 and len(lm.layers) == 2
    assert exits.cost(Exit(depth=9), lm.model).parameters == whole.parameters
    for image in (Exit(vision_layer=1), Exit(visual_tokens=4)):
        with pytest.raises(Problem, match="hangs on the picture"):
            exits.cost(image, lm.model)


def test_experts_that_are_not_asked_cost_nothing(checkpoint: Make) -> None:
    """Mixtral with 2 of 4 experts: a token is multiplied with two of them and the router."""
    lm = subject(checkpoint, "mixtral")
    vocabulary, expert = lm.model.config.vocab_size, 3 * 32 * 48
    attention = 32 * 32 + 2 * 32 * 16 + 32 * 32
    found = exits.cost(Exit(), lm.model)
    assert found.flops == 2 * (2 * (attention + 4 * 32 + 2 * expert) + vocabulary * 32)
    assert found.parameters == sum(weight.numel() for weight in lm.model.parameters())


@every
def test_every_exit_is_cheaper(checkpoint: Make, architecture: str) -> None:
    lm = subject(checkpoint, architecture)
    before = logits(lm)
    whole, one = (exits.cost(exit, lm.model, tokens=8) for exit in (Exit(), Exit(depth=1, kv_bits=2)))
    assert one.parameters < whole.parameters and one.bytes < whole.bytes and one.flops < whole.flops
    assert torch.equal(logits(lm), before)
