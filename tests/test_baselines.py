"""Baseline defenses: their losses in closed form, what they leave alone, and that a spoiled training saves nothing."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from holdfast import hardening, method, train
from holdfast.corpus import Corpus, Hand
from holdfast.defenses import booster, circuit_breakers, latent_adversarial, repnoise, vaccine
from holdfast.hardening import Training
from holdfast.lm import LM
from holdfast.problem import Problem
from holdfast.refusals import refuses

Make = Callable[[str], tiny.Made]
QUICK = {"steps": 4, "batch": 4, "varied": 12}
BASELINES = ("booster", "circuit_breakers", "latent_adversarial", "repnoise", "vaccine")
every_baseline = pytest.mark.parametrize("name", BASELINES)


@pytest.fixture
def lm(checkpoint: Make) -> LM:
    lm = LM.load(checkpoint("llama").aligned, drive=tiny.DRIVE, device="cpu")
    lm.model(
        input_ids=torch.tensor([[1]]), output_hidden_states=True
    )  # transformers leaves hooks of its own the first time
    return lm


@pytest.fixture
def defender(corpus: Corpus) -> Hand:
    return corpus.hand("defender")


def weights(lm: LM) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in lm.model.named_parameters()}


def some(lm: LM, hand: Hand, kind: Any = "restricted", count: int = 4) -> train.Batch:
    return train.collate(lm, train.encode(lm, hand.of(kind, split="train")[:count]))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


# All of them


@every_baseline
def test_it_changes_the_weights_and_nothing_else(lm: LM, defender: Hand, name: str) -> None:
    before, ours, notes = weights(lm), hooks(lm.model), tiny.Notes()
    names, modes = [n for n, _ in lm.model.named_modules()], [m.training for m in lm.model.modules()]
    method.make("defenses", name, "test", **QUICK)(lm, defender, notes)
    assert before.keys() == weights(lm).keys() and names == [n for n, _ in lm.model.named_modules()]
    assert lm.finite() and any(not torch.equal(before[n], weight) for n, weight in weights(lm).items())
    assert hooks(lm.model) == ours and modes == [m.training for m in lm.model.modules()]
    assert all(weight.grad is None and weight.requires_grad for weight in lm.model.parameters())
    assert notes.lines[-1]["step"] == QUICK["steps"]
    assert all(
        isinstance(value, int | float) and math.isfinite(value) for line in notes.lines for value in line.values()
    )


@every_baseline
def test_it_keeps_what_the_model_says(lm: LM, defender: Hand, name: str) -> None:
    rows = defender.of("restricted", "benign", split="train")
    before = lm.generate([row.text for row in rows])
    method.make("defenses", name, "test", **QUICK | {"steps": 10, "learning_rate": 1e-3})(lm, defender, tiny.Notes())
    after = lm.generate([row.text for row in rows])
    assert sum(one == other for one, other in zip(before, after, strict=True)) >= 0.9 * len(rows)


@every_baseline
def test_a_spoiled_training_saves_nothing(checkpoint: Make, defender: Hand, tmp_path: Any, name: str) -> None:
    made = checkpoint("llama")
    defense = method.make("defenses", name, "test", **QUICK | {"learning_rate": 1e30, "steps": 8})
    with pytest.raises(Problem, match=f"{name}: .*lower learning_rate|{name}: .*Lower learning_rate"):
        defense.harden(made.base, made.aligned, tmp_path / "out", defender, tiny.Notes(), tiny.DRIVE)
    assert not (tmp_path / "out").exists()


@every_baseline
def test_it_says_what_it_lacks(lm: LM, checkpoint: Make, defender: Hand, name: str) -> None:
    defense = method.make("defenses", name, "test", **QUICK)
    with pytest.raises(Problem, match=f"{name}: needs the defender's prompts"):
        defense(lm, None, tiny.Notes())
    bare = Hand("defender", [row.model_copy(update={"answer": None}) for row in defender.rows])
    with pytest.raises(Problem, match=f"{name}: no restricted prompt .* harmful answer"):
        defense(lm, bare, tiny.Notes())
    with pytest.raises(Problem, match=f"{name}: the model answers none"):
        defense(lm, Hand("defender", defender.of("restricted")), tiny.Notes())
    base = LM.load(checkpoint("llama").base, drive=tiny.DRIVE, device="cpu")
    with pytest.raises(Problem, match=f"{name}: the model refuses none"):
        defense(base, defender, tiny.Notes())


@every_baseline
def test_the_preset_is_the_paper_s(name: str) -> None:
    kind = method.find("defenses", name)
    made = kind(preset="paper")
    assert kind.published and {field: getattr(made, field) for field in kind.published} == dict(kind.published)
    with pytest.raises(Problem, match="preset 'paper' means varied 0, but 7 is given"):
        method.make("defenses", name, "test", preset="paper", varied=7)


def test_the_defender_sees_no_other_hand_s_rows(lm: LM, defender: Hand) -> None:
    lessons = Training().lessons(lm, defender)
    assert {row.hand for row in lessons.harmful + lessons.kept} == {"defender"}
    assert {row.split for row in lessons.harmful + lessons.kept} == {"train"}
    assert lessons.harmful == defender.of("restricted", split="train")
    assert all(refuses(row.answer) for row in lessons.refusals) and len(lessons.refusals) > 6
    assert not any(refuses(row.answer) for row in lessons.answers) and len(lessons.kept) > 36


# Booster


def test_booster_s_gradient_is_that_of_its_loss_with_the_step_held_constant() -> None:
    """Of a quadratic form, by central differences."""
    chance = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=chance, dtype=torch.float64)
    curvature, start = root @ root.T, torch.randn(6, generator=chance, dtype=torch.float64)
    one, other = (nn.Parameter(part.clone()) for part in (start[:2], start[2:]))
    before = curvature @ start
    step = 0.3 * before / before.norm()

    def form(at: Tensor) -> Tensor:
        return at @ curvature @ at / 2

    gain, gradients = booster.gained(lambda: form(torch.cat([one, other])), [one, other], 0.3)
    assert gain == pytest.approx(float(form(start) - form(start - step)))
    for axis in range(6):
        ahead = torch.zeros(6, dtype=torch.float64)
        ahead[axis] = 1e-4
        rise = (form(start + ahead) - form(start + ahead - step)) - (form(start - ahead) - form(start - ahead - step))
        assert float(torch.cat(gradients)[axis]) == pytest.approx(float(rise / 2e-4), rel=1e-6)
    assert torch.equal(torch.cat([one, other]), start), "the weights are where they were"


def test_a_small_step_gains_the_gradient_s_length(lm: LM, defender: Hand) -> None:
    batch, found = some(lm, defender), list(lm.model.parameters())
    gradient = torch.autograd.grad(train.answer_loss(lm.model, batch), found)
    norm = float(torch.linalg.vector_norm(torch.stack([one.norm() for one in gradient])))
    gain, _ = booster.gained(lambda: train.answer_loss(lm.model, batch), found, 1e-3)
    assert gain == pytest.approx(1e-3 * norm, rel=0.05)


def test_booster_makes_a_harmful_step_gain_less(lm: LM, checkpoint: Make, defender: Hand) -> None:
    def gain(strength: float) -> float:
        lm = LM.load(checkpoint("llama").aligned, drive=tiny.DRIVE, device="cpu")
        settings = QUICK | {"steps": 15, "learning_rate": 2e-3, "strength": strength}
        method.make("defenses", "booster", "test", **settings)(lm, defender, tiny.Notes())
        batch = some(lm, defender, count=12)
        return booster.gained(lambda: train.answer_loss(lm.model, batch), list(lm.model.parameters()), 0.1)[0]

    assert gain(5.0) < 0.7 * gain(0.0)


# Circuit breakers


def test_rerouting_is_done_at_a_right_angle() -> None:
    here, across = torch.tensor([[[3.0, 0.0], [0.0, 2.0]]]), torch.tensor([[[0.0, 5.0], [1.0, 0.0]]])
    everywhere, first = torch.tensor([[True, True]]), torch.tensor([[True, False]])
    assert circuit_breakers.rerouting([here], [across], everywhere) == 0
    assert circuit_breakers.rerouting([here], [-here], everywhere) == 0, "and beyond"
    assert circuit_breakers.rerouting([here], [2 * here], everywhere) == 1, "length does not matter"
    assert circuit_breakers.rerouting([here, here], [here, across], everywhere) == 0.5, "mean over layers"
    slanted = torch.tensor([[[1.0, 1.0], [math.nan, 0.0]]])
    assert circuit_breakers.rerouting([slanted], [here], first) == pytest.approx(0.5**0.5), "where it is told to look"


def test_what_did_not_move_has_no_distance_and_a_finite_gradient() -> None:
    states = torch.ones(1, 2, 4, requires_grad=True)
    lost = circuit_breakers.distance([states], [states.detach()], torch.tensor([[True, True]]))
    lost.backward()
    assert lost == 0 and torch.equal(states.grad, torch.zeros_like(states))
    moved = torch.ones(1, 2, 4)
    moved[0, 0] += 2
    assert circuit_breakers.distance([moved], [torch.ones(1, 2, 4)], torch.tensor([[True, False]])) == 4


def test_circuit_breakers_turn_harmful_states_and_keep_the_others(lm: LM, checkpoint: Make, defender: Hand) -> None:
    settings = QUICK | {"steps": 40, "learning_rate": 5e-3, "retain": 0.05}
    method.make("defenses", "circuit_breakers", "test", **settings)(lm, defender, tiny.Notes())
    before = LM.load(checkpoint("llama").aligned, drive=tiny.DRIVE, device="cpu")

    @torch.no_grad()
    def still(batch: train.Batch) -> float:
        states = [one.model(input_ids=batch.ids, output_hidden_states=True).hidden_states[1] for one in (lm, before)]
        return float(circuit_breakers.rerouting(states[:1], states[1:], batch.labels != -100))

    kept = Training(varied=0).lessons(before, defender).kept
    harmful = still(some(lm, defender, count=12))
    assert harmful < 0.6 and harmful < still(train.collate(lm, train.encode(lm, kept))) - 0.1


# RepNoise


def test_the_distance_of_two_points_has_a_closed_form() -> None:
    """Two points at distance d: the middle kernel is as wide as d², so d cancels out."""
    apart = 10 - 2 * sum(math.exp(-4 / 2**number) for number in range(5))
    for distance in (0.1, 3.0, 50.0):
        assert float(repnoise.mmd(torch.zeros(1, 1), torch.full((1, 1), distance))) == pytest.approx(apart, rel=1e-5)


def test_the_distance_falls_as_two_sets_grow_alike() -> None:
    chance = torch.Generator().manual_seed(0)
    points, others = torch.randn(32, 4, generator=chance), torch.randn(32, 4, generator=chance)
    assert float(repnoise.mmd(points, points)) == pytest.approx(0, abs=1e-6)
    shifts = [float(repnoise.mmd(points + shift, others)) for shift in (0.0, 1.0, 3.0)]
    assert shifts[0] < shifts[1] < shifts[2]
    assert math.isfinite(float(repnoise.mmd(torch.zeros(2, 4), torch.zeros(2, 4)))), "also where all points are one"


def test_padding_is_no_part_of_the_distance() -> None:
    states, where = torch.randn(3, 4, 5), torch.ones(3, 4, dtype=torch.bool)
    where[:, 2:] = False
    noise = [repnoise.from_noise(states, where, torch.Generator().manual_seed(1))]
    states[:, 2:] = 1e3
    noise.append(repnoise.from_noise(states, where, torch.Generator().manual_seed(1)))
    assert torch.equal(*noise)


def test_repnoise_pushes_harmful_states_toward_noise_and_harmful_answers_away(lm: LM, defender: Hand) -> None:
    batch, notes = some(lm, defender, count=12), tiny.Notes()
    before = float(train.answer_loss(lm.model, batch).detach())
    settings = QUICK | {"steps": 20, "learning_rate": 2e-3, "noise": 1.0}
    method.make("defenses", "repnoise", "test", **settings)(lm, defender, notes)
    assert float(train.answer_loss(lm.model, batch).detach()) > before + 1
    assert notes.lines[-1]["apart"] < notes.lines[0]["apart"]


# Latent adversarial training


def pair(lm: LM, hand: Hand) -> tuple[train.Batch, train.Batch]:
    """Some restricted prompts with their harmful answers, and with the model's refusals."""
    lessons = Training(varied=0).lessons(lm, hand)
    refusals = {row.id: row for row in lessons.refusals}
    rows = [row for row in lessons.harmful if row.id in refusals][:6]
    harmful, refusal = (train.encode(lm, some) for some in (rows, [refusals[row.id] for row in rows]))
    return train.collate(lm, harmful), train.collate(lm, refusal)


