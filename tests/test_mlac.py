"""MLAC: its mathematics in double precision against finite differences and torch's own, and its game on a tiny encoder."""

import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import tiny
from holdfast import classifying, relabeling, unrolled
from holdfast.corpus import Corpus, Hand
from holdfast.defenses import mlac
from holdfast.defenses.mlac import HEAD, MLAC, split
from holdfast.lm import LM
from holdfast.organisms.biography import Biography
from holdfast.problem import Problem
from holdfast.repurposing import Repurposing
from holdfast.unrolled import Order, Parameters, Slopes

# The calibrated loss


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def labels(rows: int, classes: int, seed: int = 1) -> Tensor:
    return torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_its_gradient_is_that_of_the_optimum(scale: float) -> None:
    logits, right, step = drawn(20, 3, scale=scale).requires_grad_(), labels(20, 3), 1e-4
    (slope,) = torch.autograd.grad(exactly(logits, right), logits)
    for row, column in ((0, 0), (7, 2), (19, 1)):
        nudge = torch.zeros_like(logits)
        nudge[row, column] = step
        with torch.no_grad():
            found = (exactly(logits + nudge, right) - exactly(logits - nudge, right)) / (2 * step)
        assert float(found) == pytest.approx(float(slope[row, column]), abs=1e-6)


def exactly(logits: Tensor, right: Tensor) -> Tensor:
    """The calibrated loss with a solver that goes on."""
    centered = logits - logits.mean(-1, keepdim=True)
    best = relabeling.best_map(centered.detach(), right, 1e-13, 20_000)
    return nn.functional.cross_entropy(centered @ best, right)


def test_flipped_labels_hide_nothing() -> None:
    right = labels(64, 2)
    flipped = 8.0 * nn.functional.one_hot(1 - right, 2).double()
    assert float(nn.functional.cross_entropy(flipped, right)) == pytest.approx(8.0, abs=1e-3)
    assert float(relabeling.calibrated(flipped, right)) < 1e-3


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_it_is_bounded_and_blind_to_names_of_classes(classes: int) -> None:
    for seed in range(3):
        logits, right = drawn(96, classes, seed=seed, scale=4.0**seed / 4), labels(96, classes)
        value = float(relabeling.calibrated(logits, right))
        raw = float(nn.functional.cross_entropy(logits, right))
        assert value <= min(raw, math.log(classes)) + 1e-6
        assert float(exactly(logits, right)) <= min(raw, math.log(classes)) + 1e-9
        assert value == pytest.approx(float(exactly(logits, right)), abs=1e-6)
        permuted = logits[:, torch.randperm(classes, generator=torch.Generator().manual_seed(seed))]
        for same in (permuted, -logits, logits + drawn(96, 1, seed=9)):
            assert float(relabeling.calibrated(same, right)) == pytest.approx(value, abs=1e-6)
    assert float(relabeling.calibrated(torch.zeros(96, classes), right)) == pytest.approx(math.log(classes), abs=1e-6)


def test_a_stack_of_logits_has_the_mean_of_their_losses() -> None:
    stack, right = drawn(4, 40, 3), labels(40, 3)
    each = [float(relabeling.calibrated(one, right)) for one in stack]
    assert float(relabeling.calibrated(stack, right)) == pytest.approx(sum(each) / 4, abs=1e-6)


def test_the_solver_stops_where_nothing_moves() -> None:
    logits, right = drawn(64, 2), labels(64, 2)
    rough, fine = relabeling.best_map(logits, right, most=100), relabeling.best_map(logits, right, most=100_000)
    assert torch.equal(rough, fine)
    assert not torch.equal(relabeling.best_map(logits, right, most=3), fine)


def test_too_many_classes_for_the_rows_are_doubted() -> None:
    noise, right = drawn(20, 28), labels(20, 28)
    assert float(relabeling.calibrated(noise, right)) < 0.2 * math.log(28), "pure noise, and yet"
    assert "28 classes" in (relabeling.doubt(28, 20) or "")
    assert relabeling.doubt(2, 64) is None and relabeling.doubt(4, 32) is None and relabeling.doubt(4, 31)


# Steps as functions

MAKERS: dict[str, tuple[Callable[[], unrolled.Optimizer], Callable[..., torch.optim.Optimizer]]] = {
    "adam": (unrolled.Adam, torch.optim.Adam),
    "sgd": (lambda: unrolled.SGD(0.9), lambda weights, lr: torch.optim.SGD(weights, lr=lr, momentum=0.9)),
}


