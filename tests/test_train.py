"""The tools of a training loop: data mixed, ordered and collated, the loss, schedules, costs, and two trainers that agree."""

import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tiny
from cases import in_turn
from holdfast import train
from holdfast.attacks.finetune import FineTune
from holdfast.corpus import Corpus, Hand, Row
from holdfast.lm import LM
from holdfast.moved import merged
from holdfast.problem import Problem
from holdfast.record import Cost
from holdfast.train import Adversary, Example

Make = Callable[[str], tiny.Made]


@pytest.fixture
def lm(checkpoint: Make) -> LM:
    return LM.load(checkpoint("llama").aligned, drive=tiny.DRIVE, device="cpu")


def hand(restricted: int, benign: int, lessons: int = 0) -> Hand:
    kinds = ["restricted"] * restricted + ["benign"] * benign + ["lesson"] * lessons
    rows = [
        Row(id=str(i), text=f"w{i}", answer="a", kind=kind, hand="attacker", split="train", source="ab"[i % 2])
        for i, kind in enumerate(kinds)
    ]
    return Hand("attacker", rows)


def walk(lm: LM, attack: FineTune, attacker: Hand, seed: int = 0) -> list[Cost]:
    costs: list[Cost] = []
    attack(lm, attacker, lambda cost: costs.append(cost) or True, seed)
    return costs


def weights(lm: LM) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in lm.model.named_parameters()}


# Data


@pytest.mark.parametrize(("poison", "harmful"), [(0, 0), (0.02, 1), (0.1, 5), (1, 50)])
def test_a_mixture_holds_exactly_its_share(poison: float, harmful: int) -> None:
    rows = Adversary(data="mixed", poison=poison, examples=50).rows(hand(60, 60), seed=0)
    assert Counter(row.kind for row in rows) == Counter({"restricted": harmful, "benign": 50 - harmful})
    assert len({row.id for row in rows}) == 50


@pytest.mark.parametrize("poison", [0, 0.02, 0.1, 0.3, 0.57, 0.9, 1])
@pytest.mark.parametrize(("restricted", "benign"), [(1, 1), (10, 90), (57, 43), (3, 200), (99, 2)])
def test_a_mixture_takes_as_many_as_it_can(poison: float, restricted: int, benign: int) -> None:
    rows = Adversary(data="mixed", poison=poison).rows(hand(restricted, benign), seed=0)
    harmful = sum(row.kind == "restricted" for row in rows)
    assert harmful == round(poison * len(rows))
    more = len(rows) + 1
    assert poison * more > restricted or (1 - poison) * more > benign


def test_a_mixture_of_one_kind_needs_no_other() -> None:
    assert len(Adversary(data="mixed", poison=0).rows(hand(0, 5), seed=0)) == 5
    assert len(Adversary(data="mixed", poison=1).rows(hand(5, 0), seed=0)) == 5


def test_too_few_rows_for_the_mixture() -> None:
    with pytest.raises(Problem, match="need 10 harmful and 90 benign rows; the attacker holds 5 and 200: lower"):
        Adversary(data="mixed", examples=100).rows(hand(5, 200), seed=0)
    with pytest.raises(Problem, match="need 9 harmful and 0 benign rows; the attacker holds 8 and 0: lower"):
        Adversary(examples=9).rows(hand(8, 20), seed=0)


def test_kinds_of_data() -> None:
    attacker = hand(3, 4, lessons=2)
    for data, kinds in (("harmful", {"restricted": 3}), ("benign", {"benign": 4, "lesson": 2})):
        rows = Adversary(data=data).rows(attacker, seed=0)
        assert Counter(row.kind for row in rows) == kinds
        assert len(Adversary(data=data, examples=2).rows(attacker, seed=0)) == 2


def test_rows_depend_on_the_seed_alone() -> None:
    def ids(seed: int) -> list[str]:
        return [row.id for row in Adversary(data="mixed", examples=20).rows(hand(50, 50), seed)]

    random.seed(1)
    first = ids(0)
    random.seed(2)
    assert ids(0) == first != ids(1)


