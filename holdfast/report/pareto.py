"""Utility against cost to break: who gives up least and holds longest. Reads records only; writes no HTML."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import plotly.graph_objects as go

from holdfast.record import AttackFacts, Score, SubjectFacts
from holdfast.report import figures, hover, tables, words
from holdfast.report.figures import Panel
from holdfast.report.looks import GRID, INK, MUTED, Look
from holdfast.report.words import Index
from holdfast.units import operations, short

_PLOT = (700, 340)
"""Pixels of the plot, about: for labels that do not cover each other."""


class Price(NamedTuple):
    """What the cheapest of some attacks spent until it broke a subject."""

    attack: str
    value: float | None
    """None: none broke the median seed."""
    low: float
    high: float | None
    budget: float
    """The most that any of the attacks spent."""
    steps: str
    """In the attack's own unit, with its interval."""

    @property
    def at_least(self) -> float:
        """Where it is drawn."""
        return self.budget if self.value is None else self.value


def unit(subjects: Sequence[tuple[Index, SubjectFacts]], clocks: Sequence[AttackFacts]) -> str:
    """`FLOPs`, which attacks share; `steps` where operations were not counted."""
    spent = [look.cost for index, facts in subjects for one in clocks for cell in index.cells(facts, one)
             for look in cell.milestones if look.cost.steps]  # fmt: skip
    return "FLOPs" if spent and all(cost.flops for cost in spent) else "steps"


def cheapest(index: Index, facts: SubjectFacts, clocks: Sequence[AttackFacts], unit: str) -> Price | None:
    """None where none of the attacks says anything of the subject."""
    found = [price for attack in clocks if (price := _price(index, facts, attack, unit))]
    if not found:
        return None
    budget = max(one.budget for one in found)
    least = min(found, key=lambda one: (one.value is None, one.at_least))
    return least._replace(budget=budget)


def frontier(utilities: Sequence[Score | None], prices: Sequence[Price | None]) -> set[int]:
    """Those that no other beats in both: as useful and harder to break, or as hard and more useful."""
    known = {
        turn: (utility.value, price.at_least, price.value is None)
        for turn, (utility, price) in enumerate(zip(utilities, prices, strict=True))
        if utility and price
    }
    return {
        turn
        for turn, mine in known.items()
        if not any(all(a >= b for a, b in zip(other, mine, strict=True)) and other != mine for other in known.values())
    }


def panel(
    names: Sequence[str],
    styles: Sequence[Look],
    utilities: Sequence[Score | None],
    prices: Sequence[Price | None],
    best: set[int],
    unit: str,
    name: str,
) -> Panel | None:
    """A point a subject, those on the frontier ringed and joined; None where there are not two to compare."""
    known = [turn for turn in range(len(names)) if utilities[turn] and prices[turn]]
    if len(known) < 2:
        return None
    figure = go.Figure()
    steps = sorted(best, key=lambda turn: utilities[turn].value)
    figure.add_trace(
        go.Scatter(
            x=[utilities[turn].value for turn in steps],
            y=[prices[turn].at_least for turn in steps],
            mode="lines+markers",
            line={"color": MUTED, "width": 1.4, "dash": "dot", "shape": "vh"},
            marker={"symbol": "circle-open", "size": 17, "color": MUTED},
            hoverinfo="skip",
            meta={"subject": -1, "part": "line"},
            showlegend=False,
        )
    )
    rows = []
    for turn in known:
        utility, price = utilities[turn], prices[turn]
        figure.add_trace(_mark(turn, names[turn], styles[turn], utility, price, unit))
        rows.append([names[turn], utility.value, utility.low, utility.high, utility.n, price.attack, price.value,
                     price.low, price.high, price.budget, int(turn in best)])  # fmt: skip
    _dress(figure, [utilities[turn] for turn in known], [prices[turn] for turn in known], unit)
    _label(figure, {turn: (names[turn], styles[turn].color, utilities[turn], prices[turn]) for turn in known})
    told = "; ".join(f"{names[turn]} {utilities[turn].value:.2f} and {said(prices[turn], unit)}" for turn in known)
    lead = ", ".join(names[turn] for turn in steps)
    says = f"Utility before any attack, and cost of the cheapest shared attack: {told}. On the frontier: {lead}."
    columns = ["subject", "utility", "utility_low", "utility_high", "utility_n", "cheapest_attack", f"{unit}_to_break",
               f"{unit}_low", f"{unit}_high", f"{unit}_budget", "on_frontier"]  # fmt: skip
    return Panel(figure, "Utility against cost to break", says, True, name, tables.table(name, columns, rows))


