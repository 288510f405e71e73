"""The console script: an overview, and the way to the commands.

Imports nothing heavy, so that `holdfast --help` answers at once; torch comes with the first command that needs it.
"""

import importlib
import sys
from pathlib import Path

import holdfast
from holdfast.problem import Problem, meant, printable, wrapped

COMMANDS = {
    "demo": "build a small model, harden it, attack it and its twins, write the page (ten minutes on two cores, no download)",
    "organism": "build a small model whose restricted knowledge is fictional",
    "harden": "harden a checkpoint before its release",
    "repair": "give a cut model (pruned, rounded, with blocks dropped) its source's refusals back, in its own form",
    "audit": "attack a checkpoint (--model) or run a recipe; write verdict and page",
    "watch": "show how a run goes, from another terminal",
    "runs": "list the runs in a folder, finished or not",
    "compare": "compare what ships (a GGUF file, an endpoint, a cut checkpoint) with what it was made from",
    "unpack": "make an ordinary checkpoint of a GGUF file, a quantized checkpoint or an adapter",
    "search": "find the attack settings that harm a checkpoint most, and audit them on fresh prompts",
    "gate": "hold runs against the rules of a release; exit code, JUnit, GitHub Actions",
    "diff": "is a new version worse than the one before? two runs beside each other",
    "card": "write what a run found into a Hugging Face model card",
    "report": "write the page and the verdict of a run again",
    "seal": "hash all records of a run in one file, and sign it; copy the run without prompts",
    "verify": "check a run, or its page, against its seal; judge its records again",
    "label": "read some of a run's answers yourself, and correct its harm by what you find",
    "reproduce": "run a paper's result again: on an organism here, or with the paper's models and data",
    "method": "pool whole runs, one a hardening seed, into a verdict on the method",
    "attacks": "list what an adversary may do, or explain one attack",
    "judge": "try a judge of harm on answers whose harm is known",
    "corpus": "make a corpus of prompts from the public benchmarks' files",
}
LONGEST = 2000
"""Characters of a message: what it quotes may be anything."""


def overview() -> str:
    """What `holdfast --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [wrapped(f"  {name:{width}}  {says}", " " * (width + 4)) for name, says in COMMANDS.items()]
    lines += ["", "example: holdfast audit --model FOLDER --tier smoke", ""]
    here = Path(__file__).parent
    for room in ("organisms", "defenses", "attacks", "evals", "rubrics"):
        stems = sorted(path.stem for path in (here / room).glob("*.py") if not path.stem.startswith("_"))
        more = " (holdfast attacks tells more)" if room == "attacks" else ""
        lines.append(wrapped(f"{room}: {', '.join(stems)}{more}", "  "))
    return "\n".join(
        [
            wrapped(
                f"holdfast {holdfast.__version__}: does a model's safety hold fast when somebody changes its weights?"
            ),
            "",
            "usage: holdfast COMMAND ... (holdfast COMMAND --help tells more)\n",
            *lines,
            "",
            wrapped("A method of your own is named by its file, as ./mine.py, in a recipe or in holdfast attacks."),
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns 0, 1 where an audit's every cell failed, 2 for bad input, or 130 when interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(holdfast.__version__)
        return 0
    try:
        if words[0] not in COMMANDS:
            raise Problem(f"{words[0]}: no such command; {meant(words[0], COMMANDS)}")
        code: int = importlib.import_module(f"holdfast.commands.{words[0]}").main(words[1:])
        return code
    except Problem as problem:
        said = printable(problem)
        message = f"holdfast: {said if len(said) <= LONGEST else f'{said[:LONGEST]}…'}"
        print(wrapped(message, "  ") if sys.stderr.isatty() else message, file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        kept = str(stop) or "finished cells are kept, the same command goes on from there"
        print(f"holdfast: stopped; {kept}", file=sys.stderr)
        return 130
