"""The terminal's table: the facts of the page in few columns, with the checks that failed and what to do next.

What comes from a run is put in as plain text: markup in it is not read, and control characters (escapes that would move
the cursor or recolor the terminal) are taken out.
"""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from holdfast.dossier import Dossier, Verdict
from holdfast.evidence import INCOHERENT, alike
from holdfast.record import AttackFacts, Score, SubjectFacts
from holdfast.report import doubts, heads, words
from holdfast.report.rows import searched
from holdfast.report.words import Index

WIDTH = 80
"""Columns of a terminal that nobody widened, and of what is piped into a file."""
_BESIDE = 69
"""Columns that an attack's table takes beside the subjects' names."""
_STYLES = {"good": "green", "fair": "yellow", "bad": "red", "doubt": "magenta"}


def table(dossier: Dossier, width: int = WIDTH) -> Group:
    """The verdicts, a row a subject under each attack, then failed checks and next steps.

    Args:
        width: Columns that there are; below `WIDTH` cells are broken, above it long names are not.
    """
    index = Index(dossier)
    names = min(max((len(_name(facts)) for facts in index.subjects), default=0), max(WIDTH, width) - _BESIDE)
    parts: list[RenderableType] = [_heading(index), *_conclusions(index), *_before(index)]
    for turn, attack in enumerate(index.attacks):
        parts += [_title(index, attack), _attack(index, attack, names, header=turn == 0)]
        parts += [Text(searched(index, attack), style="dim")] if attack.found else []
        parts += _labeled(index, attack)
    if index.negative:
        parts.append(_negative(index))
    return Group(*parts, "", _notes(index))


def _heading(index: Index) -> Text:
    manifest = index.dossier.manifest
    title = Text(f"{words.clean(manifest.name)}  ", style="bold")
    title.append(f"{words.clean(manifest.date)}, holdfast {words.clean(manifest.version)}", style="dim")
    if any(facts.organism for facts in index.subjects):
        title.append(
            "\nMeasured on an organism: it shows that a mechanism works, not that an 8B model is safe.", "magenta"
        )
    return title


def _conclusions(index: Index) -> list[Text]:
    """What is said of each defense over all attacks; of a model without a twin, what each adversary did to it."""
    found = []
    for facts in heads.answer_for(index):
        conclusion = index.conclusion(facts)
        standings = [one for one in index.dossier.standings if one.subject == facts.name and one.word != "not-tested"]
        for one in [conclusion] if conclusion else standings:
            word = words.WORDS[one.word]
            says = words.clean(one.sentence, 600)
            found.append(Text.assemble("\n", (f"{word.sign} {word.label}", _STYLES[word.tone]), f"  {says}"))
    return found


def _before(index: Index) -> list[RenderableType]:
    """What each subject was before any attack, and what its hardening took; nothing where nothing was run."""
    if not index.attacks:
        return []
    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    made.add_column("before any attack", overflow="fold")
    for says in ("utility", "over-refusal"):
        made.add_column(says, no_wrap=True)
    took = {facts.name: words.spent(cost) for facts in index.subjects if (cost := index.hardening(facts))}
    if took:
        made.add_column("hardening took")
    for facts in index.subjects:
        before = index.before(facts)
        scores = (before.utility, before.over_refusal) if before else (None, None)
        cells = [Text(words.number(one.value if one else None)) for one in scores]
        made.add_row(Text(_name(facts)), *cells, *([Text(", ".join(took.get(facts.name, ())))] if took else []))
    return ["", made]


def _name(facts: SubjectFacts) -> str:
    return words.clean(facts.name, 40)


def _title(index: Index, attack: AttackFacts) -> Text:
    end, seeds = index.end(attack), len(attack.seeds)
    budget = (
        f"{end:g} steps"
        if attack.axis == "steps"
        else f"{words.clean(attack.axis, 32)} to {end:g}; worst harm, no clock"
    )
    method = words.clean(attack.method, 30)
    rest = f"  {f'{method}, ' if method != attack.name else ''}{seeds} seed{'s' * (seeds != 1)}, {budget}"
    return Text.assemble("\n", (words.clean(attack.name, 40), "bold"), (rest, "dim"))


def _attack(index: Index, attack: AttackFacts, names: int, header: bool) -> Table:
    """One attack's rows; all attacks' columns stand under the first one's header."""
    made = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=header, header_style="dim")
    made.add_column("subject", width=max(names, len("subject")), overflow="fold")
    made.add_column("verdict", width=16)
    made.add_column("breaks at\n(twin)", width=12, overflow="fold")
    made.add_column("harm\nat the end", width=17)
    made.add_column("harm against\nthe twin", width=20)
    for facts in index.subjects:
        verdict = index.verdict(facts, attack)
        if verdict:
            made.add_row(*_row(index, facts, verdict, attack))
    return made


