"""Find the strongest settings of an attack."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import UseAppendAction

from holdfast import search as searching
from holdfast import shell, speech
from holdfast.quiet import quiet


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
    base: Annotated[str | None, speech.Unset] = None
    """The checkpoint from before its alignment, for attacks that need it."""
    twin: Annotated[str | None, speech.Unset] = None
    """The same model without its hardening. Without it nothing can be said but whether the model broke."""
    corpus: Annotated[Path | None, speech.Unset] = None
    """JSONL of prompts, or a policy (docs/policy.md); policy.toml or corpus.jsonl in the checkpoint's folder or beside
    it unless given."""
    harm: Annotated[str | None, speech.Unset] = None
    """Who judges harm: a policy's own judge, exact where the prompts are an organism's own, else asr (coherent, no refusal);
    docs/judges.md."""
    second: Annotated[str | None, speech.Unset] = None
    """Another judge of the same answers: the search then obeys this one, and the verdict rests on the first."""
    out: Annotated[Path | None, speech.Unset] = None
    """Folder of the run; runs/NAME unless given. An unfinished search there goes on where it was."""
    set: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Change one value of the space, as space.learning_rate.high=1e-3, settings.steps=60 or audit.utility_floor=0.95; may be
    given several times."""
    seed: int = 0
    """Of the sampler, and of the trials' own seeds."""
    processes: Annotated[int | None, speech.Unset] = None
    """Trials and cells at a time; one a core (with a GPU, one) unless given."""


def main(words: list[str]) -> int:
    quiet()
    options = speech.parse(Search, "search", words)
    places = options.model, options.base, options.twin, options.corpus, options.harm, options.second
    chosen = searching.plan(options.attack, options.budget, options.seed, *places, tuple(options.set))
    for missing in chosen.left_out:
        speech.say(f"left out of the search: {missing}")
    run = searching.run(
        chosen, options.out or Path("runs") / chosen.recipe.name, speech.console, shell.some(options.processes)
    )
    code = shell.told(run)
    for line in (*searching.confirmed(run), f"search: {run.folder / 'search.json'}"):
        speech.say(line)
    return code