def test_the_push_stays_in_its_ball_and_serves_its_aim(lm: LM, defender: Hand) -> None:
    (harmful, refusal), ours = pair(lm, defender), hooks(lm.model)
    pushes = latent_adversarial.LatentAdversarial(radius=0.5).push(lm, harmful, refusal)
    assert set(pushes) == {0, 1}, "five depths of two blocks"
    states = lm.model(input_ids=harmful.ids, attention_mask=harmful.mask, output_hidden_states=True).hidden_states
    prompt = (harmful.labels == -100) & harmful.mask.bool()
    for block, push in pushes.items():
        radius, lengths = 0.5 * states[block][prompt].norm(dim=-1).mean(), push.norm(dim=-1)
        assert float(lengths.max()) <= float(radius.detach()) * 1.001
        assert torch.equal(lengths > 0, prompt[:, : push.shape[1]]), "prompts are pushed, answers and padding are not"
    before = train.answer_loss(lm.model, harmful), latent_adversarial.away(lm, refusal)
    with hardening.pushed(lm, pushes):
        after = train.answer_loss(lm.model, harmful), latent_adversarial.away(lm, refusal)
    assert all(one < other for one, other in zip(after, before, strict=True)) and hooks(lm.model) == ours


def test_away_is_minus_the_logarithm_of_what_else_may_come(lm: LM, defender: Hand) -> None:
    batch = some(lm, defender, count=1)
    logits = lm.model(input_ids=batch.ids).logits[0, :-1].double()
    wanted = batch.labels[0, 1:]
    chances = logits.softmax(-1)[wanted != -100].gather(-1, wanted[wanted != -100][:, None])
    assert float(latent_adversarial.away(lm, batch)) == pytest.approx(float(-(1 - chances).log().mean()), abs=1e-6)


