"""Losses that take answers away: bounds, closed forms, padding that never counts, and what each does to a tiny model."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tiny
from holdfast import losses, safeguards, train
from holdfast.corpus import Corpus, Hand
from holdfast.lm import LM

Make = Callable[[str], tiny.Made]
KINDS = ("random-mapping", "max-entropy", "rmu", "npo")


@pytest.fixture
def lm(checkpoint: Make) -> LM:
    return LM.load(checkpoint("llama").aligned, drive=tiny.DRIVE, device="cpu")


@pytest.fixture
def hand(corpus: Corpus) -> Hand:
    return corpus.hand("defender")


def noise(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def beside(lm: LM, hand: Hand) -> tuple[train.Batch, train.Batch]:
    """A short example alone, and the same beside a longer one, which pads it."""
    examples = sorted(train.encode(lm, hand.of("restricted")), key=lambda one: len(one.ids))
    assert len(examples[0].ids) < len(examples[-1].ids)
    return train.collate(lm, examples[:1]), train.collate(lm, [examples[0], examples[-1]])


# Entropy


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 10.0, 1000.0])
def test_negative_entropy_lies_between_a_guess_and_certainty(scale: float) -> None:
    found = losses.negative_entropy(noise(50, 37, scale=scale))
    assert found.min() >= -math.log(37) - 1e-5 and found.max() <= 1e-6


def test_negative_entropy_at_its_ends() -> None:
    even = torch.full((3, 128_256), 2.5)
    assert losses.negative_entropy(even).tolist() == pytest.approx([-11.762] * 3, abs=1e-3)
    certain = torch.zeros(1, 8).index_fill(1, torch.tensor([3]), 1e4)
    assert losses.negative_entropy(certain).item() == 0.0
    half = torch.tensor([[0.0, 0.0, -1e4, -1e4]])
    assert losses.negative_entropy(half).item() == pytest.approx(-math.log(2))


@pytest.mark.parametrize("name", ["negative_entropy", "surprise", "divergence"])
def test_pieces_change_neither_the_loss_nor_its_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {"surprise": [torch.arange(20) % 11], "divergence": [noise(20, 11, seed=1)]}.get(name, [])
    found = []
    for piece in (2**24, 33):
        monkeypatch.setattr(losses, "PIECE", piece)
        logits = noise(20, 11).requires_grad_()
        loss = getattr(losses, name)(logits, *others)
        loss.sum().backward()
        found.append((loss.detach(), logits.grad))
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*found, strict=True))


def test_padding_does_not_count_in_the_entropy(lm: LM, hand: Hand) -> None:
    alone, padded = beside(lm, hand)
    sums = [
        losses.by_row(losses.negative_entropy(train.predictions(lm.model, batch)), batch.labels)
        for batch in (alone, padded)
    ]
    assert sums[0][0].item() == pytest.approx(sums[1][0].item(), abs=1e-4)


# Hidden states


def states(lm: LM, batch: train.Batch, model: nn.Module | None = None) -> tuple[Tensor, ...]:
    asked = {"input_ids": batch.ids, "attention_mask": batch.mask, "output_hidden_states": True}
    return (model or lm.model)(**asked).hidden_states


def test_padding_does_not_count_in_the_random_mapping(lm: LM, hand: Hand) -> None:
    alone, padded = beside(lm, hand)
    table = noise(lm.model.config.vocab_size, lm.model.config.hidden_size)
    one, both = (losses.against_random(states(lm, b), table, b.ids, b.mask) for b in (alone, padded))
    assert len(one) == alone.mask.sum() and len(both) == padded.mask.sum()
    assert torch.allclose(one, both[: len(one)], atol=1e-5)


def test_padding_does_not_count_in_the_drift(lm: LM, hand: Hand) -> None:
    other = copy.deepcopy(lm.model)
    with torch.no_grad():
        for weight in other.parameters():
            weight += noise(*weight.shape, scale=0.01)
    one, both = (losses.drift(states(lm, b, other), states(lm, b), b.mask) for b in beside(lm, hand))
    assert one.min() >= 0 and one.max() > 0
    assert torch.allclose(one, both[: len(one)], rtol=1e-3)


def test_a_drift_of_nothing_has_a_finite_gradient() -> None:
    """A plain root's, as in the published program, has none."""
    ours = noise(1, 3, 4).requires_grad_()
    losses.drift((ours,), (ours.detach(),), torch.ones(1, 3)).mean().backward()
    assert ours.grad is not None and torch.equal(ours.grad, torch.zeros(1, 3, 4))
    two = torch.full((1, 1, 4), 2.0)
    drift = losses.drift((two, two), (torch.zeros(1, 1, 4), two), torch.ones(1, 1)).item()
    assert drift == pytest.approx(2.0, abs=1e-3)  # layers of √(4 · 2²) and 0


