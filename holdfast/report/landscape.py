"""The safety landscape: harm and utility around each subject, along one random direction or on a plane of two.

The maps color what lies between the places looked at by interpolation. Where the model is
incoherent or dead, harm has no color: such a place is neither safe nor harmful.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy.interpolate import RBFInterpolator
from scipy.spatial import KDTree

from holdfast.dossier import Curve, Point
from holdfast.record import AttackFacts, SubjectFacts
from holdfast.report import figures, hover, tables, words
from holdfast.report.figures import Panel
from holdfast.report.looks import MUTED, tint
from holdfast.report.tables import Table
from holdfast.report.words import Index

SCALE = "Cividis"
"""Even in lightness, and the same to every kind of color vision."""
_SIDE = 61
"""Pixels along each side of a map."""


class View(NamedTuple):
    """One walk along random directions, as the page shows it."""

    facts: AttackFacts
    plane: bool
    panels: list[Panel]
    rows: list[dict[str, Any]]
    """For each subject its turn and its curve's `Landscape`."""


def views(index: Index) -> list[View]:
    """Every walk of the run with its figures and its numbers."""
    made = []
    for attack in index.landscapes:
        curves = index.curves(attack)
        table = tables.of_attack(index, attack)
        plane = any(point.plane for _, _, curve in curves for point in curve.points)
        panels = [_maps(index, attack, *one, table) for one in curves] if plane else figures.panels(index, attack)
        rows = [{"turn": turn, "landscape": curve.landscape} for turn, _, curve in curves if curve.landscape]
        made.append(View(attack, plane, panels, rows))
    return made


def says(index: Index, facts: SubjectFacts, curve: Curve) -> str:
    """The numbers of one subject's landscape, in words."""
    found, tau = curve.landscape, index.dossier.manifest.threshold
    if found is None:
        return ""
    disc = "disc" if any(point.plane for point in curve.points) else "walk"
    first = f"first reaches {tau:g} at {found.radius:.2g}" if found.radius is not None else f"stays below {tau:g}"
    return (
        f"Within {found.reach:g} ({words.clean(curve.axis)}) of {words.clean(facts.name)} harm {first}; "
        f"{found.broken:.0%} of the {disc} is broken, {found.incoherent:.0%} incoherent or dead."
    )


def _maps(index: Index, attack: AttackFacts, turn: int, facts: SubjectFacts, curve: Curve, table: Table) -> Panel:
    """Harm and utility side by side."""
    reach = max(point.position for point in curve.points) or 1.0
    figure = make_subplots(1, 2, subplot_titles=("harm", "utility"), horizontal_spacing=0.04)
    for column, field in enumerate(("harm", "utility"), 1):
        figure.add_trace(_map(curve.points, field, reach, column == 2), 1, column)
        figure.add_trace(_dots(index, attack, facts, curve.points, field), 1, column)
        disc = {"type": "circle", "x0": -reach, "x1": reach, "y0": -reach, "y1": reach, "layer": "below"}
        figure.add_shape(**disc, line={"width": 0}, fillcolor=tint(MUTED, 0.13), row=1, col=column)
    figure.update_traces(meta={"subject": turn, "part": "map"})
    axis = {
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
        "range": [-1.04 * reach, 1.04 * reach],
        "nticks": 5,
    }
    figure.update_xaxes(**axis, tickfont={"color": MUTED, "size": 11}, constrain="domain")
    figure.update_yaxes(**axis, tickfont={"color": MUTED, "size": 11}, constrain="domain")
    figure.update_yaxes(scaleanchor="x", col=1)
    figure.update_yaxes(scaleanchor="x2", showticklabels=False, col=2)
    figure.update_annotations(font={"size": 12, "color": MUTED}, name="threshold")
    figures.ground(figure)
    figure.update_layout(margin={"l": 34, "r": 8, "t": 22, "b": 24})
    return Panel(
        figure, words.clean(facts.name), says(index, facts, curve), False, f"{attack.name}-{facts.name}", table
    )


def _map(points: tuple[Point, ...], field: str, reach: float, bar: bool) -> go.Heatmap:
    """The disc colored by interpolation between the places looked at; no color where the nearest has none to give."""
    places = np.array([point.plane or (0.0, 0.0) for point in points])
    line = np.linspace(-reach, reach, _SIDE)
    grid = np.stack(np.meshgrid(line, line), axis=-1)
    silent = ("dead", "incoherent") if field == "harm" else ("dead",)
    scores = [None if point.status in silent else getattr(point, field) for point in points]
    known = [number for number, score in enumerate(scores) if score]
    colors = np.full(grid.shape[:2], np.nan)
    if known:
        between = RBFInterpolator(places[known], [scores[number].value for number in known], kernel="linear")
        colors = np.clip(between(grid.reshape(-1, 2)).reshape(grid.shape[:2]), 0, 1)
    blank = ~np.isin(KDTree(places).query(grid)[1], known) | (np.linalg.norm(grid, axis=-1) > reach * 1.01)
    shown = [[None if empty else round(float(color), 2) for color, empty in zip(*row, strict=True)]
             for row in zip(colors, blank, strict=True)]  # fmt: skip
    label = {"thickness": 10, "outlinewidth": 0, "tickfont": {"color": MUTED, "size": 11}, "dtick": 0.5, "len": 0.9}
    place = [round(float(at), 4) for at in line]
    return go.Heatmap(
        x=place, y=place, z=shown, zmin=0, zmax=1, colorscale=SCALE, showscale=bar, colorbar=label, hoverinfo="skip"
    )


def _dots(index: Index, attack: AttackFacts, facts: SubjectFacts, points: tuple[Point, ...], field: str) -> go.Scatter:
    """The places looked at: black where broken, white where not, crosses where there is no answer to judge."""
    at = [point.plane or (0.0, 0.0) for point in points]
    broken = [2 * point.broken > point.seeds for point in points]
    marker = {
        "symbol": ["circle" if point.status == "answers" else "x" for point in points],
        "size": 7,
        "color": ["#111111" if one else "#ffffff" for one in broken],
        "line": {"width": 1.2, "color": ["#ffffff" if one else "#111111" for one in broken]},
    }
    return go.Scatter(
        x=[x for x, _ in at],
        y=[y for _, y in at],
        mode="markers",
        marker=marker,
        hovertext=[_hover(index, attack, facts, point) for point in points],
        hoverinfo="text",
        showlegend=False,
    )


def _hover(index: Index, attack: AttackFacts, facts: SubjectFacts, point: Point) -> str:
    x, y = point.plane or (0.0, 0.0)
    angle = math.degrees(math.atan2(y, x))
    return f"{hover.of_point(index, facts, attack, point)}<br>direction {angle:.0f}°, broken in {point.broken} seeds"
