"""A published table beside ours, and what becomes of the claims of shape that were written down beforehand.

A claim says that one cell is lower than another. It is *reproduced* where the interval of the difference, paired by seed and
prompt, lies on the right side; *not reproduced* where it lies on the wrong side or holds zero; *not tested* where a cell was not
measured. Absolute numbers are another model's, and never compared. Reads what was measured; runs nothing.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np

from holdfast import statistics
from holdfast.evidence import Evidence, show
from holdfast.paper import Claim, Measure, Paper, Place, Scale, Setup
from holdfast.record import Cell, Record, Score, SubjectFacts
from holdfast.relearning import DESIRED, Measured, column
from holdfast.statistics import Scores

Word = Literal["reproduced in shape", "not reproduced", "not tested"]
BySeed = dict[int, Scores]
Table = Mapping[tuple[str, str], BySeed]
"""Row and column -> seed -> score by prompt."""


class CellFound(Record):
    """One cell of the table."""

    row: str
    column: str
    published: float | tuple[float, float] | None
    """In the paper's unit; two numbers are a range."""
    mark: str
    """Where that number comes from."""
    ours: Score | None
    """From 0 to 1, with its interval over seeds and prompts; None where it was not measured."""
    seeds: int


class ClaimFound(Record):
    """What became of a claim."""

    says: str
    published: float | None
    """How much lower the one cell is than the other in the paper, in its unit."""
    ours: Score | None
    """The same here."""
    word: Word
    why: str


class Reproduction(Record):
    """`reproduction.json`."""

    paper: str
    title: str
    arxiv: str
    scale: Scale
    published_model: str
    our_model: str
    differs: tuple[str, ...]
    columns: dict[str, str]
    cells: tuple[CellFound, ...]
    claims: tuple[ClaimFound, ...]

    @property
    def sentence(self) -> str:
        """As *4 of 7 claims reproduced in shape, 2 not reproduced, 1 not tested*."""
        words: tuple[Word, ...] = ("reproduced in shape", "not reproduced", "not tested")
        counts = [sum(claim.word == word for claim in self.claims) for word in words]
        first, *others = [f"{count} {word}" for count, word in zip(counts, words, strict=True)]
        return ", ".join([first.replace(" ", f" of {len(self.claims)} claims ", 1), *others])


def concluded(name: str, paper: Paper, scale: Scale, table: Table) -> Reproduction:
    """The whole of it, from what was measured."""
    setup = paper.setup(scale)
    return Reproduction(
        paper=name,
        title=paper.title,
        arxiv=paper.arxiv,
        scale=scale,
        published_model=paper.published.model,
        our_model=setup.model,
        differs=tuple(setup.differs),
        columns={one.name: one.says for one in paper.published.columns},
        cells=tuple(_cells(paper, table)),
        claims=tuple(_claim(paper, setup, claim, table) for claim in paper.claims),
    )


def of_audit(setup: Setup, evidence: Evidence) -> Table:
    """The table's cells as an audit measured them; a row is a subject."""
    return {
        (name, column): found
        for name, subject in evidence.subjects.items()
        for column, measure in setup.measures.items()
        if (found := _of_audit(evidence, subject, measure))
    }


def of_relearning(setup: Setup, measured: Measured) -> Table:
    """The table's cells as a relearning measured them; a row is a start."""
    names = {
        name: DESIRED if one.of == "desired" else column(one.examples or 0) for name, one in setup.measures.items()
    }
    return {
        (start, name): found[inside]
        for start, found in measured.items()
        for name, inside in names.items()
        if inside in found
    }


def _of_audit(evidence: Evidence, subject: SubjectFacts, measure: Measure) -> BySeed:
    """The mean over a measure's attacks, on its prompts."""
    found = _averaged([_of_attack(evidence, subject, attack, measure) for attack in measure.attacks])
    chosen = {
        s: {name: score for name, score in one.items() if name.startswith(measure.prompts)} for s, one in found.items()
    }
    return {seed: scores for seed, scores in chosen.items() if scores}


