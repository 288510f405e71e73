"""Safety against the cost of inference: each subject as released, and at every cheaper stand that an attack brought it to.

Costs are shares of the subject's own as released, on the same prompt. Whoever wants a cheaper model takes, of those within his
budget that keep their utility, the least harmful: these are the frontier. Reads records only; writes no HTML.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from holdfast import survival
from holdfast.dossier import Point
from holdfast.record import AttackFacts, SubjectFacts
from holdfast.report import figures, hover, tables, words
from holdfast.report.figures import Panel
from holdfast.report.looks import GRID, MUTED, Look, looks
from holdfast.report.tables import Table, Value
from holdfast.report.words import Index

_RELEASED = "as released"
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "cross", "triangle-down", "hexagon")
"""One an attack; the released model is a star."""


class Shares(NamedTuple):
    """What a stand takes, of what the subject takes as released."""

    memory: float
    operations: float
    parameters: float


class Stand(NamedTuple):
    """A subject as it was at one point of an attack, or as released."""

    attack: AttackFacts | None
    """None: as released."""
    point: Point
    cost: Shares
    frontier: bool = False
    """No other that keeps its utility takes as little memory, or less, and is less harmful."""

    @property
    def name(self) -> str:
        """As *quantize at 12*."""
        return f"{words.clean(self.attack.name, 60)} at {self.point.position:g}" if self.attack else _RELEASED

    @property
    def kept(self) -> bool:
        """Whether most seeds answered with the utility that a break needs: on a severity all others are incoherent."""
        return self.point.status == "answers" and self.point.harm is not None


class View(NamedTuple):
    """One subject, as the page shows it."""

    turn: int
    panel: Panel
    says: str
    stands: list[Stand]
    """From what takes most memory to what takes least."""


def views(index: Index) -> list[View]:
    """Every subject that some attack made cheaper."""
    found = [(turn, facts, stands(index, facts)) for turn, facts in enumerate(index.subjects)]
    saving = dict.fromkeys(one.attack.name for *_, some in found for one in some if one.attack)
    symbols = {name: _SYMBOLS[number % len(_SYMBOLS)] for number, name in enumerate(saving)}
    ends = _ends([one.cost.memory for *_, some in found for one in some])
    made = []
    for (turn, facts, some), look in zip(found, looks(index.subjects), strict=True):
        if some:
            told = says(index, facts, some)
            figure = _drawn(index, turn, facts, look, some, symbols, ends)
            made.append(
                View(
                    turn,
                    Panel(figure, words.clean(facts.name), told, False, f"frontier-{facts.name}", _table(facts, some)),
                    told,
                    some,
                )
            )
    return made


def stands(index: Index, facts: SubjectFacts) -> list[Stand]:
    """The subject as released and at each point of the attacks that made it cheaper; nothing where none did."""
    found: list[Stand] = []
    for attack in index.attacks:
        if attack.settings.get("picture", "shown") != "shown":
            continue  # a control: nobody deploys a model that is shown noise
        curve, there = index.curve(facts, attack), index.looks(facts, attack)
        counted = [(point, _cost(there.get(point.position, []))) for point in curve.points] if curve else []
        mine = [(point, cost) for point, cost in counted if cost]
        if any(min(cost) < 1 for _, cost in mine):
            found += [] if found else [Stand(None, *mine[0])]
            found += [Stand(attack, *one) for one in mine[1:]]
    best = frontier(found)
    return sorted((one._replace(frontier=one in best) for one in found), key=lambda one: -one.cost.memory)


def frontier(found: Sequence[Stand]) -> list[Stand]:
    """From what takes least memory on, each that is less harmful than all before it; only what keeps its utility."""
    best: list[Stand] = []
    for one in sorted((one for one in found if one.kept), key=lambda one: (one.cost.memory, _harm(one))):
        if not best or _harm(one) < _harm(best[-1]):
            best.append(one)
    return best


def says(index: Index, facts: SubjectFacts, found: Sequence[Stand]) -> str:
    """The cheapest stand that is not broken, in words."""
    tau, name = index.dossier.manifest.threshold, words.clean(facts.name)
    held = min((one for one in found if one.kept and _harm(one) < tau), key=lambda one: one.cost.memory, default=None)
    if held is None:
        return f"{name}: wherever utility is kept, harm is at least {tau:g}, as released too."
    if held.attack is None:
        return f"{name}: nothing cheaper than the released model keeps its utility with harm below {tau:g}."
    return (
        f"{name}: the cheapest that keeps its utility with harm below {tau:g} is {held.name} "
        f"({words.clean(held.attack.axis, 60)}), with {share(held.cost.memory)} of the memory, "
        f"{share(held.cost.operations)} of the operations and harm {words.number(_harm(held))} {words.span(held.point.harm)}."
    )


def _table(facts: SubjectFacts, found: Sequence[Stand]) -> Table:
    """A row a stand."""
    scores = [f"{name}{part}" for name in ("harm", "utility") for part in ("", "_low", "_high", "_n")]
    rows = []
    for one in found:
        told: list[Value] = [
            facts.name,
            one.attack.name if one.attack else _RELEASED,
            one.point.position,
            one.point.status,
        ]
        told += [*one.cost, int(one.frontier)]
        for score in (one.point.harm, one.point.utility):
            told += [score.value, score.low, score.high, score.n] if score else [None] * 4
        rows.append(told)
    return tables.table(
        f"frontier-{facts.name}",
        ["subject", "attack", "severity", "status", *Shares._fields, "on_frontier", *scores],
        rows,
    )


def share(value: float) -> str:
    """In percent; above 100 where an attack adds weights, as a head of its own."""
    return f"{words.percent(value) if value <= 1 else f'{100 * value:.3g}'} %"


def _harm(one: Stand) -> float:
    return one.point.harm.value if one.point.harm else 1.0


def _cost(looks: Sequence[survival.Look]) -> Shares | None:
    """At one place: mean over the seeds that were counted there, each beside its own start."""
    pairs = [
        (look.deployed, cell.milestones[0].deployed)
        for cell, _, look in looks
        if look.deployed and cell.milestones[0].deployed
    ]
    if not pairs:
        return None
    fields = ("bytes", "flops", "parameters")
    return Shares(*(fmean(getattr(now, name) / getattr(start, name) for now, start in pairs) for name in fields))


def _ends(memory: Sequence[float]) -> tuple[float, float]:
    """Of the axis, the same for every subject: a little beyond the points."""
    room = 0.05 * (max(memory, default=1.0) - min(memory, default=1.0)) or 0.05
    return min(memory, default=1.0) - room, max(memory, default=1.0) + room


def _drawn(
    index: Index,
    turn: int,
    facts: SubjectFacts,
    look: Look,
    found: Sequence[Stand],
    symbols: dict[str, str],
    ends: tuple[float, float],
) -> go.Figure:
    """Harm above, utility below, over the share of memory; the frontier is a step line through ringed points."""
    figure = make_subplots(
        2, 1, shared_xaxes=True, subplot_titles=("harm", "utility"), row_heights=[0.62, 0.38], vertical_spacing=0.09
    )
    figure.add_trace(_line(turn, look, [one for one in found if one.frontier], ends[1]), 1, 1)
    for name in dict.fromkeys(one.attack.name if one.attack else _RELEASED for one in found):
        some = [one for one in found if (one.attack.name if one.attack else _RELEASED) == name]
        for row, field in enumerate(("harm", "utility"), 1):
            figure.add_trace(_marks(index, turn, facts, look, some, field, symbols.get(name, "star")), row, 1)
    for row, (level, note, side) in enumerate(_levels(index, found), 1):
        told = {"text": f"{note} {level:.2g}", "font": {"color": MUTED, "size": 11}}
        line = {"color": MUTED, "width": 1, "dash": "dot"}
        figure.add_hline(y=level, line=line, annotation=told, annotation_position=side, row=row, col=1)
    axis = {"gridcolor": GRID, "zeroline": False, "fixedrange": True, "tickfont": {"color": MUTED, "size": 12}}
    title = {"text": "memory, share of the released model's", "font": {"color": MUTED, "size": 12}, "standoff": 6}
    figure.update_xaxes(**axis, range=ends, nticks=6, tickformat=".1~%")
    figure.update_xaxes(title=title, row=2, col=1)
    figure.update_yaxes(**axis, range=[-0.1, 1.06], tickformat=".1f", dtick=0.5)
    figure.update_annotations(font={"size": 12, "color": MUTED}, name="threshold")
    figures.ground(figure)
    legend = {"orientation": "h", "y": -0.17, "x": 0, "itemclick": False, "itemdoubleclick": False}
    figure.update_layout(margin={"l": 34, "r": 10, "t": 22, "b": 70}, legend=legend)
    return figure


def _levels(index: Index, found: Sequence[Stand]) -> list[tuple[float, str, str]]:
    """From what harm on a model is broken, and from what utility on that counts; and where to write it."""
    manifest, own = index.dossier.manifest, next(one for one in found if one.attack is None).point.utility
    levels = [(manifest.threshold, "broken from", "top left")]
    return levels + ([(manifest.utility_floor * own.value, "kept from", "bottom left")] if own else [])


def _line(turn: int, look: Look, best: Sequence[Stand], end: float) -> go.Scatter:
    """Within so much memory, the least harm."""
    order = sorted(best, key=lambda one: one.cost.memory)
    x, y = [one.cost.memory for one in order], [_harm(one) for one in order]
    return go.Scatter(
        x=[*x, end] if x else [],
        y=[*y, y[-1]] if y else [],
        mode="lines+markers",
        line={"color": look.color, "width": 1.6, "dash": look.dash, "shape": "hv"},
        marker={"symbol": "circle-open", "size": [15] * len(x) + [0], "color": look.color, "line": {"width": 1.4}},
        meta={"subject": turn, "part": "line"},
        name="frontier",
        hoverinfo="skip",
    )


def _marks(
    index: Index, turn: int, facts: SubjectFacts, look: Look, some: Sequence[Stand], field: str, symbol: str
) -> go.Scatter:
    """One attack's points: open where incoherent, crosses below the axis where no model is left."""
    scores = [None if one.point.status == "dead" else getattr(one.point, field) for one in some]
    shapes = {"answers": symbol, "incoherent": f"{symbol}-open", "dead": "x-thin"}
    symbols = [shapes[one.point.status] if score else "x-thin" for one, score in zip(some, scores, strict=True)]
    marker = {"symbol": symbols, "size": 8, "color": look.color, "line": {"width": 1.6, "color": look.color}}
    up, down = ([abs(getattr(one, end) - one.value) if one else 0 for one in scores] for end in ("high", "low"))
    bars = {"type": "data", "array": up, "arrayminus": down, "color": look.color, "thickness": 1, "width": 2}
    return go.Scatter(
        x=[one.cost.memory for one in some],
        y=[score.value if score else -0.06 for score in scores],
        mode="markers",
        marker=marker,
        error_y=bars,
        meta={"subject": turn, "part": "line"},
        name=hover.plain(some[0].attack.name if some[0].attack else _RELEASED, 40),
        showlegend=field == "harm",
        hovertext=[_hover(index, facts, one) for one in some],
        hoverinfo="text",
    )


def _hover(index: Index, facts: SubjectFacts, one: Stand) -> str:
    if one.attack is None:
        scores = [(name, getattr(one.point, name)) for name in ("harm", "utility")]
        told = [f"{name} {score.value:.2f} {words.span(score)}, n {score.n}" for name, score in scores if score]
        return "<br>".join([f"<b>{hover.plain(facts.name)}</b> {_RELEASED}", *told])
    parts = zip(one.cost, Shares._fields, strict=True)
    cost = ", ".join(f"{share(part)} of the {what}" for part, what in parts)
    lines = [hover.plain(one.attack.name), hover.of_point(index, facts, one.attack, one.point), cost]
    return "<br>".join([*lines, "on the frontier"] if one.frontier else lines)
