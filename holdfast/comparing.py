"""What ships beside what it was made from: both are asked the judge's prompts, and compared prompt by prompt.

The source is a checkpoint, whose weights also tell whether an answer is language; the artifact may be anything that answers: a
checkpoint (pruned, quantized, an adapter's), the source itself left early, a GGUF file, an address.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

import holdfast
from holdfast import disk, policy, prepare
from holdfast.comparison import LOSSES, Comparison, compared, needed
from holdfast.corpus import Row
from holdfast.drive import Drive, Exit
from holdfast.judging import Judge, described
from holdfast.lm import LM
from holdfast.method import Answers, Eval, make, organism_of
from holdfast.opening import digest, opened
from holdfast.problem import Problem
from holdfast.served import Behind, Local, Served
from holdfast.statistics import Scores

KINDS = ("restricted", "benign", "borderline")


class Bench:
    """The judge's prompts, and who judges the answers to them."""

    def __init__(self, rows: Sequence[Row], source: LM, harm: Eval, utility: str, max_perplexity: float):
        self.rows = rows
        self.source = source
        self.evals: dict[str, Eval] = {
            "harm": harm,
            "refusal": make("evals", "refusal", "compare"),
            "coherence": make("evals", "coherence", "compare", max_perplexity=max_perplexity),
            "over_refusal": make("evals", "overrefusal", "compare"),
            "utility": make("evals", "utility", "compare", match=utility),
        }

    def asked(self, lm: LM | Served) -> tuple[list[str], dict[str, Scores]]:
        """A model's answers, and each measure's scores by prompt. Raises `Problem` where every answer is empty."""
        prompts = [row.asked for row in self.rows]
        texts = lm.generate(prompts)
        if not any(text.strip() for text in texts):
            raise Problem(f"{lm.folder}: every answer is empty; is it asked as it was made to be asked?")
        known = [row for row in self.rows if row.answer is not None]
        fits = iter(lm.fits([row.asked for row in known], [row.answer or "" for row in known]) if lm.at_hand else ())
        references = [next(fits, None) if row.answer is not None else None for row in self.rows]
        answers = Answers(self.rows, texts, self.source.fits(prompts, texts), references)
        return texts, {name: judge(answers) for name, judge in self.evals.items()}


def compare(
    source: str,
    artifact: str,
    corpus: Path,
    *,
    harm: str | None,
    margin: float,
    drive: Drive,
    exit: Exit,
    max_perplexity: float,
    say: Callable[[str], None],
) -> tuple[Comparison, dict[str, Any], list[dict[str, Any]]]:
    """The comparison, the facts around it, and a row a prompt with both answers.

    Args:
        harm: who judges it; a policy's own judge unless given.

    Raises:
        Problem: one of the two cannot be asked, or the corpus has nothing to ask.
    """
    prompts = policy.prompts(corpus)
    hand = prompts.hand("judge")
    rows = hand.of(*KINDS)
    if all(row.answer is None for row in hand.need("benign")):
        raise Problem(f"{corpus}: none of the judge's benign prompts has an answer to compare with; add answers")
    ours = LM.load(source, drive=drive)
    theirs = opened(artifact, drive=drive.change(exit=exit))
    said = policy.read(corpus) if policy.written(corpus) else None
    exact = organism_of(prompts.hand("judge").rows) is not None
    utility = (said and said.utility) or ("exact" if exact else "agreement" if theirs.at_hand else "overlap")
    if utility == "agreement" and not theirs.at_hand:
        raise Problem(
            f"{artifact}: only answers, so nobody can read agreement from it; set utility to overlap or exact"
        )
    judge: Eval = said.eval("compare") if said and not harm else make("evals", harm or "asr", "compare, harm")
    judge.fits(hand.need("restricted"))
    if isinstance(judge, Judge):
        judge.ready()
    written = _written(theirs, ours, rows[0].text)
    if isinstance(theirs, Behind):
        say(f"prompts go to {theirs.folder}, and leave this machine unless that is its own")
    bench = Bench(rows, ours, judge, utility, max_perplexity)
    told = []
    for name, lm in ((source, ours), (artifact, theirs)):
        say(f"asking {len(rows)} prompts of {name}")
        told.append(bench.asked(lm))
    if isinstance(theirs, Served):
        theirs.close()
    (said, before), (shipped, after) = told
    try:
        found = compared(before, after, margin, list(zip(said, shipped, strict=True)))
    except ValueError as error:
        raise Problem(f"{artifact}: {error}; are the judge and the corpus meant for it?") from error
    facts = {
        "source": source,
        "artifact": artifact,
        "hashes": {"source": digest(ours), "artifact": digest(theirs)},
        "exit": exit.model_dump(exclude_none=True),
        "corpus": str(corpus),
        "prompts": {kind: sum(row.kind == kind for row in rows) for kind in KINDS},
        "harm": described(judge, type(judge).__module__.rpartition(".")[2]),
        "utility": utility,
        "notes": [*([written] if written else ()), *_notes(theirs, shipped, found)],
        "holdfast": holdfast.__version__,
        "versions": prepare.versions(),
        "hardware": prepare.hardware(),
    }
    pairs = [
        {"id": row.id, "kind": row.kind, "source": one, "artifact": other}
        | {f"{name}_source": some.get(row.id) for name, some in before.items()}
        | {f"{name}_artifact": some.get(row.id) for name, some in after.items()}
        for row, one, other in zip(rows, said, shipped, strict=True)
    ]
    return found, facts, pairs


def _notes(theirs: LM | Served, said: Sequence[str], found: Comparison) -> Iterator[str]:
    """What a reader must know beside the numbers."""
    if isinstance(theirs, Served):
        yield "its weights are not at hand: nothing that changes or looks into them was tried on it"
        if silent := sum(not text.strip() for text in said):
            yield f"{silent} answers are empty: a filter's silence, or thoughts that took all the tokens, count as incoherent"
    for one in found.pairings:
        if one.unread:
            yield f"{LOSSES[one.measure][0]}: {one.unread} prompts have no score of both, and are left out"
        if one.verdict == "undecided" and one.loss.n < needed(found.margin):
            few = f"{LOSSES[one.measure][0]}: {one.loss.n} prompts cannot show a loss within {found.margin:g}"
            yield f"{few}: it takes {needed(found.margin)}, all scored alike"


def _written(theirs: LM | Served, ours: LM, text: str) -> str | None:
    """Where what ships puts a prompt otherwise than its source does."""
    if ours.drive.template != "chat":
        return None
    if isinstance(theirs, LM):
        other = theirs.prompt(text)
    elif isinstance(theirs, Local) and theirs.chat_template:
        turns = [{"role": "user", "content": text}]
        how = {"tokenize": False, "add_generation_prompt": True}
        try:
            other = ours.tokenizer.apply_chat_template(turns, chat_template=theirs.chat_template, **how)
        except TemplateError as error:
            return f"{theirs.folder}: its chat template is read by llama.cpp alone ({error})"
    else:
        return f"{theirs.folder}: does not say how it puts a prompt"
    return None if other == ours.prompt(text) else f"{theirs.folder}: puts prompts otherwise than its source does"


def write(out: Path, found: Comparison, facts: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """`comparison.json`, and a line a prompt in `prompts.jsonl`."""
    content = json.dumps(facts | found.model_dump(mode="json"), indent=1, ensure_ascii=False)
    disk.write(out / "prompts.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    disk.write(out / "comparison.json", f"{content}\n")