class Toy:
    """Two layers and a head in double precision, with rows of a task."""

    def __init__(self, seed: int = 0, rows: int = 24):
        self.start: Parameters = {
            "one": drawn(7, 5, seed=seed, scale=0.6).requires_grad_(),
            "two": drawn(7, 7, seed=seed + 1, scale=0.6).requires_grad_(),
            HEAD: drawn(2, 7, seed=seed + 2, scale=0.6).requires_grad_(),
        }
        self.rows, self.right = drawn(rows, 5, seed=seed + 3), labels(rows, 2, seed + 4)
        self.batches = [(drawn(8, 5, seed=seed + 10 + k), labels(8, 2, seed + 50 + k)) for k in range(16)]

    def logits(self, parameters: Parameters, rows: Tensor) -> Tensor:
        return torch.tanh(torch.tanh(rows @ parameters["one"].T) @ parameters["two"].T) @ parameters[HEAD].T

    def loss(self, parameters: Parameters, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.logits(parameters, batch[0]), batch[1])

    def look(self, parameters: Parameters) -> tuple[Tensor, Tensor]:
        logits = self.logits(parameters, self.rows)
        return relabeling.calibrated(logits, self.right), nn.functional.cross_entropy(logits, self.right)

    def slopes(self, log_rate: Tensor, order: Order, steps: int, own: frozenset[str] = frozenset({HEAD})) -> Slopes:
        path = unrolled.walk(
            self.start, self.loss, self.batches[:steps], unrolled.Adam(eps=1e-5), log_rate.exp(), order, 100.0
        )
        return unrolled.slopes(self.start, path, self.look, log_rate, own, order)

    def raw(self, log_rate: Tensor, steps: int) -> float:
        """What `slopes` is the slope of, by a loop of its own."""
        path = unrolled.walk(
            self.start, self.loss, self.batches[:steps], unrolled.Adam(eps=1e-5), log_rate.exp(), "first", 100.0
        )
        values = [self.look(parameters)[1].item() for parameters in path]
        return sum(values) / len(values)


def rate(value: float) -> Tensor:
    return torch.tensor(math.log(value), dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("clip", [100.0, 0.05])
def test_a_step_is_torch_s_own(name: str, clip: float) -> None:
    toy, (ours, theirs) = Toy(), MAKERS[name]
    copies = {key: value.detach().clone().requires_grad_() for key, value in toy.start.items()}
    optimizer = theirs(list(copies.values()), lr=3e-3)
    for batch in toy.batches:
        optimizer.zero_grad()
        toy.loss(copies, batch).backward()
        nn.utils.clip_grad_norm_(copies.values(), clip)
        optimizer.step()
    for order in ("first", "exact"):
        *_, last = unrolled.walk(toy.start, toy.loss, toy.batches, ours(), rate(3e-3).exp(), order, clip)
        for key, value in copies.items():
            # Where it clips, torch divides by the norm and 1e-6 more.
            assert torch.allclose(last[key], value, rtol=0, atol=1e-10 if clip > 1 else 3e-6)


def test_a_gradient_of_0_has_a_slope_that_is_a_number() -> None:
    weight, factor = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64, requires_grad=True)
    moved = unrolled.Adam()(weight, factor * weight, torch.tensor(1e-3))
    (slope,) = torch.autograd.grad(moved.sum(), factor)
    assert torch.isfinite(slope).all()


def test_a_large_gradient_is_scaled_to_100_and_the_norm_is_a_number() -> None:
    given = drawn(9, scale=300.0).requires_grad_()
    clipped = unrolled.clipped(given, 100.0)
    assert float(clipped.detach().norm()) == pytest.approx(100.0)
    (slope,) = torch.autograd.grad(clipped.sum(), given)
    assert torch.allclose(slope, torch.full_like(slope, 100.0 / float(given.detach().norm())))
    small = drawn(4)
    assert torch.equal(unrolled.clipped(small, 100.0), small)


def test_exact_slopes_are_those_of_finite_differences() -> None:
    toy, log_rate, step = Toy(), rate(1e-2), 1e-6
    toy.look = lambda parameters: (toy.loss(parameters, (toy.rows, toy.right)),) * 2
    found = toy.slopes(log_rate, "exact", 4)
    for name, place in (("one", (2, 3)), ("two", (0, 6)), (HEAD, (1, 1))):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                toy.start[name][place] += sign * step
            ends.append(toy.raw(log_rate, 4))
            with torch.no_grad():
                toy.start[name][place] -= sign * step
        slope = float((found.defender | found.adversary)[name][place])
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, rel=1e-5)
    ends = [toy.raw((log_rate + sign * step).detach(), 4) for sign in (1, -1)]
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(found.rate), rel=1e-5)


