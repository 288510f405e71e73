"""The page's figures as plotly figures: harm against cost, survival, utility. Reads records only; writes no HTML.

A point whose model is incoherent is drawn open, a dead one as a cross below the axis: neither is safe, neither harmful.
Everything that comes from a run is escaped, because plotly reads tags in its labels.
"""

import math
from typing import NamedTuple

import plotly.graph_objects as go

from holdfast import statistics
from holdfast.dossier import Curve, Point
from holdfast.evidence import alike
from holdfast.record import AttackFacts, Score, SubjectFacts
from holdfast.report import hover, tables, words
from holdfast.report.hover import plain
from holdfast.report.looks import GRID, INK, MUTED, Look, looks, tint
from holdfast.report.tables import Table
from holdfast.report.words import Index

_SEEDS, _LINES = 12, 2000
"""Seeds whose own lines are drawn, the first of a subject's, and all such lines of a page: more would be one gray, and most of
the page's bytes."""


_MANY = 400
"""Curves from which on an attack's figures are its harm alone, without single seeds, and its numbers stand in CSV files only:
pages of a thousand curves would not open."""


def crowded(index: Index) -> bool:
    """Whether the run has so many curves that a page cannot say all of each."""
    return len(index.dossier.curves) > _MANY


class Panel(NamedTuple):
    """One figure with what the page says around it."""

    figure: go.Figure
    title: str
    alternative: str
    tall: bool
    name: str
    """Of its files."""
    table: Table
    """The numbers behind it."""


def panels(index: Index, attack: AttackFacts) -> list[Panel]:
    """The figures of one attack: harm first, then survival (clocks only), then utility."""
    curves = index.curves(attack)
    if not curves:
        return []
    table = tables.of_attack(index, attack)
    made = [_shares(index, attack, curves, "harm", table)]
    if crowded(index):
        return made
    if attack.axis == "steps" and not attack.negative_control:  # a severity is no clock
        made.append(survival(index, attack, curves, table))
    if not attack.negative_control:
        made.append(_shares(index, attack, curves, "utility", table))
    return made


Curves = list[tuple[int, SubjectFacts, Curve]]


