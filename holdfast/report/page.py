"""The page: a dossier as one HTML file that loads nothing, for a screen, a phone, paper or a screen reader.

Everything that comes from a model, a corpus or a recipe is escaped by Jinja2, cut to a length and freed of control
characters; the page's own script is named by its hash in its content security policy, so that nothing runs but it and
the library that it unpacks, whose hash it knows, and nothing is fetched, whatever a model answered. No prompt and no answer is on
the page unless given.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from holdfast import disk
from holdfast.dossier import Dossier, Verdict
from holdfast.evidence import INCOHERENT
from holdfast.record import FAMILIES, SubjectFacts
from holdfast.report import cuts, doubts, frontier, heads, words
from holdfast.report.drawings import Drawings, drawings
from holdfast.report.figures import Panel, crowded
from holdfast.report.looks import Look, looks, palette
from holdfast.report.sources import Sources
from holdfast.report.tables import Table
from holdfast.report.tables import file_name as _file
from holdfast.report.words import Index
from holdfast.units import operations

_HERE = Path(__file__).parent
_ANSWERS = 200
"""Answers shown at most."""
_LONG = 1_000_000
"""Characters of the figures' data from which on they are packed."""
_OPEN = 6
"""With more attacks than this each one's figures are folded away."""


def write(
    dossier: Dossier, path: Path, answers: Sequence[dict[str, Any]] | None = None, sources: Sources | None = None
) -> None:
    """Write the page of `dossier` to `path`.

    Args:
        answers: Examples to show, each with subject, attack, seed, milestone, kind, text and answer. Give them only when
            the user asked to see answers: without them the page holds no prompt and no answer.
        sources: What else lies in the run's folder.

    Raises:
        Problem: `path` cannot be written.
    """
    disk.write(path, render(dossier, answers, sources).encode("utf-8", "replace"))


def render(dossier: Dossier, answers: Sequence[dict[str, Any]] | None = None, sources: Sources | None = None) -> str:
    """The page of `dossier` as HTML."""
    index, sources = Index(dossier), sources or Sources()
    drawn = drawings(index, sources.search)
    attacks = drawn.attacks
    shown = {
        "dossier": dossier,
        "manifest": dossier.manifest,
        "subjects": [_subject(index, facts, look) for facts, look in _looked(index)],
        "attacks": [one for one in attacks if not one["facts"].negative_control],
        "families": _families(attacks),
        "folded": len(attacks) > _OPEN,
        "crowded": crowded(index),
        "survivals": drawn.survivals,
        "survival_names": [attack.name for attack in heads.telling(index)],
        "cuts": drawn.cuts,
        "map_title": _map_title(drawn),
        "views": drawn.views,
        "frontiers": drawn.frontiers,
        "sought": drawn.sought,
        "ran": dossier.manifest.attacks,
        "heads": heads.heads(index),
        "organisms": sorted({facts.organism for facts in index.subjects if facts.organism}),
        "doubts": doubts.doubts(dossier.checks),
        "cells": _tally(dossier),
        "labels": dossier.labels,
        "untested": doubts.untested(index),
        "answers": None if answers is None else list(answers[:_ANSWERS]),
        "left_out": 0 if answers is None else max(len(answers) - _ANSWERS, 0),
        "sources": sources,
        "seeds": _seeds(dossier),
        "breaks": lambda verdict: words.break_words(verdict, _reach(index, verdict)),
        "contents": _contents(drawn),
    }
    return whole("page.html.jinja", drawn.panels, shown)


def whole(template: str, panels: Sequence[Panel], shown: Mapping[str, Any]) -> str:
    """A template's page, complete in itself: with the figures, the tables behind them and the scripts that draw them."""
    library, integrity = _library()
    script = _environment().get_template("page.js.jinja").render(integrity=integrity)
    numbers = {id(panel): number for number, panel in enumerate(panels)}
    tables = {id(panel.table): panel.table for panel in panels}
    order, pools = list(tables), _Pools()
    data = {
        "figures": [pools.compact(json.loads(one.figure.to_json())) for one in panels],
        "told": list(pools.told),
        "places": list(pools.places),
        "names": [_file(one.name) for one in panels],
        "tables": [_columns(one) for one in tables.values()],
        "behind": [order.index(id(one.table)) for one in panels],
        "dark": palette(),
    }
    return (
        _environment()
        .get_template(template)
        .render(
            **shown,
            number_of=lambda panel: numbers[id(panel)],
            library=library,
            script=Markup(script),
            policy=f"'{_hash(script)}' 'strict-dynamic'",
            data=_embedded(data),
        )
    )


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "clean": words.clean,
        "number": words.number,
        "percent": words.percent,
        "operations": operations,
        "share": frontier.share,
        "signed": words.signed,
        "times": words.times,
        "span": words.span,
        "settings": words.settings,
    }
    made.globals |= {
        "words": words.WORDS,
        "check_words": words.CHECKS,
        "control_words": words.CONTROLS,
        "role": words.role,
        "incoherent": INCOHERENT,
    }
    return made


