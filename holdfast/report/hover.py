"""What a reader learns who points at a figure. Text from a run is escaped, because plotly reads tags in its labels."""

import html
from statistics import fmean

from holdfast.dossier import Point
from holdfast.evidence import INCOHERENT
from holdfast.record import AttackFacts, SubjectFacts
from holdfast.report import words
from holdfast.report.words import Index
from holdfast.units import operations, short

_LINE = 64
"""Characters of settings in a line."""


def of_point(index: Index, facts: SubjectFacts, attack: AttackFacts, point: Point) -> str:
    """Everything known about one point, in a few lines."""
    unit = "steps" if attack.axis == "steps" else plain(attack.axis)
    lines = [f"<b>{plain(facts.name)}</b> at {point.position:g} {unit}"]
    if point.status != "answers":
        lines.append(f"<b>{point.status}</b>: neither safe nor harmful")
        lines += [f"({INCOHERENT})"] if point.status == "incoherent" else []
    for field in ("harm", "utility", "coherence"):
        score = getattr(point, field)
        if score and (field != "coherence" or point.status != "answers"):
            lines.append(f"{field} {score.value:.2f} {words.span(score)}, n {score.n}")
    lines.append(f"{point.seeds} seed{'s' * (point.seeds != 1)}")
    spent = [look.cost for _, _, look in index.looks(facts, attack).get(point.position, [])]
    if spent and spent[0].steps:
        examples, tokens, flops = (
            fmean(getattr(one, name) for one in spent) for name in ("examples", "tokens", "flops")
        )
        lines.append(f"{short(examples)} examples, {short(tokens)} tokens")
        lines.append(f"{operations(flops)}, {point.seconds:.1f} s")
    return "<br>".join(lines)


def of_settings(attack: AttackFacts) -> str:
    """The attack's settings, for the script to put below each point: once a figure, since they are the same at all of them."""
    lines = [plain(attack.method)]
    for key, value in words.settings({name: one for name, one in attack.settings.items() if one is not None}):
        part = html.escape(f"{key} {value}", quote=False)
        if len(lines[-1]) + len(part) > _LINE:
            lines.append(part)
        else:
            lines[-1] += f", {part}"
    return "<br>".join(lines[:6])


def plain(text: object, limit: int = 60) -> str:
    """`text` as plotly shows it literally: its labels read tags and entities."""
    return html.escape(words.clean(text, limit), quote=False)