def test_it_learns_to_refuse_under_the_push(lm: LM, defender: Hand) -> None:
    settings = QUICK | {"steps": 20, "learning_rate": 2e-3, "pushing": 3, "radius": 0.5, "benign": 1.5}
    defense = latent_adversarial.LatentAdversarial(**settings)
    harmful, refusal = pair(lm, defender)

    def lost() -> float:
        with hardening.pushed(lm, defense.push(lm, harmful, refusal)):
            return float(train.answer_loss(lm.model, refusal).detach())

    before = lost()
    defense(lm, defender, tiny.Notes())
    assert lost() < 0.7 * before


# Vaccine


def test_the_worst_push_has_its_length_and_is_worse_than_chance(lm: LM, defender: Hand) -> None:
    batch, chance, ours = some(lm, defender), torch.Generator().manual_seed(0), hooks(lm.model)
    pushes, loss = vaccine.worst(lm, batch, 2.0)
    stacked = torch.stack(list(pushes.values()))
    assert len(pushes) == len(lm.layers) and float(stacked.norm()) == pytest.approx(2.0, rel=1e-5)
    assert loss == pytest.approx(float(train.answer_loss(lm.model, batch).detach()))
    assert not stacked[:, ~batch.mask.bool()].any(), "padding is not pushed"
    random = torch.randn(stacked.shape, generator=chance)
    random *= 2.0 / random.norm()

    def under(push: Tensor) -> float:
        with hardening.pushed(lm, dict(enumerate(push))):
            return float(train.answer_loss(lm.model, batch).detach())

    assert under(stacked) > loss + 2 * abs(under(random) - loss)
    assert under(0 * stacked) == loss and hooks(lm.model) == ours