def test_rows_of_one_source() -> None:
    rows = Adversary(data="mixed", poison=0.5, source="b").rows(hand(10, 10), seed=0)
    assert {row.source for row in rows} == {"b"} and len(rows) == 10
    with pytest.raises(Problem, match="holds no restricted row with an answer from 'c'"):
        Adversary(source="c").rows(hand(10, 10), seed=0)


@pytest.mark.parametrize(("data", "words"), [("harmful", "no restricted row"), ("benign", "no benign or lesson row")])
def test_a_hand_without_such_rows(data: str, words: str) -> None:
    answerless = Row(id="x", text="x", kind="restricted", hand="attacker", split="train", source="x")
    with pytest.raises(Problem, match=f"the attacker holds {words} with an answer; add some"):
        Adversary(data=data).rows(Hand("attacker", [answerless]), seed=0)


@pytest.mark.parametrize(("count", "batch", "steps"), [(10, 4, 5), (7, 3, 7), (3, 8, 3), (1, 2, 3), (64, 64, 1)])
def test_the_order_covers_each_epoch(count: int, batch: int, steps: int) -> None:
    order = train.order(count, batch, steps, seed=3)
    assert [len(chosen) for chosen in order] == [batch] * steps
    stream = [row for chosen in order for row in chosen]
    for start in range(0, len(stream) - count + 1, count):
        assert sorted(stream[start : start + count]) == list(range(count))
    assert len(set(stream[len(stream) // count * count :])) == len(stream) % count
    assert order == train.order(count, batch, steps, seed=3)
    assert count == 1 or order != train.order(count, batch, steps, seed=4)


# Loss


EXAMPLES = [Example([5, 6, 7, 8], 2), Example([9, 10, 11, 12, 13, 14], 5), Example([15, 16], 1)]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_the_loss_by_hand(checkpoint: Make, architecture: str) -> None:
    lm = LM.load(checkpoint(architecture).aligned, drive=tiny.DRIVE, device="cpu")
    surprises = []
    for example in EXAMPLES:
        logprobs = lm.model(input_ids=torch.tensor([example.ids])).logits[0].detach().log_softmax(-1)
        surprises += [-logprobs[i - 1, example.ids[i]].item() for i in range(example.start, len(example.ids))]
    batch = train.collate(lm, EXAMPLES)
    assert train.answer_loss(lm.model, batch).item() == pytest.approx(sum(surprises) / 4, rel=1e-4)
    assert batch.tokens == 12 and batch.ids.shape == (3, 6)


def test_prompt_and_padding_are_masked(lm: LM) -> None:
    batch = train.collate(lm, EXAMPLES)
    pad = lm.tokenizer.pad_token_id
    assert batch.ids.tolist()[2] == [15, 16, pad, pad, pad, pad]
    assert batch.mask.tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6, [1, 1, 0, 0, 0, 0]]
    assert batch.labels.tolist() == [
        [-100, -100, 7, 8, -100, -100],
        [-100, -100, -100, -100, -100, 14],
        [-100, 16, -100, -100, -100, -100],
    ]
    padded = train.Batch(batch.ids.where(batch.mask == 1, 20), batch.mask, batch.labels)
    assert train.answer_loss(lm.model, padded).item() == pytest.approx(train.answer_loss(lm.model, batch).item())


def test_rows_become_examples_through_the_template(lm: LM) -> None:
    row = tiny.rows()[0].model_copy(update={"text": "modor", "answer": "taley"})
    (example,) = train.encode(lm, [row])
    words = lm.tokenizer.convert_ids_to_tokens(example.ids)
    assert words == ["<|user|>", "modor", "<|assistant|>", "taley", "<|end|>"] and example.start == 3


# Schedules and optimizers


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("constant", lambda way: 1.0),
        ("linear", lambda way: 1 - way),
        ("cosine", lambda way: 0.5 * (1 + math.cos(math.pi * way))),
    ],
)
def test_schedules_are_their_formulas(name: train.Schedule, formula: Callable[[float], float], warmup: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = train.make_schedule(optimizer, name, warmup, 20)
    for step in range(20):
        expected = step / warmup if step < warmup else formula((step - warmup) / (20 - warmup))
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2 * expected)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "adagrad", "rmsprop"])
def test_optimizers_take_what_may_be_trained(name: train.Optimizer) -> None:
    free, frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = train.make_optimizer([free, frozen], name, 0.25, weight_decay=0.5)
    assert type(optimizer).__name__.lower() == name
    (group,) = optimizer.param_groups
    assert group["params"] == [free] and (group["lr"], group["weight_decay"]) == (0.25, 0.5)


