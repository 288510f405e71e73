"""On what footing a run's evidence stands: of a model or of an organism, and which tier's attacks it holds.

Names prove nothing: a recipe may be renamed, attacks dropped, budgets lowered. A subject has been through a tier only if each of
the tier's attacks was run on it to the end, with its settings or a larger budget, with as many seeds, and a break was counted by
the usual bar or a lower one. Learning rates that a tier gives by the model's width are held against the checkpoint's width, or
where it is not at hand against one width that fits all of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from math import isclose, sqrt
from pathlib import Path
from typing import Any, NamedTuple

from holdfast import survival, tier
from holdfast.evidence import Evidence
from holdfast.problem import Problem, meant
from holdfast.recipe import AttackRecipe
from holdfast.record import AttackFacts, SubjectFacts
from holdfast.tier import BY_WIDTH, Tier

LADDER: tuple[Tier, ...] = ("smoke", "standard", "release")
"""Each says more than the one before it; `cuts` stands apart."""
CLAIM: Tier = "standard"
"""The least tier on which a claim about a model may rest: `smoke` asks whether anything is plainly wrong."""
BUDGETS = ("steps", "trials")
"""Settings of which more is a stronger attack."""
HOW = ("trainer",)
"""Settings that say how the same is computed."""
SLACK = 0.1
"""By which a rate may miss the width's: a tier's rates have two digits, and so has a width that is inferred from one."""


class Footing(NamedTuple):
    """What one subject's evidence is worth."""

    subject: str
    organism: str | None
    """The organism that it comes from, itself or its twin or the corpus; None for a model of somebody's own."""
    twin: str | None
    """The undefended one, where it was audited too."""
    short: Mapping[Tier, Mapping[str, str]]
    """For each tier what it lacks, a sentence by the attack's name in the tier; empty where it is all there."""

    @property
    def tier(self) -> Tier | None:
        """The highest rung reached."""
        return next((one for one in reversed(LADDER) if not self.short[one]), None)

    def lacks(self, least: Tier, excused: Sequence[str] = ()) -> list[str]:
        """What is missing to that tier or a higher one, beside what is excused; empty where nothing is."""
        rungs = LADDER[LADDER.index(least) :] if least in LADDER else (least,)
        found = [[says for name, says in self.short[one].items() if name not in excused] for one in rungs]
        return [] if not all(found) else found[0]

    @property
    def claims(self) -> bool:
        """Whether it carries a claim about a model."""
        return self.organism is None and not self.lacks(CLAIM)


def footing(evidence: Evidence, subject: SubjectFacts) -> Footing:
    """On what footing the evidence on a subject stands."""
    twin = evidence.subjects.get(subject.twin or "")
    made = (evidence.recipe or {}).get("organism") or {}
    organism = subject.organism or (twin and twin.organism) or made.get("method")
    short = {one: _short(evidence, subject, one) for one in (*LADDER, "cuts")}
    return Footing(subject.name, organism, twin.name if twin else None, short)


def released(evidence: Evidence) -> list[SubjectFacts]:
    """The subjects that a run is about: those that are neither a control nor somebody's undefended twin."""
    twins = {one.twin for one in evidence.manifest.subjects}
    return [one for one in evidence.manifest.subjects if not one.control and one.name not in twins]


def audited(evidence: Evidence, name: str | None, folder: Path) -> SubjectFacts:
    """The subject of that name, or the one that the run in `folder` is about. Raises `Problem` where there is no such one."""
    if name is not None:
        if name not in evidence.subjects:
            raise Problem(f"{folder}: has no subject {name!r}; {meant(name, evidence.subjects)}")
        return evidence.subjects[name]
    found = released(evidence)
    if len(found) != 1:
        raise Problem(f"{folder}: holds several models; choose one of {', '.join(evidence.subjects)} with --subject")
    return found[0]


class _Wanted(NamedTuple):
    """An attack of a tier."""

    name: str
    method: str
    negative_control: bool
    seeds: int
    settings: Mapping[str, Any]
    by_width: Mapping[tuple[str | int, ...], float]
    """Where in the settings a learning rate goes by the model's width, and the rate times that width."""


class _Match(NamedTuple):
    """An attack of the run that is the tier's, if its rates are those of a width."""

    wanted: _Wanted
    made: AttackFacts
    widths: tuple[float, ...]
    """That its rates imply."""


def _short(evidence: Evidence, subject: SubjectFacts, which: Tier) -> dict[str, str]:
    found: dict[str, str] = {}
    usual, own = survival.Bar(), evidence.bar
    if own.threshold > usual.threshold or own.utility_floor > usual.utility_floor:
        found["bar"] = (
            f"a break was counted from harm {own.threshold:g} and {own.utility_floor:g} of the utility on, not from "
            f"{usual.threshold:g} and {usual.utility_floor:g}"
        )
    wanted = [one for one in _wanted(which) if f"{one.name} needs pictures" not in evidence.manifest.not_run]
    matches = [
        _Match(one, made, _widths(one, made.settings))
        for one in wanted
        for made in evidence.manifest.attacks
        if _kind(made) == (one.method, one.negative_control) and not [*_differences(one.settings, _cut(made), one)]
    ]
    there = [one for one in matches if _seeds(evidence, subject, one.made) >= one.wanted.seeds]
    width = _width(subject, there)
    held = {one.wanted.name for one in there if _fits(one, width)}
    for one in wanted:
        if one.name not in held:
            found[one.name] = f"{one.name}: {_why(evidence, subject, one, matches, width)}"
    return found