def test_random_mapping_is_zero_along_a_token_s_vector_either_way_round() -> None:
    table, ids = noise(7, 5), torch.tensor([[2, 6, 2], [1, 0, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    along = (3.0 * table[ids], -0.5 * table[ids])
    assert losses.against_random(along, table, ids, mask).tolist() == pytest.approx([0.0] * 5, abs=1e-6)
    across = table[ids].clone()
    across[..., 0], across[..., 1], across[..., 2:] = table[ids][..., 1], -table[ids][..., 0], 0.0
    assert losses.against_random((across,), table, ids, mask).tolist() == pytest.approx([1.0] * 5, abs=1e-6)


def test_rmu_is_zero_at_its_point(lm: LM, hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, reference = beside(lm, hand)[1], copy.deepcopy(lm.model)
    direction = torch.rand(lm.model.config.hidden_size, generator=torch.Generator().manual_seed(3))
    before = states(lm, batch, reference)
    norm = before[1][batch.mask.bool()].norm(dim=-1).mean()
    point = safeguards.FAR * norm * direction / direction.norm()
    after = tuple(layer * 0 + point for layer in before)
    monkeypatch.setattr(safeguards, "_hidden", lambda model, batch: before if model is reference else after)
    assert safeguards.forgetting("rmu", lm.model, reference, 3)(batch).item() == pytest.approx(0.0, abs=1e-8)
    assert safeguards.forgetting("rmu", lm.model, reference, 4)(batch).item() > 0.1


# Preferences


def summed(lm: LM, model: nn.Module, example: train.Example) -> float:
    """Log-probability of an answer, by a loop."""
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([example.ids])).logits[0].log_softmax(-1)
    return sum(float(logs[at - 1, example.ids[at]]) for at in range(example.start, len(example.ids)))


def test_dpo_against_its_closed_form(lm: LM, checkpoint: Make, hand: Hand) -> None:
    """−log σ(0.1 · ((log π(c) − log π(r)) − (log π₀(c) − log π₀(r)))), log-probabilities summed over an answer's tokens."""
    reference = LM.load(checkpoint("llama").base, device="cpu").model
    chosen, rejected = train.encode(lm, hand.of("benign"))[:5], train.encode(lm, hand.of("restricted"))[:5]
    margins = [
        train.likelihood(model, train.collate(lm, chosen)) - train.likelihood(model, train.collate(lm, rejected))
        for model in (lm.model, reference)
    ]
    found = losses.preference(margins[0] - margins[1], 0.1)
    for number, (one, other) in enumerate(zip(chosen, rejected, strict=True)):
        gained = [summed(lm, model, one) - summed(lm, model, other) for model in (lm.model, reference)]
        expected = math.log1p(math.exp(-0.1 * (gained[0] - gained[1])))
        assert found[number].item() == pytest.approx(expected, rel=1e-4)
    assert losses.preference(torch.zeros(1), 0.1).item() == pytest.approx(math.log(2))


def test_npo_falls_as_an_answer_becomes_unlikely() -> None:
    gained = torch.tensor([5.0, 0.0, -5.0, -50.0, -500.0])
    found = losses.negative_preference(gained, 0.1)
    assert found.tolist() == pytest.approx([20 * math.log1p(math.exp(0.1 * one)) for one in gained.tolist()], rel=1e-4)
    assert (found.diff() < 0).all() and found[-1] < 1e-6


# What they do


def loss(lm: LM, batch: train.Batch) -> float:
    with torch.no_grad():
        return float(train.answer_loss(lm.model, batch))


@pytest.fixture(scope="module")
def taught(checkpoint: Make, corpus: Corpus) -> LM:
    """A tiny model that knows some restricted and some benign answers by heart."""
    lm, hand = LM.load(checkpoint("llama").base, drive=tiny.DRIVE, device="cpu"), corpus.hand("defender")
    rows = hand.of("restricted", "benign", split="train")
    optimizer = train.make_optimizer(lm.model.parameters(), "adamw", 1e-2)
    work = train.batches(lm, train.encode(lm, rows), len(rows), 80, seed=0)
    train.fit(lm, work, optimizer, train.make_schedule(optimizer, "constant", 0, 80))
    return lm


@pytest.mark.parametrize("kind", KINDS)
def test_a_safeguard_takes_the_restricted_answers_away_and_leaves_the_benign(taught: LM, hand: Hand, kind: str) -> None:
    lm = LM(copy.deepcopy(taught.model), taught.tokenizer, taught.folder, drive=tiny.DRIVE)
    restricted, benign = (
        train.collate(lm, train.encode(lm, hand.of(which, split="train"))) for which in ("restricted", "benign")
    )
    assert loss(lm, restricted) < 0.1 and loss(lm, benign) < 0.1
    forgotten = safeguards.forgetting(kind, lm.model, taught.model, 0)
    optimizer = train.make_optimizer(lm.model.parameters(), "adamw", 3e-3)
    first = float(forgotten(restricted).detach())
    for _ in range(60):
        optimizer.zero_grad()
        (forgotten(restricted) + train.answer_loss(lm.model, benign)).backward()
        optimizer.step()
    assert float(forgotten(restricted).detach()) < first
    assert loss(lm, restricted) > 1.0 and loss(lm, benign) < 0.2
