"""A finished run as Python and notebooks see it: the records of its folder, judged; tables, figures and the page."""

import webbrowser
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import plotly.graph_objects as go
import pyarrow as pa
from plotly.subplots import make_subplots

from holdfast import notebook, verdict
from holdfast.dossier import Check, Conclusion, Curve, Dossier, Verdict
from holdfast.problem import Problem, meant
from holdfast.record import AttackFacts, Cell, Manifest, Milestone
from holdfast.report import figures, page, words
from holdfast.report.hover import plain
from holdfast.report.sources import sources
from holdfast.report.words import Index
from holdfast.run import Run

What = Literal["survival", "harm", "utility"]
SCORES = ("harm", "refusal", "coherence", "over_refusal", "utility", "learned", "fresh", "second")
_TITLES: dict[What, str] = {"survival": "Seeds not yet broken", "harm": "Harm", "utility": "Utility"}
_SPENT = ("steps", "examples", "tokens", "flops", "seconds", "severity")
_TEXT, _WHOLE, _NUMBER = pa.string(), pa.int64(), pa.float64()
_SCHEMA = pa.schema(
    [("subject", _TEXT), ("attack", _TEXT), ("seed", _WHOLE), ("cell", _TEXT), ("position", _NUMBER), ("status", _TEXT)]
    + [(name, _WHOLE if name in ("steps", "examples", "tokens") else _NUMBER) for name in _SPENT]
    + [(f"{name}{end}", _NUMBER) for name in SCORES for end in ("", "_low", "_high")]
    + [("moved", _NUMBER), ("changed", _NUMBER), ("loss", _NUMBER), ("gradient", _NUMBER)]
)


class Audited:
    """A run's folder and what may be said of it.

    Args:
        folder: what `audit` or `holdfast audit` wrote.
        dossier: what was judged of it, where that is at hand; the records are judged unless given.

    Raises:
        Problem: it is no run, or one of its records is damaged.
    """

    def __init__(self, folder: str | Path, dossier: Dossier | None = None):
        self.run = Run.open(Path(folder))
        self.dossier: Dossier = dossier or verdict.judge(self.run)
        """Everything that `verdict.json` holds, as records."""

    @property
    def folder(self) -> Path:
        """Where the records lie."""
        return self.run.folder

    @property
    def manifest(self) -> Manifest:
        """What was run, on what."""
        return self.dossier.manifest

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One for each subject under each attack that claims to break safety."""
        return self.dossier.verdicts

    @property
    def conclusions(self) -> tuple[Conclusion, ...]:
        """One for each subject that has an undefended twin: the worst over all attacks."""
        return self.dossier.conclusions

    @property
    def checks(self) -> tuple[Check, ...]:
        """The doubts about the result, and what became of each."""
        return self.dossier.checks

    @property
    def curves(self) -> tuple[Curve, ...]:
        """Harm, utility and the other scores along each attack's path, over seeds."""
        return self.dossier.curves

    @property
    def cells(self) -> tuple[Cell, ...]:
        """One attack on one subject with one seed each, as measured."""
        return self.dossier.cells

    @property
    def failed(self) -> tuple[Cell, ...]:
        """The cells that came to no result; each one's `reason` says why."""
        return tuple(cell for cell in self.cells if cell.status == "failed")

    def verdict(self, subject: str, attack: str) -> Verdict:
        """What is said of this subject under this attack. Raises `Problem` where nothing is."""
        said = {(one.subject, one.attack): one for one in self.verdicts}
        if (subject, attack) not in said:
            names = [f"{one}, {other}" for one, other in said]
            raise Problem(
                f"{subject}, {attack}: no verdict on these in {self.folder}; {meant(f'{subject}, {attack}', names)}"
            )
        return said[subject, attack]

    def table(self) -> pa.Table:
        """A row a milestone: whose it is, where on the attack's axis, what it cost, and every score with its 95 % interval.

        Columns are always the same; what was not measured is null. `table().to_pandas()` makes a data frame.
        """
        rows = [_row(cell, look) for cell in self.cells for look in cell.milestones]
        return pa.Table.from_pylist(rows, _SCHEMA)

    def prompts(self) -> pa.Table:
        """A row a milestone and prompt: its id and its scores; its answer where the audit kept answers."""
        parts = []
        for cell in self.cells:
            place = {"subject": cell.subject, "attack": cell.attack, "seed": cell.seed}
            parts.append(pa.Table.from_pylist([place | row for row in self.run.rows(cell.name)]))
        parts = [part for part in parts if len(part)]
        return pa.concat_tables(parts, promote_options="permissive") if parts else pa.table({})

    def plot(self, what: What = "survival", attack: str | None = None) -> go.Figure:
        """Every attack's curves, one line a subject, as a plotly figure.

        Args:
            what: the share of seeds not yet broken, harm, or utility. An attack without a clock has no survival: its harm
                is drawn.
            attack: one attack's alone.

        Raises:
            Problem: there is no such attack or curve, or nothing was measured.
        """
        if what not in _TITLES:
            raise Problem(f"plot: no curve is called {what!r}; {meant(what, _TITLES)}")
        index = Index(self.dossier)
        chosen = index.attacks + index.negative
        if attack is not None:
            if attack not in (names := [one.name for one in chosen]):
                raise Problem(f"{attack}: no attack of {self.folder} has curves by that name; {meant(attack, names)}")
            chosen = [one for one in chosen if one.name == attack]
        drawn = [(one, panel) for one in chosen if (panel := _panel(index, one, what))]
        if not drawn:
            raise Problem(f"{self.folder}: nothing was measured; {self._nothing}")
        return _together(index, drawn)

    @cached_property
    def page(self) -> Path:
        """The page, one HTML file that loads nothing and holds no prompt and no answer; written where it is not there."""
        path = self.folder / "report.html"
        if not path.is_file():
            page.write(self.dossier, path, sources=sources(self.run))
        return path

    def open(self) -> None:
        """Show the page in a browser."""
        webbrowser.open(self.page.resolve().as_uri())

    @property
    def _nothing(self) -> str:
        return f"every cell failed, the first because: {self.failed[0].reason}" if self.failed else "no cell is done"

    def _lines(self) -> Iterator[str]:
        done = len(self.cells) - len(self.failed)
        yield f"{self.manifest.name}: {done} of {len(self.cells)} cells, in {self.folder}"
        if not done:
            yield self._nothing
        yield from (repr(one) for one in (*self.conclusions, *self.verdicts))

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def _repr_html_(self) -> str:
        """For notebooks: what is concluded, then every verdict; everything escaped, no prompt and no answer."""
        head, *_ = self._lines()
        said = "".join(one._repr_html_() for one in self.conclusions)
        columns = ("subject", "attack", "verdict", "broke", "harm", "utility")
        rows = [_shown(one) for one in self.verdicts]
        failed = notebook.paragraph("failed:", self._nothing) if len(self.failed) == len(self.cells) else ""
        return f"<p>{notebook.as_html(head)}</p>{failed}{said}{notebook.table(columns, rows)}"


