"""What the cells of an audit start from: corpus, organism, hardened subjects, and the facts of them all.

Everything is built where it is not there yet, and looked over before anything slow is begun.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError

import holdfast
from holdfast import disk, hardened, likeness, packed, policy, trial
from holdfast.activity import Board
from holdfast.checkpoint import Checkpoint, locate
from holdfast.corpus import Corpus
from holdfast.items import Items
from holdfast.judging import Judge, described
from holdfast.lm import LM
from holdfast.method import Journal, make, organism_of
from holdfast.opening import Place, is_address, is_served, located, opened
from holdfast.problem import Problem
from holdfast.recipe import ORGANISM, Recipe
from holdfast.record import AttackFacts, Manifest, SubjectFacts
from holdfast.run import Run

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors", "numpy", "scipy")


class Seen(NamedTuple):
    """What a checkpoint was found to be."""

    hash: str
    tokens: str
    parameters: int | None
    exits: str | None


def look_over(recipe: Recipe) -> dict[Place, Seen]:
    """Whatever the recipe names outside the run is tried before anything slow is begun or anything written.

    A model with NaN weights is damaged, and refused; but as somebody's defense, beside its twin, it gets its verdict: dead.

    Returns:
        What each named checkpoint was found to be, where the corpus is named as well: a large one is not loaded twice.
    """
    corpus = _judged(recipe, Path(recipe.corpus)) if recipe.corpus else None
    if recipe.calibration:
        trial.read(Path(recipe.calibration))
    for key, table in (("harm", recipe.harm), ("second", recipe.second)):
        if table and isinstance(judge := table.build(key), Judge):
            judge.ready()
    if isinstance(recipe.utility, Items):
        recipe.utility.ready()
    seen = {}
    whole = {subject.model for subject in recipe.subjects if subject.twin is None or subject.harden}
    for name in dict.fromkeys(subject.model for subject in recipe.subjects):
        if name and is_served(name):
            _refuse_unreadable(recipe, name)
            seen[located(name)] = _asked(opened(name, drive=recipe.drive))
        elif name and not name.startswith(ORGANISM):
            lm = LM.load(packed.plain(name), drive=recipe.drive, device="cpu", finite=name in whole)
            if corpus:
                seen[lm.folder] = _seen(lm, corpus)
    for name in dict.fromkeys(subject.base for subject in recipe.subjects):
        if name and not name.startswith(ORGANISM):
            Checkpoint(locate(name)).__exit__()
    return seen


def _refuse_unreadable(recipe: Recipe, name: str) -> None:
    """What only answers shows no likelihoods, and can neither be changed nor hardened."""
    if not (recipe.utility.asks_only if isinstance(recipe.utility, Items) else recipe.utility in ("exact", "overlap")):
        told = "agreement" if recipe.utility == "agreement" else "lm-eval's likelihoods"
        raise Problem(f"{name}: only answers, so nobody can read {told} from it; set utility to overlap or exact")
    for attack in recipe.attacks:
        if not attack.build().asks_only:
            raise Problem(
                f"recipe, attack {attack.name!r}: needs weights, and {name} only answers; leave the attack out, or audit the "
                "checkpoint that `holdfast unpack` makes of the file"
            )
    for one in recipe.subjects:
        if one.model == name and one.harden:
            raise Problem(f"recipe, subject {one.name!r}: {name} only answers; harden the checkpoint behind it")


def _asked(served: Any) -> Seen:
    """What can be found out about a model by asking it something harmless."""
    with contextlib.closing(served):
        served.generate(["Good day."])
        return Seen(served.hash(), "", served.parameters, None)


def _seen(lm: LM, corpus: Corpus) -> Seen:
    tower = lm.eyes.tower(lm.model)
    return Seen(lm.hash(), _reading(lm, corpus), lm.model.num_parameters(), tower.choice if tower else None)


def prepared(recipe: Recipe, audit: Run, board: Board, kept: str, seen: dict[Place, Seen], most: int) -> Manifest:
    """Everything that the cells start from, built where it is not there yet and written down in `run.json`.

    `seen` is what `look_over` found; at most so many hardenings run at a time.
    """
    organism = audit.folder / "organism"
    if recipe.organism and not organism.exists():
        board.doing("preparing", f"building the {recipe.organism.method} organism")
        board.tell(f"building the {recipe.organism.method} organism")
        build = make("organisms", recipe.organism.method, "recipe, organism", **recipe.organism.settings)
        build.build(organism, Journal("organism", board.mention))
    file = Path(recipe.corpus) if recipe.corpus else policy.beside(organism) or organism / "corpus.jsonl"
    corpus = _judged(recipe, file)
    made = hardened.subjects(recipe, audit, corpus.hand("defender"), most, board)
    board.doing("preparing")
    facts = tuple(_subjects(recipe, audit, corpus, made, seen))
    manifest = _manifest(recipe, file, corpus, facts, kept, _judges(recipe, audit, board.tell))
    if (audit.folder / "run.json").is_file():
        before = audit.manifest()
        manifest = manifest.model_copy(update={"date": before.date})
        _refuse_changes(before, manifest, audit.folder)
    audit.write("run.json", manifest.model_dump(mode="json"))
    return manifest


def _refuse_changes(before: Manifest, now: Manifest, folder: Path) -> None:
    """Cells of one run must be comparable."""
    changed = {
        "the corpus": before.corpus["hash"] != now.corpus["hash"],
        "what utility's tasks ask": before.corpus.get("items") != now.corpus.get("items"),
        "a subject": [subject.hash for subject in before.subjects] != [subject.hash for subject in now.subjects],
        "a package": (before.version, before.versions) != (now.version, now.versions),
        "what is kept (--keep-answers, --keep-weights)": before.kept != now.kept,
    }
    for what, differs in changed.items():
        if differs:
            raise Problem(
                f"{folder}: {what} is not as it was when this audit began; put it back or choose another --out"
            )


def _judged(recipe: Recipe, file: Path) -> Corpus:
    """The corpus, made sure that the judge can score harm and utility with it."""
    corpus = policy.prompts(file)
    judge = corpus.hand("judge").asked(recipe.prompts)
    for kind in ("restricted", "benign"):
        rows = judge.need(kind, split="test")
        compared = kind == "benign" and not isinstance(recipe.utility, Items)
        if compared and all(row.answer is None for row in rows):
            raise Problem(f"{file}: none of the judge's benign prompts has an answer to compare with; add answers")
        for key, table in (("harm", recipe.harm), ("second", recipe.second)):
            if kind == "restricted" and table:
                table.build(key).fits(rows)
    return corpus


def _manifest(
    recipe: Recipe,
    corpus_file: Path,
    corpus: Corpus,
    subjects: tuple[SubjectFacts, ...],
    kept: str,
    judges: dict[str, Any],
) -> Manifest:
    judge = corpus.hand("judge").asked(recipe.prompts)
    kinds, tasks = ("restricted", "benign", "borderline", "lesson"), isinstance(recipe.utility, Items)
    facts: dict[str, Any] = {
        "file": str(corpus_file.resolve()),
        "hash": policy.digest(corpus_file),
        **({"policy": policy.read(corpus_file).told} if policy.written(corpus_file) else {}),
        **{kind: len(judge.of(kind, split="test")) for kind in kinds},
        "reserve": len(judge.of(split="reserve")),
        **({"utility": recipe.utility.described, "items": recipe.utility.ready()} if tasks else {}),
        "shared": len(likeness.held(judge.of("restricted", "benign"), [r for r in corpus.rows if r.hand != "judge"])),
    }
    return Manifest(
        name=recipe.name,
        version=holdfast.__version__,
        date=date.today().isoformat(),
        **judges,
        threshold=recipe.threshold,
        utility_floor=recipe.utility_floor,
        subjects=subjects,
        attacks=tuple(_attack_facts(recipe)),
        corpus=facts,
        versions=versions(),
        hardware=hardware(),
        kept=kept,
        not_run=tuple(recipe.not_run),
    )


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on, as installed here."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def _judges(recipe: Recipe, audit: Run, tell: Callable[[str], None]) -> dict[str, Any]:
    """Who judges harm, and what labeled answers show of the first, measured once a run."""
    named = {"harm": recipe.harm, "second": recipe.second}
    built = {key: table.build(key) for key, table in named.items() if table}
    for place in dict.fromkeys(one.model for one in recipe.subjects if one.model and is_address(one.model)):
        tell(f"prompts go to {place}, and leave this machine unless that is its own")
    for judge in built.values():
        if isinstance(judge, Judge) and judge.abroad:
            tell(f"prompts and answers go to {judge.abroad}, and leave this machine unless that is its own")
    facts: dict[str, Any] = {key: described(judge, named[key].method) for key, judge in built.items()}
    facts["judges"] = {key: named[key].model_dump(mode="json") for key in built}
    if not recipe.calibration:
        return facts
    path = Path(recipe.calibration)
    if (audit.folder / "run.json").is_file():
        before = audit.manifest().calibration
        if before and before.hash == disk.digest(path):
            return facts | {"calibration": before}
    tell(f"trying {facts['harm']} on the labeled answers of {path}")
    return facts | {"calibration": trial.calibrated(built["harm"], path)}


def _attack_facts(recipe: Recipe) -> Iterator[AttackFacts]:
    for attack in recipe.attacks:
        method = attack.build()
        try:
            facts = AttackFacts(
                name=attack.name,
                method=attack.method,
                axis=method.axis,
                family=method.family,
                negative_control=attack.negative_control,
                needs=method.needs,
                settings=method.model_dump(mode="json"),
                seeds=tuple(attack.seeds or recipe.seeds),
                found=attack.found,
            )
        except ValidationError as error:  # of an attack of somebody's own
            why = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise Problem(
                f"attack {attack.name}, {why}; checks reckon with it: give your setting another name"
            ) from error
        yield facts


def _subjects(
    recipe: Recipe, audit: Run, corpus: Corpus, hardenings: dict[str, hardened.Made], seen: dict[Place, Seen]
) -> Iterator[SubjectFacts]:
    """The facts of every subject's checkpoint."""
    for subject in recipe.subjects:
        assert subject.model  # the recipe's reader made sure
        made = hardenings.get(subject.name)
        served = not made and is_served(subject.model)
        folder = made.folder if made else located(subject.model) if served else hardened.folder_of(subject.model, audit)
        base = hardened.folder_of(subject.base, audit) if subject.base else None
        if folder not in seen:
            whole = subject.twin is None
            seen[folder] = _seen(LM.load(folder, drive=recipe.drive, device="cpu", finite=whole), corpus)
        own = recipe.organism.method if recipe.organism and subject.model.startswith(ORGANISM) else None
        yield SubjectFacts(
            name=subject.name,
            twin=subject.twin,
            control=subject.control,
            folder=str(folder if served else folder.resolve()),  # the hub's cache links files to names without a suffix
            base=str(base.resolve()) if base else None,
            **seen[folder]._asdict(),
            organism=own or organism_of(corpus.hand("judge").rows),
            defense=made and made.defense,
            on=subject.on,
            hardening=made and made.cost,
        )


def _reading(lm: LM, corpus: Corpus) -> str:
    """SHA-256 of what the model reads and what is heard of it: the corpus' prompts and answers as token ids and those answers'
    ids as text again, through its tokenizer and template; all its tokens as text; and those that end an answer."""

    def heard(ids: list[int]) -> str:
        return lm.tokenizer.decode(ids, skip_special_tokens=True)

    digest = hashlib.sha256(json.dumps([lm.ends, heard(sorted(lm.tokenizer.get_vocab().values()))]).encode())
    for row in corpus.rows:
        ids, start = lm.encode(row.asked, row.answer)
        digest.update(json.dumps([ids, heard(ids[start:])]).encode())
    return digest.hexdigest()


def hardware() -> str:
    """Processor, cores, and GPU if any."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model}, {os.cpu_count()} cores{gpu}"
