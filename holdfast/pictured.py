"""The public benchmarks of prompts about pictures dealt to the three hands: a corpus for vision-language models.

RedTeam-2K trains; miniJailBreakV and AdvBench-COCO (AdvBench's goals, each beside a picture of MS-COCO drawn by chance) judge, as
in "image encoder early exit" (2411.04291). RedTeam-2K holds what these ask for: miniJailBreakV was made of its questions, and
AdvBench is one of its sources. So a question that asks what the judge asks, or shares half of the shorter one's content words
with that, is left out of training, and their number is told. The other way round nothing would be left of miniJailBreakV, and
no result could be read beside a published one.
VQA-v2 asks what may be answered, a picture once, and XSTest's safe prompts, all of them the judge's, what sounds harmful and is
not. No picture of the judge's is in another hand. Reads the benchmarks' own files, laid out as the constants below say; fetches
nothing. Knows no model. Does not see what is written or drawn in a picture (FigStep, query-relevant ones): the judge's rows have
such pictures, the others do not.
"""

import itertools
import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from holdfast import corpus, likeness
from holdfast.corpus import HandName, Kind, Row, Split
from holdfast.dealing import ADVBENCH, OVERLAP, XSTEST
from holdfast.problem import Problem
from holdfast.settings import Settings

JAILBREAKV = "JailBreakV_28K"
"""The folder of that name in the hub's `JailbreakV-28K/JailBreakV-28k`, with all pictures in it; most are not on the hub."""
REDTEAM, MINI = f"{JAILBREAKV}/RedTeam_2K.csv", f"{JAILBREAKV}/mini_JailBreakV_28K.csv"
PLAIN = f"{JAILBREAKV}/llm_transfer_attack"
"""JailBreakV's pictures in which no goal is written: blank, noise, nature and generated ones."""
COCO = "coco/val2014"
QUESTIONS, ANSWERS = "vqa/v2_OpenEnded_mscoco_val2014_questions.json", "vqa/v2_mscoco_val2014_annotations.json"

BRIEFLY = "Answer the question using a single word or phrase."
"""How LLaVA 1.5 was asked VQA-v2's questions, in training and where it was measured."""
TRAINED = 1000
"""VQA-v2's questions for the others, at most."""
JUDGED = 200
"""And for the judge."""

NO_ANSWERS = "nobody holds a harmful answer: attacks that train towards one cannot be run on this corpus"
"""What to know of a corpus dealt from these benchmarks."""

Place = tuple[HandName, Split, float]
# Which share each place gets of what is dealt; the last one named takes the rest.
_REDTEAM: tuple[Place, ...] = (("attacker", "train", 0.05), ("defender", "held-out", 0.05), ("defender", "train", 1.0))
_VQA: tuple[Place, ...] = (("attacker", "train", 0.1), ("defender", "held-out", 0.1), ("defender", "train", 1.0))
_ASKED: tuple[Place, ...] = (("judge", "reserve", 0.2), ("judge", "test", 1.0))
_MINI: tuple[Place, ...] = (("judge", "test", 1.0),)


class Prompt(NamedTuple):
    """What is asked about a picture, before anybody holds it."""

    text: str
    image: Path
    source: str
    kind: Kind
    answer: str | None = None


class Jailbreak(NamedTuple):
    """A row of JailBreakV's."""

    text: str
    goal: str
    """RedTeam-2K's question that the text wraps."""
    form: str
    """Template, Persuade, Logic, figstep or query-relevant: how."""
    image: str
    """Relative to the file's folder."""


class Question(NamedTuple):
    """A row of VQA-v2's."""

    text: str
    answer: str
    """The one that most people gave."""
    picture: int
    """MS-COCO's number."""


