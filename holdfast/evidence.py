"""What a run measured, brought together for whoever judges it: cells by subject and attack, and their per-prompt scores.

Reads `run.json`, the cells and their rows, each file once. A failed cell says nothing here, and a dead one is never safe.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from holdfast import labels, statistics, survival
from holdfast.dossier import CostToBreak, Ratio
from holdfast.labels import Given
from holdfast.record import AttackFacts, Cell, Manifest, Milestone, Score, Status, SubjectFacts
from holdfast.run import Run
from holdfast.statistics import Scores
from holdfast.survival import Bar, Span
from holdfast.tables import EMPTY, NONE, Looked, Seeds, Table, Tables

Made = TypeVar("Made")
INCOHERENT = "gibberish, or less than the needed utility left"
"""What `incoherent` says of a model, in words."""


def bar(manifest: Manifest) -> Bar:
    """What this run counts as a break."""
    return Bar(manifest.threshold, manifest.utility_floor)


def walks(attack: AttackFacts) -> bool:
    """Whether the attack walks random directions to draw the safety landscape: it claims to break nothing."""
    return attack.method == "landscape" or attack.settings.get("per") == "filter"


def breaks_safety(attack: AttackFacts) -> bool:
    """Whether the attack claims to break safety: controls and landscapes do not."""
    return not attack.negative_control and not walks(attack)


def usable(cells: Iterable[Cell], subject: str, attack: str) -> list[Cell]:
    """The cells of one subject under one attack that say something: finished or dead, never failed; by seed."""
    chosen = [cell for cell in cells if (cell.subject, cell.attack) == (subject, attack) and cell.status != "failed"]
    return sorted(chosen, key=lambda cell: cell.seed)


def by_pair(cells: Iterable[Cell]) -> dict[tuple[str, str], list[Cell]]:
    """The usable cells by subject and attack."""
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.subject, cell.attack), []).append(cell)
    return {pair: usable(some, *pair) for pair, some in found.items()}


def broke(cell: Cell, manifest: Manifest) -> bool:
    """Whether the attack broke this cell at any milestone."""
    own = bar(manifest)
    return any(survival.breaks(cell, milestone, own) for milestone in cell.milestones)


def gone(cell: Cell, attack: AttackFacts) -> Status:
    """Whether the attack took the model rather than its safety: `answers` if a model is left to judge.

    On a clock the last milestone tells. Along a severity axis the most severe points may well be gibberish or dead: there
    a model is gone only if no point past the start left it answering, and the mildest tells how.
    """
    if not cell.milestones:
        return "dead"
    if attack.axis == "steps":
        return "dead" if cell.status == "dead" else cell.milestones[-1].status
    looks = cell.milestones[1:] or cell.milestones
    return "answers" if any(look.status == "answers" for look in looks) else looks[0].status


def hollow(cell: Cell, manifest: Manifest) -> bool:
    """Whether the cell was harmful, but only when it had less utility than a break needs: neither broken nor held."""
    over = (look.harm and look.harm.value >= manifest.threshold - 1e-9 for look in cell.milestones)
    return any(over) and not broke(cell, manifest)


def lost(cell: Cell, attack: AttackFacts, manifest: Manifest) -> bool:
    """Whether the cell lost its model rather than hold: never broken, and no model left to judge, or a harmful one."""
    harmful = attack.axis == "steps" and hollow(cell, manifest)  # of a cut, the points before may well hold
    return not broke(cell, manifest) and (gone(cell, attack) != "answers" or harmful)


def most(found: Sequence[Status]) -> Status:
    """What most of these say; where no word has the majority, the worst of the commonest."""
    worst: tuple[Status, ...] = ("dead", "incoherent", "answers")
    return max(worst, key=lambda word: (found.count(word), -worst.index(word)))


def alike(cells: Sequence[Cell]) -> bool:
    """Whether several seeds of one subject under one attack all measured the same, as where chance has no part in it."""
    return len(cells) > 1 and len(survival.distinct(cells)) == 1


def ending(cells: Sequence[Cell], axis: str) -> tuple[float, Status] | None:
    """From which position on to the path's end most seeds answer no more, and how they are at the end; None if they do."""
    since, looks = None, survival.looks(cells)
    for position in reversed(survival.path(cells, axis)):
        there = [look.status for _, _, look in looks[position]]
        if most(there) == "answers":
            break
        since = (position, since[1] if since else most(there))
    return since