def said(price: Price, unit: str) -> str:
    """As *1.2 TFLOPs*, or *more than 3 TFLOPs*."""
    told = operations(price.at_least) if unit == "FLOPs" else f"{short(price.at_least)} steps"
    return f"more than {told}" if price.value is None else told


def _price(index: Index, facts: SubjectFacts, attack: AttackFacts, unit: str) -> Price | None:
    verdict, cells = index.verdict(facts, attack), index.cells(facts, attack)
    looks = [look.cost for cell in cells if cell.status != "failed" for look in cell.milestones]
    if verdict is None or words.silent(verdict) or not looks:
        return None
    positions = sorted({cost.steps for cost in looks})
    spent = {at: fmean(cost.flops if unit == "FLOPs" else cost.steps for cost in looks if cost.steps == at)
             for at in positions}  # fmt: skip

    def paid(steps: float) -> float:
        """A median between two looks is as dear as the later one."""
        return spent[next((at for at in positions if at >= steps), positions[-1])]

    cost, end = verdict.cost_to_break, positions[-1]
    told = f"{words.breaks_at(cost, end)} steps, {words.break_span(cost, end)}"
    value, high = (None if one is None else paid(one) for one in (cost.steps, cost.high))
    return Price(attack.name, value, paid(cost.low), high, spent[end], told)


def _mark(turn: int, name: str, look: Look, utility: Score, price: Price, unit: str) -> go.Scatter:
    """A point with both intervals; open and pointing up where nothing broke it within the budget."""
    unbroken = price.value is None
    y = price.at_least
    across = {"type": "data", "array": [utility.high - utility.value], "arrayminus": [utility.value - utility.low]}
    along = {"type": "data", "array": [max((price.high or price.budget) - y, 0)], "arrayminus": [max(y - price.low, 0)]}
    bar = {"color": look.color, "thickness": 1.2, "width": 3}
    marker = {"symbol": "triangle-up-open" if unbroken else look.marker, "size": 11, "color": look.color}
    told = [f"<b>{hover.plain(name)}</b>", f"utility {utility.value:.2f} {words.span(utility)}, n {utility.n}",
            f"{said(price, unit)} of {hover.plain(price.attack)} ({price.steps})"]  # fmt: skip
    return go.Scatter(
        x=[utility.value],
        y=[y],
        mode="markers",
        marker=marker,
        error_x=across | bar,
        error_y=along | bar,
        hovertext=["<br>".join(told)],
        hoverinfo="text",
        showlegend=False,
        meta={"subject": turn, "part": "line"},
    )


def _label(figure: go.Figure, points: dict[int, tuple[str, str, Score, Price]]) -> None:
    """Each point's name at its left, moved up where it would cover another."""
    (left, right), (bottom, top) = figure.layout.xaxis.range, figure.layout.yaxis.range
    wide, high = _PLOT
    placed: list[tuple[float, float, float]] = []
    for turn, (name, color, utility, price) in sorted(points.items(), key=lambda one: one[1][3].at_least):
        text = words.clean(name, 40)
        end = wide * (utility.value - left) / (right - left) - 12
        start, shift = end - 6.6 * len(text), 11
        level = high * (_log(price.at_least) - bottom) / (top - bottom)
        while any(abs(level + shift - y) < 13 and start < e and s < end for s, e, y in placed):
            shift += 7
        placed.append((start, end, level + shift))
        place = {"x": utility.value, "y": _log(price.at_least), "xshift": -12, "yshift": shift, "xanchor": "right"}
        font = {"color": color, "size": 12}
        figure.add_annotation(**place, showarrow=False, name=str(turn), text=hover.plain(text), font=font)


def _dress(figure: go.Figure, utilities: Sequence[Score], prices: Sequence[Price], unit: str) -> None:
    figures.ground(figure)
    axis = {"gridcolor": GRID, "zeroline": False, "fixedrange": True, "tickfont": {"color": MUTED, "size": 12}}
    title = {"font": {"color": MUTED, "size": 12}, "standoff": 6}
    low = min(one.low for one in utilities)
    figure.update_xaxes(
        **axis, range=[max(low - 0.05, -0.02), 1.03], title={"text": "utility before any attack"} | title
    )
    ends = [value for one in prices for value in (one.low, one.at_least, one.budget) if value > 0] or [1.0]
    range_ = [_log(min(ends)) - 0.25, _log(max(ends)) + 0.35]
    what = "operations" if unit == "FLOPs" else "steps"
    text = {"text": f"{what} to the cheapest break (log scale)"}
    figure.update_yaxes(**axis, type="log", range=range_, title=text | title, tickformat="~s", dtick="D2")
    figure.update_layout(margin={"l": 62, "r": 14, "t": 12, "b": 44}, font={"color": INK})


def _log(value: float) -> float:
    return math.log10(max(value, 1e-9))