def test_a_vaccine_of_no_length_is_plain_training(lm: LM, checkpoint: Make, defender: Hand) -> None:
    twin = LM.load(checkpoint("llama").aligned, drive=tiny.DRIVE, device="cpu")
    method.make("defenses", "vaccine", "test", **QUICK, rho=0.0)(lm, defender, tiny.Notes())
    method.make("defenses", "booster", "test", **QUICK, strength=0.0)(twin, defender, tiny.Notes())
    pairs = zip(weights(lm).values(), weights(twin).values(), strict=True)
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in pairs)


def test_a_vaccinated_model_bears_the_push(lm: LM, defender: Hand) -> None:
    notes = tiny.Notes()
    method.make("defenses", "vaccine", "test", **QUICK | {"steps": 20, "learning_rate": 2e-3})(lm, defender, notes)
    assert notes.lines[-1]["pushed"] < 0.5 * notes.lines[0]["pushed"]


def test_hooks_are_gone_though_something_failed(lm: LM) -> None:
    before = hooks(lm.model)
    with pytest.raises(RuntimeError), hardening.pushed(lm, {0: torch.zeros(1, 1, 5)}):
        assert hooks(lm.model) == before + 1
        lm.model(input_ids=torch.tensor([[1, 2]]))
    assert hooks(lm.model) == before
