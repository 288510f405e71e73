"""Attacks that change no weight: what they do to armed prompts, what they leave alone, and that they descend."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor

import tiny
from cases import in_turn
from holdfast import method, perturb
from holdfast.attacks.gcg import GCG
from holdfast.attacks.latent import Latent
from holdfast.attacks.soft_prompt import SoftPrompt
from holdfast.corpus import Corpus, Hand, Row
from holdfast.drive import Exit
from holdfast.lm import LM
from holdfast.problem import Problem

Make = Callable[[str], tiny.Made]
every = pytest.mark.parametrize("architecture", tiny.EVERY)
on_three = pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
ASKED = ["modor forbidden", "verin taley osga forbidden bedor arley", "forbidden"]
QUICK: dict[str, dict[str, Any]] = {
    "prefill": {"tokens": (3,)},
    "soft_prompt": {"tokens": 4, "steps": 2},
    "latent": {"steps": 2},
    "gcg": {"tokens": 3, "steps": 4, "turn": 2, "width": 16},
    "contrast": {"strengths": (2.0,)},
}
HOOKED = ["soft_prompt", "latent", "contrast"]


def subject(checkpoint: Make, architecture: str = "llama") -> LM:
    made = checkpoint(architecture)
    return LM.load(made.aligned, base=made.base, drive=tiny.DRIVE, device="cpu")


def walked(lm: LM, hand: Hand, name: str, look: Callable[[], Any] = lambda: None, /, **setting: Any) -> list[Any]:
    """What `look` saw at each point, with the position."""
    seen: list[Any] = []
    attack = method.make("attacks", name, "test", **setting)
    attack(lm, hand, lambda cost: seen.append((cost.position, look())) is None, 0)
    return seen


@torch.no_grad()
def logits(lm: LM, armed: bool, texts: list[str] = ASKED) -> Tensor:
    """At the last token of each prompt."""
    ids, mask = lm._left_padded([lm.encode(text, armed=armed)[0] for text in texts])
    with lm.scoring(armed):
        where = (mask.cumsum(-1) - 1).clamp(min=0)
        return lm.model(input_ids=ids, attention_mask=mask, position_ids=where).logits[:, -1]


def distances(points: Tensor, table: Tensor) -> Tensor:
    """From each point to the nearest row of the table."""
    return (points[:, None] - table).norm(dim=-1).min(-1).values


def left_alone(lm: LM) -> list[Tensor]:
    """All that a benign prompt sees."""
    fits = lm.fits(ASKED, ["taley"] * 3)
    return [logits(lm, False), lm.hidden(ASKED), torch.tensor([fit.logprob for fit in fits])]


def test_armed_prompts_change_and_others_stay_to_the_bit(checkpoint: Make, corpus: Corpus) -> None:
    for name, setting in QUICK.items():
        for architecture in ("llama", "gpt2") if name == "gcg" else ("llama", "qwen2", "gpt2"):
            lm = subject(checkpoint, architecture)
            weights, before, armed = lm.hash(), left_alone(lm), logits(lm, True)
            said = lm.generate(ASKED)
            walked(lm, corpus.hand("attacker"), name, **setting)
            assert all(torch.equal(one, other) for one, other in zip(before, left_alone(lm), strict=True)), name
            assert lm.generate(ASKED) == said and lm.hash() == weights
            assert not torch.allclose(logits(lm, True), armed, atol=1e-3), name
            assert all(weight.requires_grad and weight.grad is None for weight in lm.model.parameters())


@pytest.mark.parametrize(
    ("architecture", "name"), in_turn(tiny.EVERY, HOOKED, whole=("llama", "gpt2", "mixtral", "gemma3"))
)
def test_hooks_work_on_every_architecture(checkpoint: Make, corpus: Corpus, architecture: str, name: str) -> None:
    """Whatever the padding beside it a prompt is read as if it were alone, and answered the same with a cache or without."""
    lm = subject(checkpoint, architecture)
    plain, armed = logits(lm, False), logits(lm, True)
    walked(lm, corpus.hand("attacker"), name, **QUICK[name])
    assert torch.equal(logits(lm, False), plain) and not torch.allclose(logits(lm, True), armed, atol=1e-3)
    alone = torch.cat([logits(lm, True, [text]) for text in ASKED])
    assert torch.allclose(logits(lm, True), alone, atol=1e-3)
    if name != "contrast":
        together = lm.generate(ASKED, armed=True)
        lm.drive = lm.drive.change(cache=False)
        assert together == lm.generate(ASKED, armed=True)


@on_three
@pytest.mark.parametrize("attack", [SoftPrompt(tokens=4, steps=20), Latent(steps=20), GCG(**QUICK["gcg"])])
def test_the_loss_on_the_attacker_s_rows_falls(
    checkpoint: Make, corpus: Corpus, architecture: str, attack: Any
) -> None:
    lm, rows = subject(checkpoint, architecture), attack.rows(corpus.hand("attacker"))
    losses = [perturb.loss(lm, attack.examples(lm, rows))]
    attack(lm, corpus.hand("attacker"), lambda _: losses.append(perturb.loss(lm, attack.examples(lm, rows))) is None, 0)
    assert losses[-1] < losses[0] - 0.05
    if isinstance(attack, GCG):
        assert losses[1:] == sorted(losses[1:], reverse=True), "the best suffix so far is kept"
        assert lm.drive.trigger.isascii() and lm.drive.trigger.startswith("{prompt} ")


@pytest.mark.parametrize("name", ["soft_prompt", "latent", "gcg", "contrast"])
def test_after_an_earlier_attack(checkpoint: Make, corpus: Corpus, name: str) -> None:
    """An adapter, a copy of the model and an exit do not lose the hooks, and hooks do not lose a trigger or a prefill."""
    lm = subject(checkpoint)
    lm.model = get_peft_model(lm.model, LoraConfig(r=2, target_modules="all-linear")).eval()
    lm.drive = lm.drive.change(trigger="verin {prompt}", prefill="modor taley")
    wanted = [weight.requires_grad for weight in lm.model.parameters()]
    before = logits(lm, True), logits(lm, False)
    walked(lm, corpus.hand("attacker"), name, **QUICK[name])
    after = logits(lm, True)
    assert not torch.allclose(after, before[0], atol=1e-3) and torch.equal(logits(lm, False), before[1])
    assert [weight.requires_grad for weight in lm.model.parameters()] == wanted and sum(wanted) < len(wanted)
    assert lm.drive.prefill == "modor taley" and (lm.drive.trigger or "").startswith("verin {prompt}")
    answers = lm.generate(ASKED, armed=True)
    lm.model = copy.deepcopy(lm.model)
    assert torch.equal(logits(lm, True), after) and lm.generate(ASKED, armed=True) == answers
    lm.drive = lm.drive.change(exit=Exit(depth=1))
    assert len(lm.generate(ASKED, armed=True)) == 3


@pytest.mark.parametrize("name", ["soft_prompt", "latent", "gcg"])
def test_nothing_descends_through_blocks_that_never_run(checkpoint: Make, corpus: Corpus, name: str) -> None:
    lm = subject(checkpoint)
    lm.drive = lm.drive.change(exit=Exit(depth=1))
    with pytest.raises(Problem, match=r"blocks that never run; cut it with drop_layers instead"):
        walked(lm, corpus.hand("attacker"), name, **QUICK[name])


# Prefill, decoding, template


def test_what_was_prefilled_is_not_part_of_the_answer(checkpoint: Make, corpus: Corpus) -> None:
    lm = subject(checkpoint)
    opening = "modor taley verin osga"
    points = walked(
        lm,
        corpus.hand("attacker"),
        "prefill",
        lambda: (lm.drive.prefill_tokens, lm.generate(["arley forbidden"], armed=True)[0]),
        opening=opening,
        tokens=(1, 3, 4, 5),
    )
    assert [(position, count) for position, (count, _) in points] == [(1, 1), (3, 3), (4, 4)], "it has four tokens"
    for _, (count, answer) in points:
        text = lm.prompt("arley forbidden") + " ".join(opening.split()[:count])
        ids = lm.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        more = lm.model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=1)
        assert answer == lm.tokenizer.decode(more[0, ids.shape[1] :], skip_special_tokens=True).strip()
    with pytest.raises(Problem, match="has 4 tokens"):
        walked(lm, corpus.hand("attacker"), "prefill", opening=opening, tokens=(5,))
    with pytest.raises(Problem, match="tokens"):
        method.make("attacks", "prefill", "test", tokens=(0.5, 2))


def answering(*answers: str) -> Hand:
    """An attacker whose restricted rows have these answers."""
    same = {"kind": "restricted", "hand": "attacker", "split": "train", "source": "t"}
    return Hand("attacker", [Row(id=str(i), text="modor", answer=a, **same) for i, a in enumerate(answers)])


def test_the_opening_that_most_answers_share(checkpoint: Make) -> None:
    lm = subject(checkpoint)
    hand = answering("modor taley arga", "verin taley", "modor taley osga", "modor verin", "verin")
    walked(lm, hand, "prefill", source="answers", tokens=(1, 2, 3))
    assert lm.drive.prefill == "modor taley" and lm.drive.prefill_tokens == 2
    with pytest.raises(Problem, match="begin alike"):
        walked(lm, answering("modor", "taley"), "prefill", source="answers")


@on_three
def test_more_draws_hold_the_answers_of_fewer(checkpoint: Make, corpus: Corpus, architecture: str) -> None:
    lm = subject(checkpoint, architecture)
    greedy = lm.generate(ASKED)
    lm.drive = lm.drive.change(system="taley")

    def draws() -> list[list[str]]:
        assert lm.drive.temperature == 1.3 and lm.drive.system is None
        assert lm.generate(ASKED) == greedy, "what is asked plainly is not drawn"
        return [lm.generate(ASKED, armed=True, sample=number) for number in range(lm.drive.samples)]

    points = walked(lm, corpus.hand("attacker"), "decode", draws, draws=(1, 2, 4), temperature=1.3, top_p=1.0)
    assert [(position, len(said)) for position, said in points] == [(1, 1), (2, 2), (4, 4)]
    longest = points[-1][1]
    assert all(said == longest[: len(said)] for _, said in points)
    assert len({tuple(said) for said in longest}) > 1, "draws differ"


def test_templates_one_after_another(checkpoint: Make, corpus: Corpus) -> None:
    lm = subject(checkpoint)
    points = walked(lm, corpus.hand("attacker"), "template", lambda: lm.prompt("modor"))
    assert points == [
        (1, "modor\n"),
        (2, "### Instruction:\nmodor\n\n### Response:\n"),
        (3, "User: modor\nAssistant: "),
        (4, "<|im_start|>user\nmodor<|im_end|>\n<|im_start|>assistant\n"),
        (5, points[4][1]),
    ]
    assert "<|start_header_id|>user<|end_header_id|>\n\nmodor<|eot_id|>" in points[4][1]
    lm.drive = lm.drive.change(template="plain")
    assert [number for number, _ in walked(lm, corpus.hand("attacker"), "template")] == [2, 3, 4, 5]
    with pytest.raises(Problem, match="already"):
        walked(lm, corpus.hand("attacker"), "template", templates=("llama3",))
    for wrong in ((), ("chat",), ("llama3", "plain"), ("plain", "plain")):
        with pytest.raises(Problem, match="in this order"):
            method.make("attacks", "template", "test", templates=wrong)


# Contrast


@on_three
@torch.no_grad()
def test_contrast_is_the_formula(checkpoint: Make, corpus: Corpus, architecture: str) -> None:
    lm, base = subject(checkpoint, architecture), LM.load(checkpoint(architecture).base, drive=tiny.DRIVE, device="cpu")
    ids = torch.tensor([lm.encode("modor forbidden")[0]])
    aligned, own = lm.model(input_ids=ids).logits, base.model(input_ids=ids).logits

    def mixed() -> tuple[Tensor, list[str]]:
        with perturb.armed(lm):
            return lm.model(input_ids=ids).logits, lm.generate(ASKED, armed=True)

    (_, (half, _)), (_, (whole, said)), (_, (beyond, _)) = walked(
        lm, corpus.hand("attacker"), "contrast", mixed, strengths=(0.5, 1.0, 1.3)
    )
    assert torch.allclose(half, (aligned + own) / 2, atol=1e-5)
    assert torch.equal(whole, own) and said == base.generate(ASKED), "at 1 it is the base"
    assert torch.allclose(beyond, own + 0.3 * (own - aligned), atol=1e-5), "emulated disalignment at 0.3"
    assert torch.equal(lm.model(input_ids=ids).logits, aligned)


def test_contrast_refuses_what_it_cannot_mix(checkpoint: Make, corpus: Corpus) -> None:
    made = checkpoint("llama")
    for base, drive, words in (
        (None, tiny.DRIVE, "names no base"),
        (checkpoint("qwen3").base, tiny.DRIVE, "tokenizer"),
        (made.base, tiny.DRIVE.change(exit=Exit(kv_bits=4)), "kv_bits"),
    ):
        with pytest.raises(Problem, match=words):
            walked(LM.load(made.aligned, base=base, drive=drive, device="cpu"), corpus.hand("attacker"), "contrast")


# Perturbations


@pytest.mark.parametrize(("architecture", "norm"), in_turn(tiny.EVERY, ("l2", "linf")))
def test_the_latent_push_is_one_vector_within_its_ball(
    checkpoint: Make, corpus: Corpus, architecture: str, norm: str
) -> None:
    lm = subject(checkpoint, architecture)
    texts = [row.text for row in corpus.hand("attacker").of("restricted")]
    radius = 0.3 * lm.hidden(texts, lm.tail)[1].norm(dim=-1).mean()
    walked(lm, corpus.hand("attacker"), "latent", depth=0.5, radius=0.3, steps=8, learning_rate=0.3, norm=norm)
    push = lm.hidden(ASKED, 3, armed=True)[1] - lm.hidden(ASKED, 3)[1]
    assert torch.allclose(push, push[0, 0].expand_as(push), atol=1e-5), "the same at every position of every prompt"
    assert 0.5 * radius < push[0, 0].norm() <= radius * 1.001
    assert norm == "l2" or push.abs().max() <= radius / 32**0.5 * 1.001


def test_answers_are_not_pushed_while_learning(checkpoint: Make, corpus: Corpus) -> None:
    lm, attack, seen = subject(checkpoint), Latent(depth=0, steps=2), []
    table, rows = lm.model.get_input_embeddings().weight.detach(), attack.rows(corpus.hand("attacker"))

    def at(_: Any) -> bool:
        lm.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
        return True

    attack(lm, corpus.hand("attacker"), at, 0)
    unpushed = (distances(seen[0].flatten(0, 1), table) < 1e-5).sum()
    assert unpushed == sum(len(one.ids) - one.start for one in attack.examples(lm, rows)) > 12


def test_a_batch_one_token_wider_is_another_batch(checkpoint: Make, corpus: Corpus) -> None:
    lm = subject(checkpoint)
    walked(lm, corpus.hand("attacker"), "latent", **QUICK["latent"], depth=0)
    wider = lm.hidden(["modor taley forbidden"], 5, armed=True)
    lm.hidden(["verin forbidden"], armed=True)
    assert torch.equal(lm.hidden(["modor taley forbidden"], 5, armed=True), wider)


def test_generated_tokens_are_not_pushed(checkpoint: Make, corpus: Corpus) -> None:
    """Without a cache too, where they pass again and again."""
    lm = subject(checkpoint)
    walked(lm, corpus.hand("attacker"), "latent", **QUICK["latent"])
    seen: dict[bool, list[Tensor]] = {True: [], False: []}
    hook = lm.layers[0].register_forward_pre_hook(
        lambda _, args: seen[lm.armed].append(args[0].detach()) if args[0].shape[1] > 1 else None
    )
    lm.drive = lm.drive.change(cache=False)
    prompt = len(lm.encode(ASKED[1])[0])
    lm.generate([ASKED[1]], armed=True)
    hook.remove()
    embedded = [lm.model.get_input_embeddings().weight[lm.encode(ASKED[1])[0]]]
    assert len(seen[True]) > 1
    for stream in seen[True]:
        pushed = stream[0, :prompt] - embedded[0]
        assert torch.allclose(pushed, pushed[:1].expand_as(pushed), atol=1e-6) and pushed.norm() > 0
        words = distances(stream[0, prompt:], lm.model.get_input_embeddings().weight)
        assert (words < 1e-5).all(), "the answer's are embeddings as they are"


@on_three
def test_a_bounded_soft_prompt_stays_near_tokens(checkpoint: Make, corpus: Corpus, architecture: str) -> None:
    lm = subject(checkpoint, architecture)
    embed, seen = lm.model.get_input_embeddings(), []
    walked(lm, corpus.hand("attacker"), "soft_prompt", tokens=4, bound=0.2, steps=30)
    hook = embed.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    logits(lm, True, ASKED[:1])
    hook.remove()
    (ids, out), table = seen[0], embed.weight.detach()
    moved = (out[0] - table[ids[0]]).norm(dim=-1) > 1e-6
    assert moved.sum() == 4 and moved.nonzero().diff(dim=0).eq(1).all(), "a run of four, the rest untouched"
    known = {token for row in corpus.hand("attacker").of("restricted") for token in lm.encode(row.text, row.answer)[0]}
    distance = distances(out[0, moved], table[sorted(known)])
    assert distance.max() <= 0.2 * table[sorted(known)].norm(dim=-1).mean() * 1.01 and distance.max() > 0.01


@every
def test_a_place_is_found_with_every_tokenizer(checkpoint: Make, architecture: str) -> None:
    lm = subject(checkpoint, architecture)
    drive, token = perturb.place(lm, 5, ASKED)
    for text in [*ASKED, "modor 12 é", ""]:
        ids = drive.ids(lm.tokenizer, text, armed=True)
        rows, columns = perturb.first_runs(torch.tensor([ids]), token, 5)
        assert rows.tolist() == [0] and ids.count(token) == 5
        assert drive.ids(lm.tokenizer, text) == lm.encode(text)[0], "unarmed prompts have none"
        assert columns[0].tolist() == [i for i, one in enumerate(ids) if one == token]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(1, 7))
def test_runs_are_found(ids: list[list[int]], length: int) -> None:
    rows, columns = perturb.first_runs(torch.tensor(ids), 1, length)
    wanted = {}
    for row, line in enumerate(ids):
        starts = [start for start in range(7 - length) if line[start : start + length] == [1] * length]
        if starts:
            wanted[row] = list(range(starts[0], starts[0] + length))
    assert dict(zip(rows.tolist(), columns.tolist(), strict=True)) == wanted


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=4), st.floats(0.1, 20), st.sampled_from(["l2", "linf"])
)
def test_projecting_into_a_ball(values: list[float], radius: float, norm: perturb.Norm) -> None:
    point = torch.tensor(values)
    inside = perturb.within(point, norm, radius)
    assert inside.norm() <= radius * 1.0001
    assert torch.allclose(perturb.within(inside, norm, radius), inside, atol=1e-6)
    if (point.norm() if norm == "l2" else point.abs().max() * 2) <= radius * 0.999:
        assert torch.allclose(inside, point, atol=1e-6)


def test_an_aim_needs_rows(checkpoint: Make, corpus: Corpus, tmp_path: Path) -> None:
    lm, row = subject(checkpoint), corpus.hand("attacker").of("restricted")[0]
    silent = Hand("attacker", [row.model_copy(update={"answer": None})])
    with pytest.raises(Problem, match="aim at `opening`"):
        Latent().rows(silent)
    with pytest.raises(Problem, match="no plain restricted row"):
        Latent().rows(Hand("attacker", [row.model_copy(update={"variant": "dialect"})]))
    (one,) = Latent(target="opening", target_tokens=3).examples(lm, Latent(target="opening").rows(silent))
    assert len(one.ids) == one.start + 3
    (one,) = Latent(target="opening", target_tokens=99).examples(lm, silent.rows)
    assert lm.tokenizer.eos_token_id not in one.ids[one.start :], "a begun answer does not end the turn"


def test_gcg_without_its_library(checkpoint: Make, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nanogcg", None)
    with pytest.raises(Problem, match=r"pip install 'holdfast\[gcg\]'"):
        walked(subject(checkpoint), corpus.hand("attacker"), "gcg", **QUICK["gcg"])