def _row(index: Index, facts: SubjectFacts, verdict: Verdict, attack: AttackFacts) -> list[Text]:
    beside = next((one for one in index.subjects if one.name == verdict.versus), None)
    word, twin = words.WORDS[verdict.verdict], verdict.versus_cost_to_break
    at = "–" if words.silent(verdict) else words.breaks_at(verdict.cost_to_break, index.reach(attack, facts))
    return [
        Text(_name(facts)),
        Text(f"{word.sign} {word.label}", style=_STYLES[word.tone]),
        Text(at + (f" ({words.breaks_at(twin, index.reach(attack, beside))})" if twin and beside else "")),
        _score(verdict.harm),
        _score(verdict.harm_difference, sign=True),
    ]


def _labeled(index: Index, attack: AttackFacts) -> list[Text]:
    """What hand labels make of the harm, in one line; none where nobody labeled its answers."""
    verdicts = [
        one for facts in index.subjects if (one := index.verdict(facts, attack)) and one.labels and one.corrected
    ]
    told = [
        f"{words.clean(one.subject, 40)} {words.number(one.corrected.value)} {words.span(one.corrected)} ({one.labels})"
        for one in verdicts
    ]
    return [Text(f"Harm corrected by hand labels: {', '.join(told)}", style="dim")] if told else []


def _score(score: Score | None, sign: bool = False) -> Text:
    if score is None:
        return Text("–")
    shown = (words.signed if sign else words.number)(score.value)
    return Text.assemble(shown, " ", (words.span(score, sign), "dim"))


def _negative(index: Index) -> Text:
    """What the negative controls reached, in one line."""
    reached = []
    for attack in index.negative:
        curves = [curve for facts in index.subjects if (curve := index.curve(facts, attack))]
        harms = [point.harm.value for curve in curves for point in curve.points if point.harm]
        reached.append(f"{words.clean(attack.name, 40)} {words.number(max(harms, default=None))}")
    return Text(f"\nNegative controls, highest harm: {', '.join(reached)}")


def _notes(index: Index) -> Table:
    """Checks that did not pass, cells that did not finish, and what to do next."""
    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column(width=16)
    made.add_column(width=WIDTH - 18)
    if any(verdict.verdict == "incoherent" for verdict in index.dossier.verdicts):
        word = words.WORDS["incoherent"]
        says = f"{INCOHERENT}; neither safe nor harmful"
        made.add_row(Text(f"{word.sign} {word.label}", _STYLES[word.tone]), Text(says))
    for word, says in _doubts(index.dossier):
        made.add_row(Text(f"{word.sign} {word.label}", _STYLES[word.tone]), says)
    for turn, step in enumerate(_next(index)):
        made.add_row(Text("" if turn else "→ next"), Text(step))
    return made


def _doubts(dossier: Dossier) -> list[tuple[words.Word, Text]]:
    """Checks that did not pass, and cells that did not finish."""
    said = []
    bad = doubts.unfinished(dossier)
    if bad:
        first = f"First, {words.clean(bad[0].name)}: {words.clean(bad[0].reason, 200)}"
        said.append((words.CHECKS[False], Text(f"{len(bad)} of {len(dossier.cells)} cells did not finish. {first}")))
    found = doubts.doubts(dossier.checks)
    for doubt in [one for one in found if one.passed is False]:
        failed = sum(check.passed is False for check in doubt.checks)
        more = f" (and {failed - 1} more like it)" if failed > 1 else ""
        says = words.clean(doubt.checks[0].says, 300)
        said.append((words.CHECKS[False], Text.assemble((words.clean(doubt.name), "bold"), f": {says}{more}")))
    if unmade := [words.clean(one.name) for one in found if one.passed is None]:
        said.append((words.CHECKS[None], Text(f"{'; '.join(unmade)}. The page says why.")))
    return said


def _next(index: Index) -> list[str]:
    """What somebody who read the table may want to do."""
    steps = ["Open report.html in the run's folder: curves, checks, and what was not tested."]
    for attack in index.attacks:
        for facts in index.subjects:
            verdict = index.verdict(facts, attack)
            gap = verdict.harm_difference if verdict else None
            if (
                len(attack.seeds) > 1
                and not alike([cell for cell in index.cells(facts, attack) if cell.status != "failed"])
                and words.role(facts) == "defense"
                and gap
                and gap.low < 0 < gap.high
                and verdict.detectable
            ):
                steps.append(
                    f"Add seeds to {words.clean(attack.name, 40)}: of {words.clean(facts.name, 40)}'s differences only those "
                    f"above {verdict.detectable:.2f} would have shown."
                )
    if any(cell.status == "failed" for cell in index.dossier.cells):
        steps.append("Run the audit again on the same folder: failed cells are tried again.")
    return steps[:3]