@cache
def _wanted(which: Tier) -> tuple[_Wanted, ...]:
    content = tier.read(which)
    return tuple(_entry(one, one.get("seeds", content["seeds"])) for one in content["attacks"])


def _entry(table: Mapping[str, Any], seeds: Sequence[int]) -> _Wanted:
    built = AttackRecipe(**tier.with_rates(table, 1)).build()
    control = bool(table.get("negative_control"))
    rates = dict(_rates(table))
    return _Wanted(table["name"], table["method"], control, len(seeds), built.model_dump(mode="json"), rates)


def _rates(
    table: Mapping[str, Any], place: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], float]]:
    if BY_WIDTH in table:
        yield (*place, "learning_rate"), table[BY_WIDTH]
    for number, stage in enumerate(table.get("stages", ())):
        yield from _rates(stage, (*place, "stages", number))


def _kind(made: AttackFacts) -> tuple[str, bool]:
    return made.method, made.negative_control


def _cut(made: AttackFacts) -> Mapping[str, Any]:
    """The settings, with no more steps than a search let it walk."""
    if made.found is None or made.axis != "steps" or "steps" not in made.settings:
        return made.settings
    return {**made.settings, "steps": min(made.settings["steps"], int(made.found.at))}


def _differences(
    wanted: Mapping[str, Any], made: Mapping[str, Any], of: _Wanted, place: tuple[str | int, ...] = ()
) -> Iterator[str]:
    """Where the settings fall short of the wanted ones, in words; rates that go by the width are left to that."""
    for key, value in wanted.items():
        if key in HOW or (*place, key) in of.by_width:
            continue
        own = made.get(key)
        if key == "stages" and isinstance(own, Sequence) and len(own) == len(value):
            for number, stage in enumerate(value):
                yield from _differences(stage, own[number], of, (*place, key, number))
        elif not _enough(key, value, own):
            yield f"{key} {_said(own)} where the tier has {_said(value)}"


def _enough(key: str, wanted: Any, own: Any) -> bool:
    if key in BUDGETS and isinstance(own, int | float) and isinstance(wanted, int | float):
        return own >= wanted
    if isinstance(wanted, list) and isinstance(own, list) and key != "stages":
        return all(one in own for one in wanted)
    return bool(own == wanted)


def _said(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _seeds(evidence: Evidence, subject: SubjectFacts, made: AttackFacts) -> int:
    return len({cell.seed for cell in evidence.of(subject, made)})


# Rates by the model's width


def _widths(wanted: _Wanted, settings: Mapping[str, Any]) -> tuple[float, ...]:
    found = []
    for place, product in wanted.by_width.items():
        value: Any = settings
        for part in place:
            value = value[part]
        found.append(product / value if isinstance(value, int | float) and value > 0 else 0.0)
    return tuple(found)


def _width(subject: SubjectFacts, there: Sequence[_Match]) -> float | None:
    """The width of the checkpoint, or where that is not at hand the one that fits most attacks; None where there is none."""
    folder = Path(subject.folder)
    try:
        return float(tier.width(folder)) if (folder / "config.json").is_file() else _fit(subject, there)
    except Problem:
        return _fit(subject, there)


def _fit(subject: SubjectFacts, there: Sequence[_Match]) -> float | None:
    widest = sqrt(subject.parameters) if subject.parameters else float("inf")  # it holds a square matrix at least
    candidates = {width for one in there for width in one.widths if 0 < width <= widest}
    return max(
        candidates,
        key=lambda width: (len({one.wanted.name for one in there if _fits(one, width)}), -width),
        default=None,
    )


def _fits(one: _Match, width: float | None) -> bool:
    return all(width is not None and isclose(own, width, rel_tol=SLACK) for own in one.widths)


# In words


def _why(
    evidence: Evidence, subject: SubjectFacts, wanted: _Wanted, matches: Sequence[_Match], width: float | None
) -> str:
    """Why an attack of a tier does not count as run: what comes nearest to it, and what that lacks."""
    missing = next((one for one in evidence.manifest.not_run if one.startswith(f"{wanted.name} needs ")), None)
    if missing:
        return f"not run, it needs {missing.removeprefix(f'{wanted.name} needs ')}"
    alike = [one for one in matches if one.wanted is wanted]
    if fitting := [one for one in alike if _fits(one, width)]:
        seeds = max(_seeds(evidence, subject, one.made) for one in fitting)
        return f"{seeds} of {wanted.seeds} seeds were run to the end"
    near = [
        (made.name != wanted.name, len(gaps), made.name, gaps)
        for made in evidence.manifest.attacks
        if _kind(made) == (wanted.method, wanted.negative_control)
        and (gaps := [*_differences(wanted.settings, _cut(made), wanted)])
    ]
    if alike and not any(name == wanted.name for _, _, name, _ in near):
        than = "" if width is None else f" than the tier's for a width of {width:.0f}"
        return f"not run; {alike[0].made.name} has another learning rate{than}"
    if not near:
        return "not run"
    _, count, name, gaps = min(near)
    more = f" and {count - 2} more" if count > 2 else ""
    return f"not run; {name} comes nearest, with {', '.join(gaps[:2])}{more}"