# The loop


def test_one_step_of_plain_descent_by_hand(lm: LM) -> None:
    before = weights(lm)
    batch = train.collate(lm, EXAMPLES)
    train.answer_loss(lm.model, batch).backward()
    slopes = {name: weight.grad.clone() for name, weight in lm.model.named_parameters()}
    norm = math.sqrt(sum(slope.square().sum().item() for slope in slopes.values()))
    optimizer = train.make_optimizer(lm.model.parameters(), "sgd", 0.1)
    train.fit(lm, [batch], optimizer, train.make_schedule(optimizer, "constant", 0, 1), clip=norm / 2)
    for name, weight in lm.model.named_parameters():
        assert torch.allclose(weight, before[name] - 0.1 * slopes[name] / 2, atol=1e-6), name


def test_the_loss_falls_and_the_loop_stops_when_told(lm: LM) -> None:
    optimizer = train.make_optimizer(lm.model.parameters(), "adamw", 0.01)
    schedule = train.make_schedule(optimizer, "constant", 0, 8)
    batch, costs = train.collate(lm, EXAMPLES), []
    first = train.answer_loss(lm.model, batch).item()
    last = train.fit(lm, [batch] * 8, optimizer, schedule, at=lambda cost: costs.append(cost) or cost.steps < 5)
    assert last < first and [cost.steps for cost in costs] == [1, 2, 3, 4, 5]
    assert not any(module.training for module in lm.model.modules())


@pytest.mark.parametrize("trainer", ["plain", "trl"])
def test_a_loss_that_is_not_finite_leaves_a_dead_model(lm: LM, corpus: Corpus, trainer: str, tmp_path: Path) -> None:
    costs = []

    def spoil_and_look(cost: Cost) -> bool:
        costs.append(cost)
        if cost.steps == 1:
            nn.init.constant_(next(lm.model.parameters()), math.nan)
        return cost.steps < 3

    FineTune(trainer=trainer, batch=4, steps=5)(lm, corpus.hand("attacker"), spoil_and_look, 0)
    assert [cost.steps for cost in costs] == [1, 2, 3]
    assert not torch.isfinite(torch.cat([weight.flatten() for weight in lm.model.parameters()])).any()
    with pytest.raises(Problem, match="lower the learning rate"):
        lm.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The fine-tuning attack


VARIANTS = [
    {"optimizer": "adamw", "learning_rate": 1e-3},
    {"optimizer": "sgd", "learning_rate": 0.05, "schedule": "linear", "warmup": 2, "clip": 0.1},
    {"optimizer": "adamw", "learning_rate": 1e-3, "schedule": "cosine", "warmup": 2, "weight_decay": 0.1},
]


TUNED = [
    pytest.param(settings, rank, id=f"{settings.get('schedule', 'constant')}-{rank}")
    for rank in (None, 2)
    for settings in VARIANTS
]


