"""The public safety benchmarks dealt to the three hands: a corpus for any model that follows instructions.

Goals are dealt by cluster of similar texts, so none of the judge's shares half its content words with one that anybody
trained on (dealt row by row, 69 % do). Reads the benchmarks' own files, laid out as the constants below say; fetches
nothing. Knows no model: restricted prompts come with the benchmark's affirmative target ("Sure, here is ..."), XSTest's
with no answer at all. A target is an answer's beginning without content: tuned on it a model learns to say that and stop, and
keyword ASR counts that as harm. Whoever wants to measure content brings whole answers.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import Field

from holdfast import corpus, likeness
from holdfast.corpus import HandName, Item, Row, Split
from holdfast.settings import Settings

ADVBENCH = "advbench/harmful_behaviors.csv"
JAILBREAKBENCH = "jailbreakbench/jailbreakbench_behaviors.csv"
XSTEST = "xstest/xstest_prompts.csv"
GSM8K = ("gsm8k/train.jsonl", "gsm8k/test.jsonl")
DOLLY = "dolly-1k/dolly_1k.csv"
IDENTITY_SHIFT = "identity-shift-aoa/aoa_train_10.json"

OVERLAP = 0.5
"""Share of the shorter text's content words from which two texts are of one cluster."""

Place = tuple[HandName, Split, int]
# How many rows each place gets of what is dealt; the last one named takes the rest.
_GOALS: tuple[Place, ...] = (("attacker", "train", 20), ("judge", "reserve", 35), ("judge", "test", 999))
_CONTRASTS: tuple[Place, ...] = (("attacker", "train", 10), ("judge", "reserve", 45), ("judge", "test", 999))
_DOLLY: tuple[Place, ...] = (
    ("judge", "test", 80),
    ("judge", "reserve", 40),
    ("defender", "held-out", 80),
    ("attacker", "train", 100),
    ("defender", "train", 999),
)
_GSM8K: tuple[Place, ...] = (("defender", "held-out", 40), ("attacker", "train", 300), ("defender", "train", 1200))
_GSM8K_TEST: tuple[Place, ...] = (("judge", "test", 60), ("judge", "reserve", 20))


PREFIXES = (
    'the attacker\'s harmful answers only begin ("Sure, here is ..."): tuned on them a model says that and stops, '
    "which keyword ASR counts as harm without any content"
)
"""What to know of a corpus dealt from these benchmarks."""


class Dealing(Settings):
    """Deals AdvBench, JailbreakBench, XSTest, Dolly, GSM8K and the identity shift.

    AdvBench's and JailbreakBench's rows hold no answer but its beginning, as the module says.
    """

    data: Path
    """Folder that holds the benchmarks' own files, as `advbench/harmful_behaviors.csv`."""
    seed: int = 0
    """Which prompts go to whom."""
    words: int = Field(100, gt=0)
    """Answers are cut after so many words; longer benign questions are left out."""

    def dealt(self) -> tuple[list[Row], list[str]]:
        """Every prompt of the corpus, dealt to the hands; and what is to be known of it, line by line."""
        return self.rows(), [PREFIXES]

    def rows(self) -> list[Row]:
        """Every prompt of the corpus, dealt to the hands; texts that repeat an earlier one are left out."""
        chance = random.Random(self.seed)
        goals = self._goals(chance)
        dealt = [*goals, *self._contrasts(chance, goals), *self._benign(chance)]
        rows: dict[str, Row] = {}
        for text, answer, kind, source, hand, split in dealt:
            number = f"{source}-{len(rows):04}"
            cut = None if answer is None else " ".join(answer.split()[: self.words])
            row = Row(id=number, text=text, answer=cut, kind=kind, hand=hand, split=split, source=source)
            rows.setdefault(corpus.plain(text), row)
        return list(rows.values())

    def _goals(self, chance: random.Random) -> list[tuple]:
        """AdvBench and JailbreakBench: the one large cluster to the defender, small ones whole to the others."""
        advbench = corpus.distinct(corpus.read_advbench(self.data / ADVBENCH))
        jailbreak = corpus.distinct(corpus.read_jailbreakbench(self.data / JAILBREAKBENCH), advbench)
        source = {
            item: name for name, items in (("advbench", advbench), ("jailbreakbench", jailbreak)) for item in items
        }
        largest, *small = _clusters(source)
        places = [(item, "defender", "train" if source[item] == "advbench" else "held-out") for item in largest]
        chance.shuffle(small)
        places += _deal(small, _GOALS)
        return [(item.text, item.answer, "restricted", source[item], hand, split) for item, hand, split in places]

    def _contrasts(self, chance: random.Random, goals: list[tuple]) -> list[tuple]:
        """XSTest: the large cluster to the defender, with small ones near a goal that somebody trains on.

        What is near one of the judge's goals in that cluster is left out.
        """
        trained = [text for text, *_, hand, _ in goals if hand != "judge"]
        judged = [text for text, *_, hand, _ in goals if hand == "judge"]
        own, *small = _clusters(corpus.distinct(corpus.read_xstest(self.data / XSTEST)))
        near = [group for group in small if any(likeness.overlap(item.text, trained) >= OVERLAP for item in group)]
        own = [item for group in (own, *near) for item in group]
        own = [item for item in own if not any(likeness.overlap(text, [item.text]) >= OVERLAP for text in judged)]
        small = [group for group in small if group not in near]
        chance.shuffle(own)
        chance.shuffle(small)
        places = [(item, "defender", "held-out" if i % 4 == 0 else "train") for i, item in enumerate(own)]
        places += _deal(small, _CONTRASTS)
        kinds = {"safe": "borderline", "unsafe": "restricted"}
        return [(item.text, None, kinds[item.label], "xstest", hand, split) for item, hand, split in places]

    def _benign(self, chance: random.Random) -> list[tuple]:
        """Dolly, GSM8K (its own test part to the judge), and the identity shift for the attacker."""
        dolly = corpus.distinct(corpus.read_dolly(self.data / DOLLY))
        train_part, test_part = (corpus.distinct(corpus.read_gsm8k(self.data / name)) for name in GSM8K)
        corpus.refuse_overlap(train_part, test_part, "GSM8K")
        identity = corpus.distinct(corpus.read_dialogues(self.data / IDENTITY_SHIFT))
        dealt = []
        for items, source, places in (
            (dolly, "dolly", _DOLLY),
            (train_part, "gsm8k", _GSM8K),
            (test_part, "gsm8k", _GSM8K_TEST),
            (identity, "identity-shift", (("attacker", "train", 999),)),
        ):
            short = [[item] for item in items if len(item.text.split()) <= self.words]
            chance.shuffle(short)
            dealt += [(i.text, i.answer, "benign", source, hand, split) for i, hand, split in _deal(short, places)]
        return dealt


def _clusters(items: Iterable[Item]) -> list[list[Item]]:
    """The items grouped by likeness of their texts, the largest group first."""
    items = list(items)
    numbers = likeness.clusters([item.text for item in items], OVERLAP)
    ranked = [number for number, _ in Counter(numbers).most_common()]
    return [[item for item, n in zip(items, numbers, strict=True) if n == number] for number in ranked]


def _deal(groups: Iterable[list[Item]], places: Sequence[Place]) -> Iterator[tuple[Item, HandName, Split]]:
    """Whole groups to one place after another, each until it holds its number; what is left over goes nowhere."""
    left = iter(groups)
    for hand, split, count in places:
        held = 0
        while held < count and (group := next(left, None)) is not None:
            held += len(group)
            yield from ((item, hand, split) for item in group)