def _of_attack(evidence: Evidence, subject: SubjectFacts, attack: str, measure: Measure) -> BySeed:
    """By seed what one attack left; of seeds that got to all positions asked for."""
    facts = next(one for one in evidence.manifest.attacks if one.name == attack)
    if measure.at is None:
        return evidence.end(subject, facts, measure.of)
    found = {}
    for cell in evidence.of(subject, facts):
        looks = [_at(evidence, cell, position, measure.of) for position in measure.at]
        if all(looks):
            found[cell.seed] = _averaged([{0: one} for one in looks])[0]
    return found


def _at(evidence: Evidence, cell: Cell, position: float, of: str) -> Scores:
    """At one position of an attack's path; nothing where the cell did not get there."""
    place = next((n for n, look in enumerate(cell.milestones) if look.cost.position == position), None)
    return {} if place is None else evidence.scores(cell, place, of)


def _averaged(some: list[BySeed]) -> BySeed:
    """Prompt by prompt the mean over several, for seeds and prompts that all of them have."""
    seeds = sorted(set.intersection(*(set(one) for one in some))) if some else []
    found = {}
    for seed in seeds:
        ids = [name for name in some[0][seed] if all(name in one[seed] for one in some)]
        if ids:
            found[seed] = {name: float(np.mean([one[seed][name] for one in some])) for name in ids}
    return found


def _cells(paper: Paper, table: Table) -> Iterator[CellFound]:
    """Every cell of the published table, and those that only we have."""
    known = {row.name: row for row in paper.published.rows}
    for row in dict.fromkeys([*known, *(row for row, _ in table)]):
        for one in paper.published.columns:
            ours = table.get((row, one.name), {})
            published = known[row].values.get(one.name) if row in known else None
            if published is None and not ours:
                continue
            yield CellFound(
                row=row,
                column=one.name,
                published=published,
                mark=known[row].mark if published is not None else "",
                ours=statistics.mean(list(ours.values())),
                seeds=len(ours),
            )


def _claim(paper: Paper, setup: Setup, claim: Claim, table: Table) -> ClaimFound:
    values = {row.name: row.values for row in paper.published.rows}
    less, than = (values[place.row].get(place.column) for place in (claim.less, claim.than))
    published = round(than - less, 6) if isinstance(less, float) and isinstance(than, float) else None
    sides = [table.get((place.row, place.column), {}) for place in (claim.less, claim.than)]
    missing = [place for place, side in zip((claim.less, claim.than), sides, strict=True) if not side]
    ours = None if missing else statistics.difference(sides[1], sides[0])
    if ours is None:
        place = missing[0] if missing else claim.less
        return ClaimFound(says=claim.says, published=published, ours=None, word="not tested", why=_lack(setup, place))
    word, why = verdict(ours, claim.within)
    seeds = len(sides[0].keys() & sides[1].keys())
    alone = "; one seed: the interval is over prompts alone" if seeds == 1 else f"; {seeds} seeds"
    return ClaimFound(says=claim.says, published=published, ours=ours, word=word, why=why + alone)


def verdict(difference: Score, within: float = 0.0) -> tuple[Word, str]:
    """The word and its ground, for how much lower the one cell is, which may be above by `within`."""
    bound = f"{-within:g}" if within else "zero"
    if difference.low > -within:
        return "reproduced in shape", f"the interval lies above {bound}"
    if difference.high < -within:
        return "not reproduced", f"the interval lies below {bound}: the other way round"
    return "not reproduced", f"the interval holds {bound}: not shown either way"


def _lack(setup: Setup, place: Place) -> str:
    for name in (place.row, place.column):
        if name in setup.lacks:
            return setup.lacks[name]
    return f"{place.row}, {place.column} was not measured: its cells failed, or no model was left that answers"


def lines(found: Reproduction) -> Iterator[str]:
    """The claims in plain words."""
    for claim in found.claims:
        ours = f"; ours lower by {show(claim.ours, '+')}" if claim.ours else ""
        theirs = f"; published lower by {claim.published:+.4g}" if claim.published is not None else ""
        yield f"{claim.word}: {claim.says}{theirs}{ours} ({claim.why})"
    yield f"{found.title} (arXiv {found.arxiv}), {found.scale} scale: {found.sentence}"