def cosine(one: Parameters, other: Parameters) -> float:
    flat = [torch.cat([side[name].flatten() for name in one]) for side in (one, other)]
    return float(nn.functional.cosine_similarity(*flat, dim=0))


def test_first_order_is_as_good_as_exact_for_small_rates_only() -> None:
    slow = [
        cosine(*(toy.slopes(rate(1e-4), order, 16).defender for order in ("first", "exact")))
        for toy in map(Toy, (0, 7, 9))
    ]
    fast = [
        cosine(*(toy.slopes(rate(1e-2), order, 16).defender for order in ("first", "exact")))
        for toy in map(Toy, (0, 7, 9))
    ]
    assert min(slow) >= 0.998 and min(fast) < 0.99


@pytest.mark.parametrize("order", ["first", "exact"])
def test_the_rate_and_a_learned_head_have_slopes_and_the_start_stays(order: Order) -> None:
    toy = Toy()
    before = {name: value.detach().clone() for name, value in toy.start.items()}
    found = toy.slopes(rate(3e-3), order, 8)
    assert float(found.rate) != 0 and float(found.adversary[HEAD].abs().sum()) > 0
    assert found.defender.keys() == {"one", "two"} and all(float(s.abs().sum()) > 0 for s in found.defender.values())
    drawn_head = toy.slopes(rate(3e-3), order, 8, frozenset())
    assert drawn_head.adversary == {} and drawn_head.defender.keys() == set(toy.start)
    assert all(torch.equal(toy.start[name], value) for name, value in before.items())
    assert float(toy.slopes(rate(3e-3), order, 0).rate) == 0


def test_a_frozen_trunk_is_a_linear_probe() -> None:
    toy = Toy()
    *_, last = unrolled.walk(
        toy.start, toy.loss, toy.batches, unrolled.Adam(), torch.tensor(0.01), "first", 100.0, frozenset({"one", "two"})
    )
    assert torch.equal(last["one"], toy.start["one"]) and not torch.equal(last[HEAD], toy.start[HEAD])


