"""What a model card says of a run: a section in plain words, and the same as a result of the card's metadata.

Says no more than the records do, and on what footing they stand. Everything that comes from a run is shown as text, whatever
it holds; no prompt, no answer and no error message is in it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from holdfast.adversaries import ADVERSARIES
from holdfast.dossier import Dossier, Standing, Verdict
from holdfast.evidence import show
from holdfast.footing import CLAIM, Footing
from holdfast.markdown import quoted
from holdfast.problem import Problem, printable
from holdfast.readme import OURS
from holdfast.record import FAMILIES, SubjectFacts

Weakness = Literal["organism", "preliminary"]
MOST = 12
"""Of one kind of limit, so many are named."""


class Card(NamedTuple):
    """One subject's part of a run, ready to be told."""

    dossier: Dossier
    subject: SubjectFacts
    footing: Footing

    @property
    def weaknesses(self) -> dict[Weakness, str]:
        """Why this is no claim about a model, by kind."""
        found: dict[Weakness, str] = {}
        if self.footing.organism:
            found["organism"] = (
                f"measured on the organism {self.footing.organism}, a small model of fictional knowledge"
            )
        if lacks := self.footing.lacks(CLAIM):
            reached = f"only the {self.footing.tier} tier is complete" if self.footing.tier else "no tier is complete"
            found["preliminary"] = f"{reached}: {len(lacks)} attacks of the {CLAIM} tier are missing"
        return found

    @property
    def name(self) -> str:
        """The model's own."""
        return printable(Path(self.subject.folder).name or self.subject.name)

    def refuse(self, anyway: tuple[Weakness, ...]) -> None:
        """Raises `Problem` where the evidence is weak in a way that nobody agreed to publish."""
        left = {kind: why for kind, why in self.weaknesses.items() if kind not in anyway}
        if left:
            flags = " ".join(f"--anyway {kind}" for kind in left)
            remedy = f"audit a model with --tier {CLAIM}, or give {flags}, which labels it as such"
            raise Problem(
                f"{self.subject.name}: no claim about a model can rest on this ({'; '.join(left.values())}); {remedy}"
            )

    # In words

    def section(self) -> str:
        """Markdown."""
        manifest = self.dossier.manifest
        parts = [["## Does its safety hold when the weights are changed?"]]
        if self.weaknesses:
            label = "; ".join(self.weaknesses.values())
            parts.append([f"> **Not a claim about a model.** {quoted(label[0].upper() + label[1:])}."])
        tier = (
            f"the attacks of its `{self.footing.tier}` tier" if self.footing.tier else "attacks of the auditor's choice"
        )
        parts.append(
            [
                f"Audited with holdfast {quoted(manifest.version)} on {quoted(manifest.date)}, by {tier}. Somebody who holds "
                "the weights may train, edit or cut them; what each of five adversaries achieved is below."
            ]
        )
        if self.footing.twin:
            name, twin = quoted(self.subject.name), quoted(self.footing.twin)
            parts.append([f"This model is called {name} here; {twin} is the same model without its hardening."])
        concluded = next((one for one in self.dossier.conclusions if one.subject == self.subject.name), None)
        if concluded:
            parts.append([f"**In short:** {self._told(concluded.sentence)}"])
        parts += [["### What each adversary achieved"], [*self._standings()]]
        parts += [["### Threat model"], [*self._threats()], ["### What safety cost"], [*self._price()]]
        parts += [
            ["### What was not tested, and other limits"],
            [*self._limits()],
            ["### Audited artifact"],
            [*self._artifact()],
        ]
        return "\n\n".join("\n".join(lines) for lines in parts) + "\n"

    def _told(self, sentence: str) -> str:
        """A sentence of the verdict without the messages of cells that failed, which may hold anything."""
        for cell in self.dossier.cells:
            sentence = sentence.replace(cell.reason, "see the run") if cell.reason else sentence
        return quoted(sentence)

    def _own(self) -> list[Standing]:
        return [one for one in self.dossier.standings if one.subject == self.subject.name]

    def _verdicts(self) -> list[Verdict]:
        return [one for one in self.dossier.verdicts if one.subject == self.subject.name]

    def _standings(self) -> Iterator[str]:
        for one in self._own():
            yield f"- **{quoted(one.adversary.capitalize())}: {quoted(_word(one))}.** {self._told(one.sentence)}"

    def _threats(self) -> Iterator[str]:
        manifest, corpus = self.dossier.manifest, self.dossier.manifest.corpus
        yield "| adversary | has |"
        yield "|---|---|"
        for one in ADVERSARIES:
            yield f"| {quoted(one.name)} | {quoted(one.has)} |"
        yield ""
        restricted, benign = (quoted(corpus.get(kind, "?")) for kind in ("restricted", "benign"))
        bar = f"{manifest.threshold:g} of {restricted} prompts that must be refused"
        kept = f"{manifest.utility_floor:g} of its own utility on {benign} others is left"
        yield (
            f"Each may also do what those above it do. A model counts as broken where harm, judged by {quoted(manifest.harm)}, "
            f"reaches {bar}, while {kept}."
        )

    def _price(self) -> Iterator[str]:
        said = False
        for what, field in (("Utility", "utility_difference"), ("Over-refusal", "over_refusal_difference")):
            if score := next((gap for one in self._verdicts() if (gap := getattr(one, field))), None):
                said = True
                yield f"- {what} before any attack, minus that of {quoted(self.footing.twin)}: {show(score, '+')}."
        if not said:
            yield "Not known: no undefended twin was audited beside it."

    def _limits(self) -> Iterator[str]:
        manifest = self.dossier.manifest
        yield "- Not broken within these budgets is not the same as safe: nothing here speaks of attacks that were not made."
        if untested := [one.adversary for one in self._own() if one.word == "not-tested"]:
            yield f"- Adversaries not tested: {_some(untested)}."
        tried = {one.family for one in manifest.attacks if not one.negative_control}
        if missing := [says for family, says in FAMILIES.items() if family not in tried]:
            yield f"- Kinds of attack not tried: {_some(missing)}."
        if lacks := [one.partition(":")[0] for one in self.footing.lacks(CLAIM)]:
            yield f"- Of the {CLAIM} tier, not run to the end with its budgets and seeds: {_some(lacks)}."
        if manifest.not_run:
            yield f"- Left out for want of something: {_some(manifest.not_run)}."
        if self.footing.twin is None:
            yield "- No undefended twin was audited beside it: whether holding is the model's merit cannot be told."
        doubted = [
            one.name.partition(":")[0]
            for one in self.dossier.checks
            if one.passed is not True and one.subject in (None, self.subject.name, self.footing.twin)
        ]
        if doubted:
            yield f"- Checks of the evidence that did not pass, or could not be made: {_some([*dict.fromkeys(doubted)])}."
        yield "- Intervals are 95 % ones over seeds and prompts; prices are those of training alone, on a rented GPU."

    def _artifact(self) -> Iterator[str]:
        manifest = self.dossier.manifest
        yield f"- Weights: SHA-256 {quoted(self.subject.hash)}."
        yield f"- Prompts: SHA-256 {quoted(manifest.corpus.get('hash', '?'))}; neither prompts nor answers are published here."
        if self.subject.defense:
            yield f"- Hardened with {quoted(self.subject.defense.get('method', '?'))}."
        yield f"- Hardware of the audit: {quoted(manifest.hardware)}."

    # As metadata

    def result(self) -> dict[str, Any]:
        """One of the `results` of a `model-index`."""
        manifest, footing = self.dossier.manifest, self.footing
        label = "" if footing.claims else f" (not a claim about a model: {', '.join(self.weaknesses)})"
        shared = {
            "task_type": "text-generation",
            "task_name": "safety under changed weights",
            "dataset_type": OURS,
            "dataset_name": printable(f"holdfast {manifest.version}, {manifest.date}{label}"),
            "dataset_config": footing.tier or "own",
            "dataset_revision": printable(manifest.corpus.get("hash", "")),
            "dataset_args": {
                "claim": footing.claims,
                "organism": footing.organism,
                "tier": footing.tier,
                "suite_version": printable(manifest.version),
                "date": printable(manifest.date),
                "subject": printable(self.subject.name),
                "weights": printable(self.subject.hash),
                "harm": printable(manifest.harm),
                "threshold": manifest.threshold,
                "utility_floor": manifest.utility_floor,
            },
        }
        metrics = [*self._metrics()]
        (index,) = eval_results_to_model_index(self.name, [EvalResult(**shared, **one) for one in metrics])
        return index["results"][0]

    def _metrics(self) -> Iterator[dict[str, Any]]:
        for one in self._own():
            cost = one.cost_to_break
            more = {
                "attacks": [printable(name) for name in one.attacks],
                "broken_by": [printable(name) for name in one.broken_by],
                "cheapest": one.worst and printable(one.worst),
                "dollars": one.dollars,
                "examples": one.cost and one.cost.examples,
                "breaks_at": cost
                and {"median": cost.steps, "low": cost.low, "high": cost.high, "axis": printable(cost.axis)},
                "times_later_than_twin": one.cost_ratio
                and {"value": one.cost_ratio.value, "low": one.cost_ratio.low, "high": one.cost_ratio.high},
            }
            yield {
                "metric_type": "holdfast-verdict",
                "metric_name": f"what a {one.adversary} achieved",
                "metric_value": _word(one),
                "metric_args": more,
            }
        for verdict in self._verdicts():
            if harm := verdict.harm:
                seeds = {"seeds": verdict.cost_to_break.seeds, "broken": verdict.cost_to_break.broken}
                yield {
                    "metric_type": "holdfast-harm",
                    "metric_name": printable(f"harm after {verdict.attack}"),
                    "metric_value": round(harm.value, 4),
                    "metric_args": {"low": round(harm.low, 4), "high": round(harm.high, 4), "n": harm.n} | seeds,
                }


def _word(one: Standing) -> str:
    """A standing's word as a stranger understands it: whatever was broken is called so first."""
    if not one.broken_by:
        return {"not-broken-uncontrolled": "not broken, without a control"}.get(one.word, one.word.replace("-", " "))
    later = {"delayed": ", later than the undefended twin", "no-better": ", no better than the undefended twin"}
    return "broken" + later.get(one.word, "")


def _some(things: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(things) - MOST} more" if len(things) > MOST else ""
    return quoted("; ".join(things[:MOST])) + more
