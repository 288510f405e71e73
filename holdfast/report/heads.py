"""The first screen: what each adversary does to each subject, in a sentence, and survival curves beside it. Writes no HTML.

The subjects that answer for the run are its defenses; where there is none, the models that were audited as they are.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from holdfast.adversaries import ADVERSARIES
from holdfast.dossier import Standing
from holdfast.record import AttackFacts, SubjectFacts
from holdfast.report import figures, words
from holdfast.report.figures import Panel
from holdfast.report.looks import Look, looks
from holdfast.report.tables import Table
from holdfast.report.words import Index, Word

MOST = 4
"""Survival curves near the top: more would push everything else off the screen."""
_TONES = ("bad", "fair", "good", "doubt")
"""What is said first of a defense."""


class Head(NamedTuple):
    """One subject in few lines."""

    facts: SubjectFacts
    look: Look
    conclusion: Any
    """None for one without a twin."""
    tiers: list[tuple[Word, Standing, str, str]]
    """The adversaries that tried, from the least able on: a word, and the sentence in two parts, of which the first says who."""
    idle: list[str]
    """Who tried nothing, in plain words."""
    said: list[tuple[Word, list[dict[str, str]]]]
    """The attacks under every word."""


def heads(index: Index) -> list[Head]:
    """The subjects that answer for the run, each with a word on every adversary."""
    answering = answer_for(index)
    styles = dict(zip((one.name for one in index.subjects), looks(index.subjects), strict=True))
    return [_head(index, facts, styles[facts.name]) for facts in answering]


def answer_for(index: Index) -> list[SubjectFacts]:
    """Defenses; without any, undefended models."""
    defenses = [facts for facts in index.subjects if words.role(facts) == "defense"]
    return defenses or [facts for facts in index.subjects if words.role(facts) == "undefended"]


def survivals(index: Index, behind: Mapping[str, Table]) -> list[Panel]:
    """Seeds not yet broken, of the subjects that answer for the run beside their twins, under the attacks that tell most;
    `behind` are the attacks' tables."""
    shown = {facts.name for facts in index.subjects if not facts.control}
    made = []
    for attack in telling(index):
        curves = [one for one in index.curves(attack) if one[1].name in shown]
        if curves:
            panel = figures.survival(index, attack, curves, behind[attack.name])
            name = words.clean(attack.name, 60)
            made.append(panel._replace(title=name, name=f"{attack.name}-survival-beside-twin"))
    return made


def telling(index: Index) -> list[AttackFacts]:
    """On a clock, those that an adversary breaks a subject with at the least cost; then those that break one soonest."""
    clocks = {one.name: one for one in index.attacks if one.axis == "steps"}
    answering = [facts.name for facts in answer_for(index)]
    found = index.dossier.standings
    first = [one.worst for one in found if one.subject in answering and one.worst in clocks]
    costs = [one for one in index.dossier.verdicts if one.subject in answering and one.attack in clocks]
    rest = sorted(costs, key=lambda one: (one.cost_to_break.steps is None, one.cost_to_break.steps or 0.0))
    return [clocks[name] for name in dict.fromkeys([*first, *(one.attack for one in rest)])][:MOST]


def _head(index: Index, facts: SubjectFacts, look: Look) -> Head:
    tiers = [one for one in index.dossier.standings if one.subject == facts.name]
    who = {one.name: one.who for one in ADVERSARIES}
    said: dict[Word, list[dict[str, str]]] = {}
    for turn, attack in enumerate(index.attacks):
        if verdict := index.verdict(facts, attack):
            said.setdefault(words.word(verdict), []).append({"name": attack.name, "id": f"attack-{turn}"})
    return Head(
        facts=facts,
        look=look,
        conclusion=index.conclusion(facts),
        tiers=[
            (words.WORDS[one.word], one, *_parted(one.sentence, who.get(one.adversary, "")))
            for one in tiers
            if one.word != "not-tested"
        ],
        idle=[_inside(who.get(one.adversary, one.adversary)) for one in tiers if one.word == "not-tested"],
        said=sorted(said.items(), key=lambda one: _TONES.index(one[0].tone)),
    )


def _parted(sentence: str, who: str) -> tuple[str, str]:
    return (who, sentence[len(who) :]) if sentence.startswith(who) else ("", sentence)


def _inside(who: str) -> str:
    """As it stands inside a sentence."""
    return who[:1].lower() + who[1:]