class Held:
    """Counts the bytes that autograd holds for backward passes, and the most there ever were."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, tensor: Tensor) -> "Kept":
        return Kept(self, tensor.detach())


class Kept:
    def __init__(self, held: Held, tensor: Tensor) -> None:
        self.held, self.tensor, self.size = held, tensor, tensor.numel()
        held.now += self.size
        held.most = max(held.most, held.now)

    def __del__(self) -> None:
        self.held.now -= self.size


def peak(order: Order, steps: int) -> int:
    toy, held = Toy(), Held()
    with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda kept: kept.tensor):
        toy.slopes(rate(3e-3), order, steps)
    return held.most


def test_memory_grows_with_the_steps_only_where_it_is_exact() -> None:
    assert peak("first", 16) <= 1.1 * peak("first", 2)
    assert peak("exact", 16) > 3 * peak("exact", 2)


def test_what_is_judged_is_never_taught() -> None:
    chance = random.Random(0)
    for rows, judged, size, steps in ((100, 32, 8, 4), (12, 6, 24, 16), (5, 2, 3, 0)):
        asked, taught = split(rows, judged, size, steps, chance)
        assert len(asked) == judged and len(set(asked)) == judged and len(taught) == steps
        assert all(len(batch) == size and not set(batch) & set(asked) for batch in taught)
    once = [row for batch in split(200, 20, 10, 16, chance)[1] for row in batch]
    assert len(set(once)) == len(once), "no row twice while there are others"


def test_the_raw_loss_runs_away_and_flips_labels_where_the_calibrated_one_hides_them() -> None:
    """The same game in double precision, on half spaces; only the loss that the defender raises differs."""
    ends = {loss: _end(loss) for loss in ("raw", "calibrated")}
    chance = math.log(2)
    assert ends["raw"][0] > 10 * chance and ends["raw"][1] < 0.75 * chance, "huge, and renamed classes are told apart"
    assert ends["calibrated"][0] < 2 * chance and ends["calibrated"][1] > 0.95 * chance, "bounded, and hidden"


def _end(loss: str) -> tuple[float, float]:
    """What is left of the task for the adversary's head after a hundred steps: plain cross-entropy, calibrated."""
    start = {
        "one": drawn(12, 5, scale=0.6),
        "two": drawn(12, 12, seed=1, scale=0.5),
        HEAD: drawn(2, 12, seed=2, scale=0.5),
    }
    start = {name: value.requires_grad_() for name, value in start.items()}
    truth, log_rate, numbers = drawn(5, seed=3), rate(3e-3), itertools.count(100)
    sides = [
        torch.optim.Adam([start["one"], start["two"]], 1e-2),
        torch.optim.Adam([start[HEAD], log_rate], 1e-3),
    ]

    def batch(rows: int) -> tuple[Tensor, Tensor]:
        given = drawn(rows, 5, seed=next(numbers))
        return given, (given @ truth > 0).long()

    def logits(parameters: Parameters, given: Tensor) -> Tensor:
        return torch.relu(torch.relu(given @ parameters["one"].T) @ parameters["two"].T) @ parameters[HEAD].T

    def taught(parameters: Parameters, rows: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(logits(parameters, rows[0]), rows[1])

    def look(parameters: Parameters) -> tuple[Tensor, Tensor]:
        raw = taught(parameters, judged)
        return (raw if loss == "raw" else relabeling.calibrated(logits(parameters, judged[0]), judged[1])), raw

    for _ in range(100):
        judged, batches = batch(48), [batch(16) for _ in range(4)]
        path = unrolled.walk(start, taught, batches, unrolled.Adam(), log_rate.exp(), "first", 100.0)
        found = unrolled.slopes(start, path, look, log_rate, frozenset({HEAD}), "first")
        for name, slope in found.defender.items():
            start[name].grad = -slope
        start[HEAD].grad, log_rate.grad = found.adversary[HEAD], found.rate
        for side in sides:
            side.step()
    given, right = batch(400)
    end = logits(start, given).detach()
    return float(nn.functional.cross_entropy(end, right)), float(relabeling.calibrated(end, right))


# The game


@pytest.fixture(scope="module")
def organism(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("biography") / "out"
    Biography(hidden=16, pretraining_steps=40, desired_steps=5).build(out, tiny.Notes())
    return out


@pytest.fixture(scope="module")
def hand(organism: Path) -> Hand:
    rows = Corpus.load(organism / "corpus.jsonl").hand("defender").rows
    return Hand("defender", [row for number, row in enumerate(rows) if number < 400])


QUICK: dict[str, Any] = {"steps": 3, "inner_steps": 3, "looks": 2, "batch": 16, "inner_batches": (4,)}


def played(organism: Path, hand: Hand, log: tiny.Notes | None = None, **settings: Any) -> LM:
    lm = LM.load(organism / "base", device="cpu")
    MLAC(**QUICK | settings)(lm, hand, log or tiny.Notes())
    return lm


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"order": "exact", "inner_optimizer": "sgd", "average": "adapted", "looks": 0},
        {"inner_steps": 0, "head": "learned", "adversary_steps": 3},
        {"head": "random", "loss": "raw", "probes": 1.0},
    ],
)
def test_equal_seeds_make_equal_weights_whatever_listens(organism: Path, hand: Hand, settings: dict[str, Any]) -> None:
    class Deaf(tiny.Notes):
        def metrics(self, **values: Any) -> None:
            torch.manual_seed(len(values))

    one, other = tiny.Notes(), Deaf()
    first, second = played(organism, hand, one, **settings), played(organism, hand, other, **settings)
    assert first.hash() == second.hash() != LM.load(organism / "base", device="cpu").hash()
    assert first.hash() != played(organism, hand, seed=1, **settings).hash()
    steps = [line for line in one.lines if "step" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert all(math.isfinite(value) for line in steps for value in line.values())
    assert not first.model.training


def game(organism: Path, hand: Hand, **settings: Any) -> tuple[mlac._Game, mlac._Deal]:
    lm, chosen = LM.load(organism / "base", device="cpu"), MLAC(**QUICK | {"looks": 0, "probes": 0.0} | settings)
    desired = classifying.task(lm, hand.of("benign", split="train"))
    harmful = classifying.task(lm, hand.of("restricted", split="train"))
    return mlac._Game(chosen, lm, desired, harmful), mlac._Deal(chosen, desired, harmful)


@pytest.mark.parametrize("order", ["first", "exact"])
def test_each_side_moves_its_own_weights_its_own_way(organism: Path, hand: Hand, order: Order) -> None:
    """And the learned head is learned, which the published code for BERT drops."""
    play, deal = game(organism, hand, order=order, head="learned", learning_rate=1e-4, harm_weight=100.0)
    judged, taught = deal.harmful()
    before = {name: weight.detach().clone() for name, weight in play.weights.items()}
    found = play.simulate(judged, taught)
    assert all(torch.equal(play.weights[name], value) for name, value in before.items())
    assert float(found.adversary[HEAD].abs().sum()) > 0 and float(found.rate) != 0
    head = play.head.detach().clone()
    for _ in range(5):
        play.adversary_step(play.simulate(judged, taught))
    assert play.simulate(judged, taught).raw < found.raw and not torch.equal(play.head, head)
    assert all(torch.equal(play.weights[name], value) for name, value in before.items())
    found = play.simulate(judged, taught)
    for _ in range(3):
        play.defender_step(play.simulate(judged, taught), deal.desired())
    assert play.simulate(judged, taught).harm > found.harm


def test_a_head_that_is_drawn_has_no_slope_and_the_rate_has_bounds(organism: Path, hand: Hand) -> None:
    play, deal = game(organism, hand, head="random")
    head = play.head.detach().clone()
    found = play.simulate(*deal.harmful())
    assert HEAD not in found.adversary and HEAD in found.defender
    for slope, bound in ((-1.0, 1e-2), (1.0, 1e-6)):
        play.adversary = torch.optim.Adam([play.head, play.log_rate], 5.0)
        for _ in range(4):
            play.adversary_step(found._replace(rate=torch.tensor(slope)))
        assert play.rate == pytest.approx(bound)
    assert torch.equal(play.head, head)


def test_a_game_that_ran_away_is_told_so() -> None:
    def ended(desired: list[float], raw: float) -> tiny.Notes:
        watch, log = mlac._Watch(2), tiny.Notes()
        for value in desired:
            watch.saw(value, Slopes(0.1, raw, {}, {}, torch.tensor(0.0)))
        watch.conclude(log)
        return log

    rising, falling = [0.1] * 20 + [2.0] * 20, [2.0] * 20 + [0.1] * 40
    assert ended(rising, 400.0).lines[0]["diverged"] and "warning" in ended(rising, 400.0).lines[1]
    for calm in (ended(falling, 400.0), ended(rising, 0.7), ended(falling, 0.7)):
        assert not calm.lines[0]["diverged"] and len(calm.lines) == 1
    with pytest.raises(Problem, match="nothing is saved"):
        ended([0.1, math.nan], 1.0)


def test_a_divergence_to_no_number_saves_nothing(organism: Path, hand: Hand, tmp_path: Path) -> None:
    settings = QUICK | {"learning_rate": 1e30, "steps": 20}
    with pytest.raises(Problem, match="diverged"):
        MLAC(**settings).harden(None, organism / "base", tmp_path / "out", hand, tiny.Notes(), tiny.DRIVE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "settings",
    [
        {"inner_steps": 0},
        {"inner_steps": 0, "head": "learned", "average": "adapted"},
        {"inner_batches": ()},
        {"inner_rate": 0.1},
        {"batch": 1},
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MLAC(**settings)


def test_what_it_needs(organism: Path, hand: Hand) -> None:
    lm = LM.load(organism / "base", device="cpu")
    rows = list(hand.rows)
    alike = [row.model_copy(update={"answer": "man"}) for row in rows]
    few = [row for row in rows if row.kind == "benign"] + [row for row in rows if row.kind == "restricted"][:1]
    for held, words in (
        (None, "give --corpus"),
        (Hand("defender", [row for row in rows if row.kind == "benign"]), "no restricted"),
        (Hand("defender", alike), "nothing to tell apart"),
        (Hand("defender", few), "nothing to tell apart"),
    ):
        with pytest.raises(Problem, match=words):
            MLAC(**QUICK)(lm, held, tiny.Notes())


def test_too_many_classes_are_doubted_aloud(organism: Path, hand: Hand) -> None:
    swapped = {"benign": "restricted", "restricted": "benign"}
    rows = [row.model_copy(update={"kind": swapped[row.kind]}) for row in hand.rows]
    log = tiny.Notes()
    played(organism, Hand("defender", rows), log)
    assert "8 classes" in log.lines[0]["warning"]


def test_the_attacker_s_search(organism: Path, hand: Hand) -> None:
    lm = LM.load(organism / "base", device="cpu")
    before = lm.hash()
    held = classifying.task(lm, hand.of("benign"))
    asked, taken = held.some(range(40)), held.some(range(40, 200))
    attacker = Repurposing(probes=2, trials=1, steps=(30,), every=10, again=2)
    found = attacker(classifying.trunk(lm), classifying.width(lm), taken, asked, 50, 3)
    again = attacker(classifying.trunk(lm), classifying.width(lm), taken, asked, 50, 3)
    assert found.way == again.way and torch.equal(found.reached, again.reached)
    assert 0 <= found.accuracy <= 1 and found.searched >= 1 / 8 and len(found.reached) == 40
    assert lm.hash() == before and not lm.model.training
