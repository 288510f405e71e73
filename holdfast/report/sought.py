"""The worst adversary found, and how a search for it went, as `search.json` says. Writes no HTML."""

from typing import Any, NamedTuple

import plotly.graph_objects as go
from pydantic import BaseModel, ValidationError

from holdfast.dossier import Standing, Verdict
from holdfast.problem import Problem
from holdfast.record import AttackFacts, Found, Score, SubjectFacts
from holdfast.report import figures, tables
from holdfast.report.figures import Panel
from holdfast.report.heads import answer_for
from holdfast.report.looks import GRID, INK, MUTED, Look, looks
from holdfast.report.rows import searched
from holdfast.report.words import Index
from holdfast.units import operations


class Worst(NamedTuple):
    """What broke one subject with least."""

    turn: int
    attack: AttackFacts
    verdict: Verdict | None
    who: list[str]
    """The adversaries whose cheapest way it is."""
    standing: Standing
    found: str
    """What a search promised of it; empty where none was made."""


class Sought(NamedTuple):
    """The worst for each subject, and the search."""

    worst: list[Worst]
    unbroken: list[SubjectFacts]
    """Subjects that nothing broke."""
    search: "Search | None"
    panel: Panel | None


class _Explored(BaseModel):
    settled: bool
    curve: list[tuple[float, float]]
    coverage: dict[str, float]
    says: list[str]


class _Winner(BaseModel):
    attack: str
    settings: dict[str, Any]
    found: Found
    confirmed: Score | None = None
    selection_bias: float | None = None


class Search(BaseModel):
    """Of `search.json`, what the page shows."""

    attack: str
    subject: str
    seed: int
    cost: dict[str, Any]
    trials: dict[str, int]
    winners: list[_Winner]
    explored: _Explored


def sought(index: Index, search: dict[str, Any] | None) -> Sought | None:
    """None where nothing broke and nothing was searched. Raises `Problem` if `search` is not a search's."""
    attacks = {one.name: one for one in index.attacks}
    worst, unbroken = [], []
    for facts in answer_for(index):
        broken = [one for one in index.dossier.standings if one.subject == facts.name and one.worst in attacks]
        turn = index.subjects.index(facts)
        for name in dict.fromkeys(one.worst for one in broken if one.worst):
            mine = [one for one in broken if one.worst == name]
            attack = attacks[name]
            told = index.verdict(facts, attack), [one.adversary for one in mine], mine[0], searched(index, attack)
            worst.append(Worst(turn, attack, *told))
        unbroken += [] if broken else [facts]
    read = _read(search)
    if not worst and read is None:
        return None
    return Sought(worst, unbroken, read, _panel(index, read) if read and read.explored.curve else None)


def _read(search: dict[str, Any] | None) -> Search | None:
    try:
        return None if search is None else Search.model_validate(search)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise Problem(f"search.json, {where}: not what a search wrote; run `holdfast search` again") from error


def _panel(index: Index, search: Search) -> Panel:
    """The most harm found that keeps its utility, against what the search had spent."""
    turn, look = next(
        (pair for pair in enumerate(looks(index.subjects)) if index.subjects[pair[0]].name == search.subject),
        (0, Look(INK, "#d3d7dc", "solid", "circle")),
    )
    spent, most = ([point[part] for point in search.explored.curve] for part in (0, 1))
    told = [f"after {operations(at)}: harm {harm:.2f}" for at, harm in search.explored.curve]
    line = {"color": look.color, "width": 2.2, "shape": "hv"}
    trace = go.Scatter(x=spent, y=most, mode="lines+markers", line=line, marker={"size": 5}, hovertext=told)
    figure = go.Figure(trace.update(meta={"subject": turn, "part": "line"}, hoverinfo="text", showlegend=False))
    figures.ground(figure)
    axis = {"gridcolor": GRID, "zeroline": False, "fixedrange": True, "tickfont": {"color": MUTED, "size": 12}}
    title = {"text": "operations spent by the search", "font": {"color": MUTED, "size": 12}, "standoff": 6}
    figure.update_xaxes(**axis, rangemode="tozero", title=title, nticks=5)
    figure.update_yaxes(**axis, range=[-0.03, 1.04], dtick=0.5, tickformat=".1f")
    says = f"Most harm found that keeps its utility, against operations spent, over {len(spent)} trials: {most[-1]:.2f} at last."
    table = tables.table("search", ["flops_spent", "harm_of_best_so_far"], search.explored.curve)
    return Panel(figure, "Best so far, on the search's own prompts", says, False, "search", table)
