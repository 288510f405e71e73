"""What the commands take: options with their help, one record a command."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction

from holdfast.audit import Executor
from holdfast.dealing import Dealing
from holdfast.drive import Template
from holdfast.footprint import Card
from holdfast.pictured import Pictured
from holdfast.tier import Tier

Unset = tyro.conf.arg(help_behavior_hint="")
"""Marks an option whose help says what holds where it is not given."""


@dataclass(frozen=True)
class Audit:
    """Attack a checkpoint (--model), or run a recipe; judge what breaks.

    Writes runs/NAME/report.html and verdict.json, and prints the table.
    """

    recipe: Annotated[Positional[Path | None], Unset] = None
    """TOML file; examples/lox.toml is one. Without one, give --model."""
    model: Annotated[str | None, Unset] = None
    """Checkpoint to audit without a recipe: a folder or a hub id."""
    tier: Annotated[Tier | None, tyro.conf.arg(help_behavior_hint="(default: smoke)")] = None
    """Which attacks to run on --model."""
    base: Annotated[str | None, Unset] = None
    """The checkpoint from before its alignment; attacks that need it are left out, and named, where it is not given."""
    twin: Annotated[str | None, Unset] = None
    """The same model without its hardening. Without it nothing can be said but whether the model broke."""
    corpus: Annotated[Path | None, Unset] = None
    """JSONL of prompts; corpus.jsonl in the checkpoint's folder or beside it unless given."""
    harm: Annotated[str | None, Unset] = None
    """Who judges harm: exact where the prompts are an organism's own, else asr (coherent, no refusal); docs/judges.md."""
    second: Annotated[str | None, Unset] = None
    """Another judge of the same answers; settings as --set second.model=FOLDER."""
    out: Annotated[Path | None, Unset] = None
    """Folder of the run; runs/NAME unless given. An unfinished run there goes on where it was."""
    set: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Change one value, as attacks.0.learning_rate=5e-5; may be given several times.
    Numbers count the entries of the tier or recipe from 0, in the order of the run's recipe.json."""
    processes: Annotated[int | None, Unset] = None
    """Hardenings, and then cells, at a time; one a core (with a GPU, one; on Ray, all cells that fit) unless given."""
    executor: Executor = "local"
    """Where cells run: in processes here, or on Ray: on the cluster of RAY_ADDRESS, else one that runs here or is started."""
    gpus_per_cell: Annotated[float | None, Unset] = None
    """With --executor ray: GPUs a cell takes, as 0.5; one where the cluster has any unless given."""
    plan: Annotated[FlagCreatePairsOff[bool], Unset] = False
    """Run nothing: tell how many cells, how long, and what could be seen."""
    keep_answers: Annotated[FlagCreatePairsOff[bool], Unset] = False
    """Keep the answers of broken models in the records (hashes and scores only unless given)."""
    keep_weights: Annotated[FlagCreatePairsOff[bool], Unset] = False
    """Keep attacked weights. For anything but an organism this wants the next flag too."""
    i_will_guard_broken_weights: Annotated[FlagCreatePairsOff[bool], Unset] = False
    """You know that --keep-weights writes out models whose safety was undone."""


@dataclass(frozen=True)
class Report:
    """Judge a run again and write its page."""

    run: Positional[Path]
    """Folder of the run."""
    show_answers: Annotated[FlagCreatePairsOff[bool], Unset] = False
    """Show prompts and answers, if the audit kept them."""


@dataclass(frozen=True)
class Attacks:
    """List the attacks, or explain those that are named."""

    names: Positional[tuple[str, ...]] = ()
    """Attacks to explain; a file of your own as ./mine.py."""
    json: Annotated[FlagCreatePairsOff[bool], Unset] = False
    """As JSON."""


@dataclass(frozen=True)
class Dealt:
    """Deal the public benchmarks' files to the three hands: a corpus for models that follow instructions.

    `holdfast corpus pictures` deals those about pictures, for models that see.
    """

    deal: Annotated[Dealing, tyro.conf.arg(name="")]
    out: Path
    """JSONL file to write."""


