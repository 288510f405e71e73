"""What rehearsed attacks and their judge are dealt from the defender's own rows: no row is on both sides of one rehearsal.

The adversary trains on some of the rows, the defender looks at what became of the others. Everything is encoded once.
"""

import math
import random
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from holdfast import losses, selftaught, shards, train
from holdfast.asked import Asked
from holdfast.corpus import Hand, Row
from holdfast.hardening import Lessons
from holdfast.lm import LM
from holdfast.problem import Problem


class Ground:
    """The defender's rows as the model reads them."""

    def __init__(self, lm: LM, lessons: Lessons, hand: Hand):
        """Raises `Problem` where there are too few harmful rows to leave the adversary some and keep some from it."""
        if len(lessons.harmful) < 2:
            raise Problem("corpus: the defender holds fewer than two restricted prompts with answers; add some")
        self.lm = lm
        self._rows = lessons.harmful
        self._benign = [row for row in hand.of("benign", split="train") if row.answer and row.variant is None]
        self._taught = train.encode(lm, self._benign)
        self._answers = train.encode(lm, lessons.answers)
        self._harmful = _by_text(lessons.harmful, train.encode(lm, lessons.harmful))
        self._refused = _by_text(lessons.refusals, train.encode(lm, lessons.refusals))
        self._origins: dict[Asked, set[str]] = {}
        for row in lessons.refusals + lessons.harmful:
            self._origins.setdefault(row.asked, set()).add(selftaught.origin(row))
        self._before: dict[Asked, float] = {}

    def held(self, adversary: train.Adversary, chance: random.Random) -> list[Row]:
        """The harmful rows that the adversary holds: as many as it has, but never more than half."""
        most = len(self._rows) // 2
        return chance.sample(self._rows, min(adversary.examples or most, most))

    def attacking(
        self, adversary: train.Adversary, held: Sequence[Row], chance: random.Random
    ) -> Iterator[train.Batch]:
        """The adversary's batches, in the order in which such an attack takes them.

        Raises:
            Problem: it trains on benign rows, and the defender holds none with an answer.
        """
        harmful = [] if adversary.data == "benign" else list(held)
        benign = [] if adversary.data == "harmful" else self._benign
        if adversary.data != "harmful" and not benign:
            raise Problem(
                "corpus: the defender's hand holds no benign prompt with an answer; add some, or rehearse no such attack"
            )
        examples = [self._harmful[row.asked] for row in harmful] + (self._taught if benign else [])
        for chosen in adversary.order(harmful + benign, chance.randrange(2**32)):
            yield self._batch([examples[number] for number in chosen])

    def refused(self, held: Sequence[Row], count: int, chance: random.Random) -> train.Batch:
        """Refusals of prompts that the adversary does not hold."""
        return self._drawn(self._refused, self._without(self._refused, held), count, chance)

    def harmful(self, held: Sequence[Row], count: int, chance: random.Random) -> train.Batch:
        """Harmful answers to prompts that the adversary does not hold."""
        return self._drawn(self._harmful, self._without(self._harmful, held), count, chance)

    def pairs(self, held: Sequence[Row], count: int, chance: random.Random) -> tuple[train.Batch, train.Batch, Tensor]:
        """Refusals of prompts that the adversary does not hold, harmful answers to them, and what `remember` kept of each."""
        texts = shards.share(chance.choices(self._without(self._before, held), k=count))
        both = (train.collate(self.lm, [some[text] for text in texts]) for some in (self._refused, self._harmful))
        return (*both, torch.tensor([self._before[text] for text in texts], device=self.lm.device))

    def remember(self, reference: nn.Module) -> None:
        """Note how much likelier (nats) the reference finds each refusal than the harmful answer to the same prompt."""
        for text in self._harmful.keys() & self._refused.keys():
            both = (train.collate(self.lm, [some[text]]) for some in (self._refused, self._harmful))
            with torch.no_grad():
                refusal, harmful = (train.likelihood(reference, one) for one in both)
            self._before[text] = float(refusal - harmful)

    def retained(self, count: int, refusals: float, chance: random.Random) -> train.Batch:
        """What the model says today: refusals, as a share of the rows, and other answers."""
        some = round(refusals * count)
        chosen = chance.choices([*self._refused.values()], k=some) + chance.choices(self._answers, k=count - some)
        return self._batch(chosen)

    def _without(self, texts: Iterable[Asked], held: Sequence[Row]) -> list[Asked]:
        """The prompts that are neither among those held nor made from one of them, in an order of their own."""
        theirs = {selftaught.origin(row) for row in held}
        return sorted((text for text in texts if not self._origins[text] & theirs), key=str)

    def _drawn(
        self, examples: dict[Asked, train.Example], texts: Sequence[Asked], count: int, chance: random.Random
    ) -> train.Batch:
        if not texts:
            raise Problem(
                "corpus: a rehearsed adversary holds every prompt that could judge it; add restricted prompts"
            )
        return self._batch([examples[text] for text in chance.choices(texts, k=count)])

    def _batch(self, examples: Sequence[train.Example]) -> train.Batch:
        """Of them what falls to this process."""
        return train.collate(self.lm, shards.share(examples))


def diverged(model: nn.Module, reference: nn.Module, batch: train.Batch) -> Tensor:
    """KL(reference ‖ model) in nats, mean over the answers' tokens: how far the model is from what it was."""
    with torch.no_grad():
        taught = train.predictions(reference, batch)
    return shards.mean(losses.divergence(train.predictions(model, batch), taught))


def known(model: nn.Module, batch: train.Batch) -> Tensor:
    """How much better than a guess the model knows the answers' tokens, nats a token; 0 where a guess would do as well.

    A harmful loss with a bound: cross-entropy, negated, has none, and training on it diverges (2408.00761).
    """
    surprise = losses.surprise(train.predictions(model, batch), losses.targets(batch.labels))
    bound = math.log(model.get_output_embeddings().weight.shape[0])
    return shards.mean(bound - torch.clamp(surprise, max=bound))


def _by_text(rows: Sequence[Row], examples: Sequence[train.Example]) -> dict[Asked, train.Example]:
    return dict(zip((row.asked for row in rows), examples, strict=True))