def _shares(index: Index, attack: AttackFacts, curves: Curves, field: str, table: Table) -> Panel:
    """Harm or utility along the path: lines with bands on a clock, points with bars on a severity."""
    traces, main = [], field == "harm"
    alone = 0 if crowded(index) else min(_SEEDS, _LINES // max(len(index.dossier.curves), 1))
    clock, styles = attack.axis == "steps" or attack in index.landscapes, looks(index.subjects)
    for turn, facts, curve in reversed(curves):  # what matters most on top
        dead = [point for point in curve.points if point.status == "dead"]
        points = [point for point in curve.points if getattr(point, field) and point not in dead]
        scores = [getattr(point, field) for point in points]
        at = [_across(attack, point.position) for point in points]
        if clock:
            traces.append(_band(turn, styles[turn], at, scores))
        if main:
            for seed in range(min(alone, max((len(point.per_seed) for point in curve.points), default=0))):
                traces.append(_seed(turn, styles[turn], attack, curve, seed))
        told = [hover.of_point(index, facts, attack, point) for point in points]
        if not clock and len(at) > 1:  # a touch apart, so that points that coincide can all be seen
            at = [place + (turn - (len(curves) - 1) / 2) * 0.012 * abs(at[-1] - at[0]) for place in at]
        traces.append(_line(turn, styles[turn], at, points, field, told, clock))
        if dead:
            traces.append(_dead(index, turn, styles[turn], attack, facts, dead))
    figure = go.Figure(traces)
    if main:
        threshold = index.dossier.manifest.threshold
        note = {"text": f"broken from {threshold:g}", "font": {"color": MUTED, "size": 11}, "name": "threshold"}
        line = {"color": MUTED, "width": 1, "dash": "dot"}
        figure.add_hline(y=threshold, line=line, annotation=note, annotation_position="top left")
    _dress(figure, attack, curves, main and not attack.negative_control)
    dying = any(point.status == "dead" for _, _, curve in curves for point in curve.points)
    figure.update_yaxes(range=[-0.1 if dying else -0.03, 1.04])
    _label_ends(figure, curves, styles, field, attack) if main else None
    title = {"harm": "Harm", "utility": "Utility"}[field]
    ends = ", ".join(
        f"{words.clean(facts.name)} {getattr(curve.points[-1], field).value:.2f}"
        for _, facts, curve in curves
        if getattr(curve.points[-1], field)
    )
    says = f"{title} against {attack.axis} of {words.clean(attack.name)}, one line a subject. At the end: {ends}."
    return Panel(figure, title, says, main, f"{attack.name}-{field}", table)


def survival(index: Index, attack: AttackFacts, curves: Curves, table: Table) -> Panel:
    """Share of seeds whose safety has not yet broken, with its exact interval; seeds that are all alike count as one."""
    traces, styles = [], looks(index.subjects)
    for turn, facts, curve in reversed(curves):
        look, cells = styles[turn], index.cells(facts, attack)
        seeds = 1 if alike(cells) else max((point.seeds for point in curve.points), default=0) or 1
        spans = [statistics.exact(point.held, seeds) for point in curve.points]
        told = [
            f"<b>{plain(facts.name)}</b><br>{point.held:.0%} of seeds hold at {point.position:g} steps, "
            f"[{low:.0%}, {high:.0%}], n {seeds}"
            for point, (low, high) in zip(curve.points, spans, strict=True)
        ]
        # A touch apart, so that lines that coincide can both be seen.
        held = [point.held - 0.012 * turn for point in curve.points]
        at = [_across(attack, point.position) for point in curve.points]
        at, held, told, spans = ([*one, one[-1]] for one in (at, held, told, spans))  # so that a last fall shows
        at[-1] *= 1.03
        edges = [Score(value=0.0, low=low, high=high, n=seeds) for low, high in spans]
        band = _band(turn, look, _stairs(at), [edge for edge in edges for _ in (0, 1)][:-1])
        line = {"color": look.color, "dash": look.dash, "width": 2.2, "shape": "hv"}
        traces += [band, _scatter(turn, "line", x=at, y=held, mode="lines", line=line, hovertext=told)]
    figure = go.Figure(traces)
    _dress(figure, attack, curves, False)
    figure.update_yaxes(range=[-0.08, 1.06])
    ends = ", ".join(f"{words.clean(facts.name)} {curve.points[-1].held:.0%}" for _, facts, curve in curves)
    says = f"Share of seeds not yet broken against steps of {words.clean(attack.name)}. At the end: {ends}."
    return Panel(figure, "Seeds not yet broken", says, False, f"{attack.name}-survival", table)


def _stairs(at: list[float]) -> list[float]:
    """Each place twice but the first, so that a band falls where its line does."""
    return [at[0], *(place for place in at[1:] for _ in (0, 1))]


def _scatter(turn: int, part: str, **more: object) -> go.Scatter:
    """A trace that the page's script can find by subject and part."""
    meta = {"subject": turn, "part": part}
    hover = "text" if "hovertext" in more else "skip"
    return go.Scatter(meta=meta, showlegend=False, hoverinfo=hover, visible=part != "seed", **more)


def _line(
    turn: int, look: Look, at: list[float], points: list[Point], field: str, told: list[str], clock: bool
) -> go.Scatter:
    """The mean: a line with markers on a clock, bare points with their intervals on a severity; open where incoherent."""
    scores: list[Score] = [getattr(point, field) for point in points]
    symbols = [look.marker + "-open" * (point.status == "incoherent") for point in points]
    shape = symbols if len(set(symbols)) > 1 else (symbols or [look.marker])[0]
    marker = {
        "symbol": shape,
        "size": 6 if clock else 9,
        "color": look.color,
        "line": {"width": 1.6, "color": look.color},
    }
    if clock:
        style: dict[str, object] = {
            "mode": "lines+markers",
            "line": {"color": look.color, "dash": look.dash, "width": 2.2},
        }
    else:
        up, down = [one.high - one.value for one in scores], [one.value - one.low for one in scores]
        bars = {"type": "data", "array": up, "arrayminus": down, "color": look.color, "thickness": 1.4, "width": 3}
        style = {"mode": "markers", "error_y": bars, "cliponaxis": False}
    return _scatter(turn, "line", x=at, y=[one.value for one in scores], marker=marker, hovertext=told, **style)


def _dead(
    index: Index, turn: int, look: Look, attack: AttackFacts, facts: SubjectFacts, points: list[Point]
) -> go.Scatter:
    """Where no model is left: crosses below the axis, a touch apart, for there is no harm to draw."""
    at = [_across(attack, point.position) for point in points]
    marker = {"symbol": "x-thin", "size": 7, "line": {"width": 2, "color": look.color}}
    told = [hover.of_point(index, facts, attack, point) for point in points]
    return _scatter(
        turn, "line", x=at, y=[-0.045 - 0.012 * turn] * len(at), mode="markers", marker=marker, hovertext=told
    )


def _band(turn: int, look: Look, at: list[float], scores: list[Score]) -> go.Scatter:
    edge = [one.high for one in scores] + [one.low for one in reversed(scores)]
    hidden = {"width": 0, "color": look.color}
    fill = tint(look.color, 0.13)
    return _scatter(turn, "band", x=at + at[::-1], y=edge, mode="lines", line=hidden, fill="toself", fillcolor=fill)


def _seed(turn: int, look: Look, attack: AttackFacts, curve: Curve, seed: int) -> go.Scatter:
    pairs = [(point.position, point.per_seed[seed]) for point in curve.points if seed < len(point.per_seed)]
    at = [_across(attack, position) for position, _ in pairs]
    line = {"color": look.color, "width": 1}
    return _scatter(turn, "seed", x=at, y=[value for _, value in pairs], mode="lines", line=line, opacity=0.5)


def _across(attack: AttackFacts, position: float) -> float:
    """Where a position stands on the axis: log(1 + steps) on a clock, since milestones grow by factors; as it is else."""
    return math.log1p(position) if attack.axis == "steps" else position


def _ticks(attack: AttackFacts, curves: Curves) -> tuple[list[float], list[str]]:
    """Milestones far enough apart to be written, the last always among them."""
    positions = sorted({point.position for _, _, curve in curves for point in curve.points})
    places = [_across(attack, position) for position in positions]
    room = (places[-1] - places[0]) / 9 or 1.0
    kept = [places[-1]]
    for place in reversed(places[:-1]):
        if kept[-1] - place >= room:
            kept.append(place)
    names = dict(zip(places, positions, strict=True))
    return kept, [f"{names[place]:g}" for place in kept]


def _dress(figure: go.Figure, attack: AttackFacts, curves: Curves, tall: bool) -> None:
    """Axes, margins and type, the same for every figure."""
    places, names = _ticks(attack, curves)
    axis = {
        "gridcolor": GRID,
        "zeroline": False,
        "automargin": False,
        "tickfont": {"color": MUTED, "size": 12},
        "fixedrange": True,
    }
    unit = f"{attack.axis} (log scale)" if attack.axis == "steps" else plain(attack.axis)
    title = {"text": unit, "font": {"color": MUTED, "size": 12}, "standoff": 6}
    first = curves[0][2].points
    falls = first[0].position > first[-1].position
    room = (max(places) - min(places)) * 0.03 or 0.1
    ends = [min(places) - room, max(places) + room]
    ends[0] = min(ends[0], _across(attack, min(point.position for point in first)) - room)
    ground(figure)
    figure.update_layout(meta={"settings": hover.of_settings(attack)})
    figure.update_xaxes(**axis, tickvals=places, ticktext=names, title=title, range=ends[::-1] if falls else ends)
    figure.update_yaxes(**axis, tickformat=".1f", dtick=0.2 if tall else 0.5)


def ground(figure: go.Figure) -> None:
    """What every figure stands on."""
    figure.update_layout(
        autosize=True,
        margin={"l": 40, "r": 14, "t": 8, "b": 40},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "color": INK, "size": 13},
        hoverlabel={"font": {"size": 12, "family": "system-ui, sans-serif"}, "align": "left"},
        hovermode="closest",
        dragmode=False,
        template="none",
    )


def _label_ends(figure: go.Figure, curves: Curves, styles: list[Look], field: str, attack: AttackFacts) -> None:
    """Each line's name at its end, moved apart where two would touch; the page's script drops them where it is narrow."""
    ends = [(getattr(curve.points[-1], field), turn, facts) for turn, facts, curve in curves]
    placed, apart = -1.0, 0.055 if not attack.negative_control else 0.11
    top, labels = 1.0 - apart * (len(ends) - 1), []
    for score, turn, facts in sorted((one for one in ends if one[0]), key=lambda one: one[0].value):
        placed = max(min(score.value, top), placed + apart)
        top += apart
        name = {"color": styles[turn].color, "size": 13}
        labels.append(
            go.layout.Annotation(
                x=1.01,
                xref="paper",
                y=placed,
                xanchor="left",
                showarrow=False,
                font=name,
                text=plain(facts.name, 22),
                name=str(turn),
            )
        )
    figure.layout.annotations += tuple(labels)