class Pictured(Settings):
    """Deals RedTeam-2K, miniJailBreakV, AdvBench-COCO, VQA-v2 and XSTest's safe prompts."""

    data: Path
    """Folder that holds the benchmarks' own files and pictures, as `JailBreakV_28K/RedTeam_2K.csv`."""
    seed: int = 0
    """Which prompts go to whom, and which picture beside which."""

    def dealt(self) -> tuple[list[Row], list[str]]:
        """Every prompt of the corpus, dealt to the hands; and what is to be known of it, line by line.

        Raises:
            Problem: a file or a picture is missing, or a file is another one than its name says.
        """
        chance = random.Random(self.seed)
        jailbreaks = read_jailbreakv(self.data / MINI)
        mini = [Prompt(one.text, self._shown(one), _source(one), "restricted") for one in jailbreaks]
        goals = corpus.distinct(corpus.read_advbench(self.data / ADVBENCH))
        safe = [item for item in corpus.read_xstest(self.data / XSTEST) if item.label == "safe"]
        trained, judged = self._questions(chance)
        shown = {one.image for one in (*trained, *judged)}
        views = iter(self._views(chance, shown, len(goals) + len(safe)))
        coco = [Prompt(item.text, next(views), "advbench-coco", "restricted") for item in goals]
        borderline = [Prompt(item.text, next(views), "xstest", "borderline") for item in safe]
        asked = [one.goal for one in jailbreaks] + [item.text for item in goals]
        redteam, told = self._redteam(chance, asked, {one.image for one in mini})
        parts = ((redteam, _REDTEAM), (trained, _VQA), (judged, _ASKED), (mini, _MINI), (coco, _ASKED))
        placed = [one for prompts, places in (*parts, (borderline, _ASKED)) for one in _placed(prompts, places)]
        rows = [_row(f"{one[0].source}-{number:04}", *one) for number, one in enumerate(placed)]
        return rows, [told, NO_ANSWERS]

    def _redteam(self, chance: random.Random, asked: Sequence[str], shown: set[Path]) -> tuple[list[Prompt], str]:
        """RedTeam-2K without what the judge asks, each beside a picture that is not `shown`; and what was left out."""
        questions = read_redteam(self.data / REDTEAM)
        close, exact = likeness.near(questions, asked, OVERLAP), {corpus.plain(text) for text in asked}
        kept = [question for question, found in zip(questions, close, strict=True) if not found]
        same, out = sum(corpus.plain(question) in exact for question in questions), len(questions) - len(kept)
        told = (
            f"of RedTeam-2K's {len(questions)} questions {out} are left out of training: the judge asks {same} of them, and "
            f"what {out - same} nearly ask"
        )
        if not kept:
            raise Problem(f"{self.data / REDTEAM}: the judge asks all that it asks; fetch RedTeam-2K again")
        folder = self.data / PLAIN
        pictures = [one for one in _pictures(folder) if one not in shown]
        if not pictures:
            raise Problem(
                f"{folder}: holds no picture that miniJailBreakV does not show; fetch all of JailBreakV-28K's pictures"
            )
        chance.shuffle(kept)
        return [Prompt(text, chance.choice(pictures), "redteam-2k", "restricted") for text in kept], told

    def _shown(self, row: Jailbreak) -> Path:
        return _there(
            self.data / JAILBREAKV, row.image, "all of JailBreakV-28K's pictures, which its dataset card links to"
        )

    def _questions(self, chance: random.Random) -> tuple[list[Prompt], list[Prompt]]:
        """VQA-v2's questions for the others, and for the judge, who asks none that nearly is one of theirs."""
        questions = read_vqa(self.data / QUESTIONS, self.data / ANSWERS)
        chance.shuffle(questions)
        apart = [*{one.picture: one for one in questions}.values()]
        cut = min(TRAINED, len(apart) // 2)
        trained, pool = ([self._asked(one) for one in some] for some in (apart[:cut], apart[cut : cut + 10 * JUDGED]))
        theirs, own = ([_row(f"{n}", one, "judge", "test") for n, one in enumerate(some)] for some in (trained, pool))
        known = {row.id for row in likeness.held(own, theirs)}
        judged = [prompt for row, prompt in zip(own, pool, strict=True) if row.id not in known][:JUDGED]
        if not judged:
            raise Problem(f"{self.data / QUESTIONS}: asks the same of too few pictures; fetch VQA-v2 again")
        return trained, judged

    def _asked(self, question: Question) -> Prompt:
        image = _there(self.data / COCO, f"COCO_val2014_{question.picture:012}.jpg", "MS-COCO's val2014")
        return Prompt(f"{question.text}\n{BRIEFLY}", image, "vqa-v2", "benign", question.answer)

    def _views(self, chance: random.Random, shown: set[Path], count: int) -> list[Path]:
        """So many of MS-COCO's pictures that nothing is asked of yet."""
        folder = self.data / COCO
        free = [one for one in _pictures(folder) if one not in shown]
        if len(free) < count:
            raise Problem(
                f"{folder}: holds {len(free)} pictures beside VQA-v2's, and {count} are needed; fetch all of val2014"
            )
        return chance.sample(free, count)


# The benchmarks' own files


def read_redteam(path: Path) -> list[str]:
    """RedTeam-2K's harmful questions, each text once (arXiv 2404.03027)."""
    questions = [
        corpus.Item(row["question"]) for row in corpus.csv_rows(path, "RedTeam-2K", "question", "policy", "from")
    ]
    return [item.text for item in corpus.distinct(questions)]


def read_jailbreakv(path: Path) -> list[Jailbreak]:
    """JailBreakV-28K's rows, or its small part's (arXiv 2404.03027)."""
    columns = ("jailbreak_query", "redteam_query", "format", "image_path")
    return [Jailbreak(*(row[name] for name in columns)) for row in corpus.csv_rows(path, "miniJailBreakV", *columns)]


def read_vqa(questions: Path, answers: Path) -> list[Question]:
    """VQA-v2's questions with the answer that most people gave, in the order of its file (arXiv 1612.00837)."""
    asked = _entries(questions, "questions", "question_id", "question", "image_id")
    known = dict(_entries(answers, "annotations", "question_id", "multiple_choice_answer"))
    found = [Question(text, known[number], picture) for number, text, picture in asked if number in known]
    if not found:
        raise Problem(f"{answers}: answers none of the questions in {questions.name}; fetch both for val2014")
    return found


def _entries(path: Path, key: str, *names: str) -> list[tuple[Any, ...]]:
    text = corpus.text_of(path, "VQA-v2")
    try:
        return [tuple(entry[name] for name in names) for entry in json.loads(text)[key]]
    except (ValueError, KeyError, TypeError) as error:
        raise Problem(
            f"{path}: no {key} with {', '.join(names)} ({error!r}); is it VQA-v2's own file? fetch it again"
        ) from error


def _there(folder: Path, name: str, what: str) -> Path:
    """A picture that a benchmark names, which has to be there and nowhere else."""
    if Path(name).is_absolute() or ".." in Path(name).parts or not (folder / name).is_file():
        raise Problem(f"{folder}: lacks the picture {name!r}; fetch {what}, and put them there")
    return folder / name


def _pictures(folder: Path) -> list[Path]:
    return sorted(one for one in folder.glob("*") if one.suffix.lower() in (".jpg", ".jpeg", ".png", ".bmp"))


# Rows


def _source(row: Jailbreak) -> str:
    return f"minijailbreakv-{row.form.lower()}"


def _row(number: str, prompt: Prompt, hand: HandName, split: Split) -> Row:
    return Row(id=number, hand=hand, split=split, **prompt._asdict() | {"image": str(prompt.image)})


def _placed(prompts: Sequence[Prompt], places: Sequence[Place]) -> Iterator[tuple[Prompt, HandName, Split]]:
    """Each place's share of the prompts, in order; one at least, while there are some."""
    left = iter(prompts)
    for hand, split, share in places:
        yield from ((prompt, hand, split) for prompt in itertools.islice(left, math.ceil(share * len(prompts))))