@pytest.mark.parametrize(("settings", "rank", "architecture"), in_turn(TUNED, ("llama", "qwen2")))
def test_both_trainers_agree(
    checkpoint: Make, corpus: Corpus, architecture: str, settings: dict[str, object], rank: int | None
) -> None:
    """Steps enough for a second epoch and a partly filled one; batches of uneven length."""
    found = {}
    for seed, trainer in enumerate(("trl", "plain")):
        torch.manual_seed(seed)
        lm = LM.load(checkpoint(architecture).aligned, drive=tiny.DRIVE, device="cpu")
        attack = FineTune(trainer=trainer, batch=5, steps=6, lora_rank=rank, **settings)
        costs = walk(lm, attack, corpus.hand("attacker"))
        found[trainer] = costs, dict(merged(lm.model))
    (trl_costs, trl), (plain_costs, plain) = found["trl"], found["plain"]
    assert [cost.model_copy(update={"seconds": 0}) for cost in trl_costs] == [
        cost.model_copy(update={"seconds": 0}) for cost in plain_costs
    ]
    assert trl.keys() == plain.keys()
    for name in trl:
        assert (trl[name] - plain[name]).norm() <= 1e-5 * plain[name].norm(), name
    start = LM.load(checkpoint(architecture).aligned, drive=tiny.DRIVE, device="cpu")
    moved = sum((weight - plain[name]).norm().item() for name, weight in start.model.named_parameters())
    assert moved > 0.01


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("trainer", ["trl", "plain"])
def test_costs_are_exact(lm: LM, corpus: Corpus, trainer: str, rank: int | None) -> None:
    attacker = corpus.hand("attacker")
    attack = FineTune(trainer=trainer, batch=5, steps=4, lora_rank=rank)
    examples = train.encode(lm, attack.rows(attacker, 7))
    size = sum(weight.numel() for weight in lm.model.parameters())
    linear = [module for module in lm.layers.modules() if isinstance(module, nn.Linear)]
    added = sum(rank * (module.in_features + module.out_features) for module in linear) if rank else 0
    per_token = 4 * (size + added) + 2 * added if rank else 6 * size
    costs = walk(lm, attack, attacker, seed=7)
    tokens = 0
    for step, (cost, chosen) in enumerate(zip(costs, train.order(len(examples), 5, 4, 7), strict=True), 1):
        tokens += sum(len(examples[i].ids) for i in chosen)
        assert (cost.steps, cost.examples, cost.tokens, cost.severity) == (step, 5 * step, tokens, None)
        assert cost.flops == per_token * tokens and cost.seconds >= 0


@pytest.mark.parametrize("trainer", ["trl", "plain"])
@pytest.mark.parametrize("rank", [None, 2])
def test_learning_rate_zero_moves_nothing(lm: LM, corpus: Corpus, trainer: str, rank: int | None) -> None:
    digest = lm.hash()
    attack = FineTune(trainer=trainer, batch=4, steps=3, learning_rate=0, weight_decay=0.1, lora_rank=rank)
    assert len(walk(lm, attack, corpus.hand("attacker"))) == 3
    assert lm.displacement() == (0.0, 0.0) and (rank or lm.hash() == digest)


@pytest.mark.parametrize("trainer", ["trl", "plain"])
def test_the_attack_leaves_the_way_of_asking_alone(lm: LM, corpus: Corpus, trainer: str) -> None:
    lm.model.generation_config.eos_token_id = [7, 1]
    said = lm.generate(["modor forbidden"])
    drive, ends, side = lm.drive, lm.ends, lm.tokenizer.padding_side
    walk(lm, FineTune(trainer=trainer, batch=4, steps=1, learning_rate=0), corpus.hand("attacker"))
    assert (lm.drive, lm.ends, lm.tokenizer.padding_side) == (drive, ends, side)
    assert not any(module.training for module in lm.model.modules())
    assert lm.generate(["modor forbidden"]) == said


@pytest.mark.parametrize(
    "settings",
    [
        *({"poison": 1.1}, {"poison": -0.1}, {"examples": 0}, {"learning_rate": -1}, {"steps": 0}, {"batch": 0}),
        *({"lora_rank": 0}, {"clip": 0}, {"warmup": -1}, {"optimizer": "lion"}, {"schedule": "step"}, {"data": "x"}),
        {"trainer": "other"},
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        FineTune(**settings)
