"""The page: a dossier as one HTML file that loads nothing, for a screen, a phone, paper or a screen reader.

Everything that comes from a model, a corpus or a recipe is escaped by Jinja2, cut to a length and freed of control
characters; the page's own two scripts are named by their hashes in its content security policy, so that nothing else
runs and nothing is fetched, whatever a model answered. No prompt and no answer is on the page unless given.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from holdfast import disk
from holdfast.dossier import Dossier
from holdfast.evidence import INCOHERENT
from holdfast.record import FAMILIES, SubjectFacts
from holdfast.report import doubts, frontier, landscape, words
from holdfast.report.looks import Look, looks, palette
from holdfast.report.rows import attack_of
from holdfast.report.words import Index

_HERE = Path(__file__).parent
_ANSWERS = 200
"""Answers shown at most."""
_OPEN = 6
"""With more attacks than this each one's figures are folded away."""
_TONES = ("bad", "fair", "good", "doubt")
"""What is said first of a defense."""


def write(dossier: Dossier, path: Path, answers: Sequence[dict[str, Any]] | None = None) -> None:
    """Write the page of `dossier` to `path`.

    Args:
        answers: Examples to show, each with subject, attack, seed, milestone, kind, text and answer. Give them only when
            the user asked to see answers: without them the page holds no prompt and no answer.

    Raises:
        Problem: `path` cannot be written.
    """
    disk.write(path, render(dossier, answers).encode("utf-8", "replace"))


def render(dossier: Dossier, answers: Sequence[dict[str, Any]] | None = None) -> str:
    """The page of `dossier` as HTML."""
    index = Index(dossier)
    library, script = get_plotlyjs(), (_HERE / "page.js.jinja").read_text()
    attacks = [attack_of(index, attack, turn) for turn, attack in enumerate(index.attacks + index.negative)]
    views = landscape.views(index)
    frontiers = frontier.views(index)
    drawings = [panel for view in views for panel in view.panels] + [view.panel for view in frontiers]
    drawings += [panel for attack in attacks for panel in attack["panels"]]
    numbers = {id(panel): number for number, panel in enumerate(drawings)}
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            dossier=dossier,
            manifest=dossier.manifest,
            subjects=[_subject(index, facts, look) for facts, look in _looked(index)],
            attacks=[one for one in attacks if not one["facts"].negative_control],
            families=_families(attacks),
            folded=len(attacks) > _OPEN,
            views=views,
            frontiers=frontiers,
            ran=index.dossier.manifest.attacks,
            number_of=lambda panel: numbers[id(panel)],
            heads=_heads(index),
            organisms=sorted({facts.organism for facts in index.subjects if facts.organism}),
            checks=dossier.checks,
            doubts=doubts.doubts(dossier.checks),
            cells=_tally(dossier),
            labels=dossier.labels,
            untested=doubts.untested(index),
            answers=None if answers is None else list(answers[:_ANSWERS]),
            left_out=0 if answers is None else max(len(answers) - _ANSWERS, 0),
            library=Markup(library),
            script=Markup(script),
            policy=f"{_hash(library)} {_hash(script)}",
            data=_embedded({"figures": [json.loads(one.figure.to_json()) for one in drawings], "dark": palette()}),
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


def _embedded(data: object) -> Markup:
    """JSON that is safe inside a script element: no character that could end it or begin a comment."""
    text = json.dumps(data, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _hash(script: str) -> str:
    """A script's name in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _looked(index: Index) -> list[tuple[SubjectFacts, Look]]:
    return list(zip(index.subjects, looks(index.subjects), strict=True))


def _heads(index: Index) -> list[dict[str, Any]]:
    """The answer in few lines: each defense with the attacks under every word."""
    made = []
    for facts, look in _looked(index):
        said: dict[words.Word, list[dict[str, Any]]] = {}
        for turn, attack in enumerate(index.attacks):
            if verdict := index.verdict(facts, attack):
                said.setdefault(words.word(verdict), []).append({"name": attack.name, "id": f"attack-{turn}"})
        if words.role(facts) == "defense" and said:
            order = sorted(said.items(), key=lambda one: [*_TONES].index(one[0].tone))
            made.append({"facts": facts, "look": look, "said": order, "conclusion": index.conclusion(facts)})
    return made


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
    }


def _tally(dossier: Dossier) -> dict[str, Any]:
    """How the cells ended, and which did not end well."""
    bad = doubts.unfinished(dossier)
    return {
        "all": len(dossier.cells),
        "done": len(dossier.cells) - len(bad),
        "bad": bad[:20],
        "more": max(len(bad) - 20, 0),
    }