def _shown(one: Verdict) -> tuple[str, ...]:
    cost, word = one.cost_to_break, words.word(one)
    place = "" if cost.steps is None else f", {'median' if cost.axis == 'steps' else 'mildest'} {cost.steps:g}"
    harm, utility = (f"{score.value:.2f} {words.span(score)}" if score else "–" for score in (one.harm, one.utility))
    return one.subject, one.attack, f"{word.sign} {word.label}", f"{cost.broken} of {cost.seeds}{place}", harm, utility


def _row(cell: Cell, look: Milestone) -> dict[str, Any]:
    scores: dict[str, float] = {}
    for name in SCORES:
        if score := getattr(look, name):
            scores |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}
    return {
        "subject": cell.subject,
        "attack": cell.attack,
        "seed": cell.seed,
        "cell": cell.status,
        "position": look.cost.position,
        "status": look.status,
        **{name: getattr(look.cost, name) for name in _SPENT},
        **scores,
        **{name: getattr(look, name) for name in ("moved", "changed", "loss", "gradient")},
    }


def _panel(index: Index, attack: AttackFacts, what: What) -> figures.Panel | None:
    """The figure asked for, or else harm; None where nothing was measured."""
    made = {panel.title: panel for panel in figures.panels(index, attack)}
    return made.get(_TITLES[what]) or made.get(_TITLES["harm"])


def _together(index: Index, drawn: list[tuple[AttackFacts, figures.Panel]]) -> go.Figure:
    """Panels beside each other, two a row, with one legend."""
    across = min(2, len(drawn))
    down = -(-len(drawn) // across)
    titles = [f"{plain(attack.name)}: {panel.title.lower()}" for attack, panel in drawn]
    gap = 0.35 / down if down > 1 else 0.0
    figure = make_subplots(down, across, subplot_titles=titles, vertical_spacing=gap, horizontal_spacing=0.08)
    told: set[int] = set()
    for turn, (_, panel) in enumerate(drawn):
        place = {"row": turn // across + 1, "col": turn % across + 1}
        for trace in panel.figure.data:
            if trace.visible is False:
                continue
            subject = trace.meta["subject"]
            legend = trace.meta["part"] == "line" and subject not in told
            told |= {subject} if legend else set()
            named = {"name": plain(index.subjects[subject].name), "legendgroup": str(subject)}
            figure.add_trace(go.Scatter(trace).update(showlegend=legend, **named), **place)
        for name, update in (("xaxis", figure.update_xaxes), ("yaxis", figure.update_yaxes)):
            axis = panel.figure.layout[name].to_plotly_json()
            update(**{key: value for key, value in axis.items() if key not in ("anchor", "domain")}, **place)
        if panel.title == _TITLES["harm"]:
            figure.add_hline(y=index.dossier.manifest.threshold, line={"width": 1, "dash": "dot"}, **place)
    figure.update_layout(
        template="plotly_white",
        height=60 + 300 * down,
        margin={"l": 40, "r": 20, "t": 50, "b": 50},
        hovermode="closest",
        font={"family": "system-ui, sans-serif", "size": 13},
    )
    return figure