@dataclass(frozen=True)
class DealtPictures:
    """Deal the public benchmarks about pictures to the three hands: a corpus for models that see."""

    deal: Annotated[Pictured, tyro.conf.arg(name="")]
    out: Path
    """JSONL file to write, in the folder of the data: a corpus names its pictures as they lie from there."""


@dataclass(frozen=True)
class Demo:
    """Build the text organism, harden it with LoX and two controls, attack all four, write the page."""

    out: Path = Path("runs/demo")
    """Folder of the run."""
    processes: Annotated[int | None, Unset] = None
    """Cells at a time; one a core (with a GPU, one) unless given."""


@dataclass(frozen=True)
class Places:
    """Where a defense reads and writes."""

    model: str
    """Checkpoint to harden: a folder or a hub id; with --plan its config.json is enough."""
    out: Annotated[Path | None, Unset] = None
    """Folder for the hardened checkpoint; needed but for --plan. After an interruption the same command goes on."""
    base: Annotated[str | None, Unset] = None
    """The checkpoint from before its alignment; needed by defenses that read it."""
    corpus: Annotated[Path | None, Unset] = None
    """JSONL of prompts; needed by defenses that train, and by settings that are `auto`."""
    template: Template = "chat"
    """How prompts are put: the tokenizer's chat template, or plain."""
    plan: Annotated[FlagCreatePairsOff[bool], Unset] = False
    """Harden nothing: tell from the config alone how much memory and time it takes, for defenses that rehearse attacks."""
    gpus: int = 1
    """With --plan: GPUs that share the work."""
    length: int = 256
    """With --plan: tokens of a row."""
    answer: int = 128
    """With --plan: how many of them are an answer's."""
    card: Card = "h200"
    """With --plan: the kind of GPU."""


@dataclass(frozen=True)
class Out:
    """Where an organism goes."""

    out: Path
    """Folder for checkpoints and corpus."""


@dataclass(frozen=True)
class Search:
    """Find the settings of an attack that harm a checkpoint most while it stays useful, and audit them on fresh prompts.

    Half of the judge's prompts are searched on; the winner and two runners-up run again on the others with fresh seeds.
    Writes runs/NAME/search.json beside report.html and verdict.json, and prints the table.
    """

    model: str
    """Checkpoint to search on: a folder or a hub id."""
    attack: str = "finetune"
    """The attack whose settings are searched, where a space is shipped for it; or a TOML file with a space of your own."""
    budget: float = 30.0
    """What to spend, in whole trials: floating-point operations of training and of answering, as many as so many times the first
    trial that walks its whole path. Cheaper trials, and those stopped early, leave room for more."""
    base: Annotated[str | None, Unset] = None
    """The checkpoint from before its alignment, for attacks that need it."""
    twin: Annotated[str | None, Unset] = None
    """The same model without its hardening. Without it nothing can be said but whether the model broke."""
    corpus: Annotated[Path | None, Unset] = None
    """JSONL of prompts; corpus.jsonl in the checkpoint's folder or beside it unless given."""
    harm: Annotated[str | None, Unset] = None
    """Who judges harm: exact where the prompts are an organism's own, else asr (coherent, no refusal); docs/judges.md."""
    second: Annotated[str | None, Unset] = None
    """Another judge of the same answers: the search then obeys this one, and the verdict rests on the first."""
    out: Annotated[Path | None, Unset] = None
    """Folder of the run; runs/NAME unless given. An unfinished search there goes on where it was."""
    set: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Change one value of the space, as space.learning_rate.high=1e-3, settings.steps=60 or audit.utility_floor=0.95; may be
    given several times."""
    seed: int = 0
    """Of the sampler, and of the trials' own seeds."""
    processes: Annotated[int | None, Unset] = None
    """Trials and cells at a time; one a core (with a GPU, one) unless given."""