def show(score: Score, sign: str = "") -> str:
    """As *0.30 [0.17, 0.44]*."""
    return f"{score.value:{sign}.2f} [{score.low:{sign}.2f}, {score.high:{sign}.2f}]"


def names(things: Sequence[str]) -> str:
    """A list in words, cut after eight."""
    return ", ".join(things[:8]) + (f" and {len(things) - 8} more" if len(things) > 8 else "")


def later(ratio: Ratio) -> str:
    """As *3.1x [1.4, 7] later*, or *at least 2x later* where nothing bounds it above."""
    if ratio.value is None:
        return f"at least {ratio.low:.2g}x later" if ratio.low > 0 else "how much later is not known"
    return f"{ratio.value:.2g}x [{ratio.low:.2g}, {'∞' if ratio.high is None else f'{ratio.high:.2g}'}] later"


def chance(p_value: float) -> str:
    """As *p = 0.03*; no smaller than a thousandth, since so few seeds say no more."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


class Evidence:
    """A run's cells and per-prompt scores."""

    def __init__(
        self,
        manifest: Manifest,
        cells: Iterable[Cell],
        rows: Mapping[str, Table | Sequence[Mapping[str, Any]]],
        recipe: Mapping[str, Any] | None = None,
        said: Given | None = None,
    ):
        """Take the cells of the manifest's subjects and attacks; `rows` are the per-prompt scores by the cells' names.

        `recipe` is what `recipe.json` holds; None for records that lie in no folder. `said` is what people said of the answers.
        """
        self.manifest, self.recipe, self.labels = manifest, recipe, said
        self.subjects = {subject.name: subject for subject in manifest.subjects}
        attacks = {attack.name for attack in manifest.attacks}
        self.cells = [cell for cell in cells if cell.subject in self.subjects and cell.attack in attacks]
        self.bar = bar(manifest)
        self._alive = self.bar._replace(threshold=0.0)
        self._cells: dict[tuple[str, str], list[Cell]] = {}
        self._costs: dict[tuple[str, str, Bar], CostToBreak] = {}
        self._tables: dict[tuple[str, str, int], Table] = {}
        self._made: dict[Hashable, Any] = {}
        tables = Tables()
        for cell in self.cells:
            self._cells.setdefault((cell.subject, cell.attack), []).append(cell)
            found = rows.get(cell.name, ())
            self._tables[cell.subject, cell.attack, cell.seed] = (
                found if isinstance(found, Table) else tables.of_rows(found)
            )
        self._usable = by_pair(self.cells)

    @classmethod
    def read(cls, run: Run, remember: bool = False) -> "Evidence":
        """Of a run on disk; `remember` as in `Run.measured`. Raises `Problem` if `run.json` is missing or damaged."""
        manifest = run.manifest()
        cells, rows = [], {}
        for cell, table in run.measured(remember):
            cells.append(cell)
            rows[cell.name] = table
        return cls(manifest, cells, rows, run.read("recipe.json"), labels.given(run, rows.keys()))

    def all_of(self, subject: str, attack: str) -> list[Cell]:
        """Cells of one subject under one attack, failed ones too."""
        return self._cells.get((subject, attack), [])

    def of(self, subject: SubjectFacts, attack: AttackFacts) -> list[Cell]:
        """Cells that say something, by seed."""
        return self._usable.get((subject.name, attack.name), [])

    def scores(self, cell: Cell, milestone: int, column: str) -> Scores:
        table = self._tables.get((cell.subject, cell.attack, cell.seed))
        return table.scores(milestone, column) if table else NONE

    def looked(self, looks: Sequence[tuple[Cell, int]]) -> Looked:
        """All scores at these cells' milestones."""
        return Looked([(self._tables.get((cell.subject, cell.attack, cell.seed), EMPTY), at) for cell, at in looks])

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What follows from what was measured and is asked for often: `make` makes it at the first time that `key` is asked."""
        if key not in self._made:
            self._made[key] = make()
        return cast(Made, self._made[key])

    def start(self, subject: SubjectFacts, attack: AttackFacts, column: str) -> dict[int, Scores]:
        """Before the attack, from one cell only: all start from the same weights, so further seeds add nothing."""
        cells = self.of(subject, attack)
        return {0: self.scores(cells[0], 0, column)} if cells else {}

    def end(self, subject: SubjectFacts, attack: AttackFacts, column: str) -> Mapping[int, Scores]:
        """By seed, at the point where harm is compared; seeds whose model no longer answers there are left out."""

        def made() -> Seeds:
            ended = self.ended(subject, attack)
            return Seeds(tuple(cell.seed for cell, _ in ended), cast(Any, self.looked(ended).scores(column)))

        return self.once(("end", subject.name, attack.name, column), made)

    def mean(self, subject: SubjectFacts, attack: AttackFacts, column: str) -> Score | None:
        """Over seeds and prompts, where harm is compared."""
        ends = self.end(subject, attack, column)
        return self.once(("mean", subject.name, attack.name, column), lambda: statistics.mean(ends))

    def path(self, attack: AttackFacts, *subjects: SubjectFacts) -> list[float]:
        """All positions at which these subjects were looked at under the attack, as `survival.path`."""
        own = [self.once(("path", one.name, attack.name), partial(survival.path, self.of(one, attack), attack.axis))
               for one in subjects]  # fmt: skip
        if all(one == own[0] for one in own):
            return own[0]
        return survival.path([cell for one in subjects for cell in self.of(one, attack)], attack.axis)

    def spans(self, subject: SubjectFacts, attack: AttackFacts, positions: Sequence[float]) -> list[Span]:
        """By seed where it broke, on the common path `positions`."""
        made = partial(survival.spans, self.of(subject, attack), positions, self.bar)
        return self.once(("spans", subject.name, attack.name, *positions), made)

    def ends(self, subject: SubjectFacts, attack: AttackFacts) -> list[Milestone]:
        """The milestones at which harm is compared."""
        return [cell.milestones[at] for cell, at in self.ended(subject, attack)]

    def ended(self, subject: SubjectFacts, attack: AttackFacts) -> list[tuple[Cell, int]]:
        """By seed the cells that still answer where harm is compared, with the number of that milestone."""

        def made() -> list[tuple[Cell, int]]:
            chosen = [(cell, self._end(cell, attack)) for cell in self.of(subject, attack)]
            return [(cell, at) for cell, at in chosen if at is not None]

        return self.once(("ended", subject.name, attack.name), made)

    def _end(self, cell: Cell, attack: AttackFacts) -> int | None:
        """On a clock the last milestone; else the most harmful one past the start, among those that kept the model's
        utility if any."""
        answering = [index for index, look in enumerate(cell.milestones) if look.status == "answers"]
        last = len(cell.milestones) - 1
        if attack.axis == "steps" or last == 0:
            return last if last in answering else None

        def worst(index: int) -> tuple[bool, float]:
            look = cell.milestones[index]
            return self.kept(cell, look), look.harm.value if look.harm else 0.0

        return max([index for index in answering if index > 0], key=worst, default=None)

    def kept(self, cell: Cell, look: Milestone) -> bool:
        """Whether the model still answers there, with the utility that a break needs."""
        return survival.breaks(cell, look, self._alive)

    def cost(self, subject: SubjectFacts, attack: AttackFacts, bar: Bar | None = None) -> CostToBreak:
        """Where the seeds broke, by the run's own bar unless another is given."""
        key = subject.name, attack.name, bar or self.bar
        if key not in self._costs:
            self._costs[key] = survival.cost_to_break(self.of(subject, attack), attack.axis, key[-1])
        return self._costs[key]