class _Pools:
    """What many figures of one attack say alike, once: the words at their points, and where these stand."""

    def __init__(self) -> None:
        self.told: dict[str, int] = {}
        self.places: dict[tuple[Any, ...], int] = {}

    def compact(self, value: Any) -> Any:
        """Numbers as precise as anybody can see; `hovertext` as places in `told`, `x` as a place in `places`."""
        if isinstance(value, float):
            return float(f"{value:.4g}")
        if isinstance(value, list):
            return [self.compact(one) for one in value]
        if isinstance(value, dict):
            return {key: self._named(key, one) for key, one in value.items()}
        return value

    def _named(self, key: str, value: Any) -> Any:
        if not isinstance(value, list) or key not in ("hovertext", "x"):
            return self.compact(value)
        if key == "hovertext":
            return [self.told.setdefault(text, len(self.told)) for text in value]
        return self.places.setdefault(tuple(self.compact(value)), len(self.places))


def _columns(table: Table) -> dict[str, Any]:
    """A table column by column; where all rows say the same, once."""
    columns = [[_short(row[place]) for row in table.rows] for place in range(len(table.columns))]
    same = [column[0] if column and all(one == column[0] for one in column) else column for column in columns]
    return {"columns": table.columns, "values": same, "rows": len(table.rows)}


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _embedded(data: object) -> Markup:
    """JSON that is safe inside a script element: no character that could end it or begin a comment. Where it is long, packed."""
    text = json.dumps(data, separators=(",", ":"))
    if len(text) > _LONG:
        return _packed(text)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _packed(text: str) -> Markup:
    return Markup(base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode())


@cache
def _library() -> tuple[Markup, Markup]:
    """plotly.js, packed, and its hash. Its first line asks browsers that know it to compile all of it at once."""
    text = f"//# allFunctionsCalledOnLoad\n{get_plotlyjs()}"
    return _packed(text), Markup(_hash(text))


def _hash(script: str) -> str:
    """A script's name in a content security policy, and what it has to be."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _looked(index: Index) -> list[tuple[SubjectFacts, Look]]:
    return list(zip(index.subjects, looks(index.subjects), strict=True))


def _map_title(drawn: Drawings) -> str:
    return cuts.title(drawn.cuts) if drawn.cuts else ""


def _contents(drawn: Drawings) -> list[tuple[str, str]]:
    """The sections that the page has."""
    found = [
        ("survival", "Survival", drawn.survivals),
        ("verdicts", "All attacks", True),
        ("map", _map_title(drawn).capitalize(), drawn.cuts),
        ("landscape", "Landscape", drawn.views),
        ("frontier", "Safety against cost", drawn.frontiers),
        ("worst", "Worst adversary", drawn.sought),
        ("curves", "Attack by attack", True),
        ("cost", "What the defense costs", True),
        ("checks", "Checks", True),
        ("untested", "Not tested", True),
        ("run", "What was run", True),
        ("again", "Run it again", True),
    ]
    return [(name, says) for name, says, there in found if there]


def _seeds(dossier: Dossier) -> list[tuple[str, list[str]]]:
    """Which seeds which attacks had."""
    made: dict[str, list[str]] = {}
    for attack in dossier.manifest.attacks:
        made.setdefault(", ".join(map(str, attack.seeds)) or "none", []).append(attack.name)
    return list(made.items())


def _reach(index: Index, verdict: Verdict) -> float:
    attack = next(one for one in index.attacks if one.name == verdict.attack)
    return index.reach(attack, next(one for one in index.subjects if one.name == verdict.subject))


def _families(attacks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The attacks by family, the negative controls last."""
    kinds = [(says, [one for one in attacks if one["facts"].family == kind and not one["facts"].negative_control])
             for kind, says in FAMILIES.items()]  # fmt: skip
    kinds.append(("negative controls: nobody aims them", [one for one in attacks if one["facts"].negative_control]))
    return [{"says": says, "attacks": some} for says, some in kinds if some]


def _subject(index: Index, facts: SubjectFacts, look: Look) -> dict[str, Any]:
    return {
        "facts": facts,
        "look": look,
        "role": words.role(facts),
        "before": index.before(facts),
        "hardening": words.spent(index.hardening(facts)),
        "learned": _least_taught(index, facts),
    }


def _least_taught(index: Index, facts: SubjectFacts) -> Verdict | None:
    """Under which attack the subject learns a harmless lesson least beside its twin; None where none was taught."""
    taught = [one for one in index.dossier.verdicts if one.subject == facts.name and one.learned_difference]
    return min(taught, key=lambda one: one.learned_difference.value if one.learned_difference else 0.0, default=None)


def _tally(dossier: Dossier) -> dict[str, Any]:
    """How the cells ended, and which did not end well."""
    bad = doubts.unfinished(dossier)
    return {
        "all": len(dossier.cells),
        "done": len(dossier.cells) - len(bad),
        "bad": bad[:20],
        "more": max(len(bad) - 20, 0),
    }
