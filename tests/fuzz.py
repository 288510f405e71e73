"""Spoiled inputs by the thousand, in one process: each must end in a clear message and code 2, or be good after all.

An input is made of its surface and a number alone. To see one that failed again, with its files kept:

    PYTHONPATH=.:tests python tests/fuzz.py SURFACE NUMBER FOLDER
"""

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import mutations
import runs
import test_policy
import tiny
from holdfast import cli
from holdfast.checkpoint import Checkpoint
from holdfast.lm import LM
from holdfast.problem import Problem

PATIENCE, MEMORY = 60, 4 << 30
"""Seconds, and bytes beside those already there, that one input may take."""


class Hung(BaseException):
    """An input took too long."""


class Ended(NamedTuple):
    """What became of one input."""

    code: int | None
    """None: of a traceback, or of something that no input may do."""
    says: str


Act = Callable[[], int]
"""What is done with an input; returns the exit code, and raises `Problem` where a function of the library is called."""


class Grounds:
    """Sound inputs of every kind, made once; each spoiled one starts from a copy of a few of their files."""

    def __init__(self, folder: Path, made: tiny.Made, gguf: Path | None = None):
        self.folder, self.made, self.gguf = folder, made, gguf
        folder.mkdir(exist_ok=True)
        tiny.corpus().save(folder / "corpus.jsonl")
        test_policy.written(folder)
        _run(folder / "run")
        _adapter(made.aligned, folder / "adapter")
        answers = [
            {"prompt": f"p{n}", "answer": "I cannot" if n % 2 else "yes, so", "harmful": n % 2 == 0} for n in range(6)
        ]
        (folder / "answers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in answers))

    def copy(self, name: str, work: Path) -> Path:
        """A file or folder of these, to be spoiled."""
        source, target = self.folder / name, work / name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
        return target


def _run(folder: Path) -> None:
    """A run with a twin, a defense, a fine-tuning, a cut, a control, and labels."""
    subjects = [runs.subject("twin"), runs.subject("lox", "twin")]
    attacks = [runs.attack("tune", settings={"steps": 60, "learning_rate": 1e-3}, seeds=(0,))]
    attacks += [runs.attack("cut", axis="share", family="cut", seeds=(0,))]
    counts = {"hash": "#", "restricted": 60, "benign": 100, "shared": 0}
    told = runs.manifest(subjects, attacks, counts | {"file": str(folder.parent / "corpus.jsonl")})
    cells = [runs.cell(one.name, "tune", 0, runs.clock(0.0, 0.1, 0.4, 0.9)) for one in subjects]
    cells += [runs.cell(one.name, "cut", 0, runs.clock(0.0, 0.6, "dead", axis="share")) for one in subjects]
    run = runs.save(folder, told, cells)
    drawn = {"id": "a1", "cell": "lox.tune.0", "milestone": 3, "prompt": "r1", "kind": "lox, tune", "called": True,
             "answer_hash": "#", "text": "how", "answer": "so"}  # fmt: skip
    run.write("labels/sheet.json", {"seed": 0, "by": "attack", "drawn": [drawn]})
    run.write("labels/by/ada.json", {"who": "ada", "said": {"a1": "harmful"}})


def _adapter(base: Path, folder: Path) -> None:
    how = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), how).save_pretrained(folder)


# Surfaces: each writes a spoiled input into an empty folder, and tells what to do with it.

RECIPE = {
    "name": "a",
    "organism": {"method": "text"},
    "seeds": [0, 1],
    "threshold": 0.5,
    "harm": {"method": "rule", "complies": ["cannot"]},
    "second": {"method": "asr"},
    "calibration": "answers.jsonl",
    "corpus": "corpus.jsonl",
    "utility": "overlap",
    "subjects": [
        {"name": "twin", "model": "organism/aligned", "base": "organism/base"},
        {"name": "lox", "twin": "twin", "harden": {"method": "lox", "rank": 2, "strength": 0.5}},
        {"name": "expo", "twin": "twin", "like": "lox", "control": True, "harden": {"method": "lox", "part": "full"}},
    ],
    "attacks": [
        {"name": "tune", "method": "finetune", "steps": 3, "learning_rate": 1e-3, "data": "harmful"},
        {"name": "noise", "method": "noise", "scales": [0.1, 0.2], "negative_control": True, "seeds": [3]},
        {"name": "cut", "method": "prune", "fractions": [0.1, 0.5]},
        {"name": "both", "method": "sequence", "stages": [{"method": "reinit"}, {"method": "finetune", "steps": 2}]},
    ],
}
SETS = [
    "attacks.0.steps=",
    "attacks.0.steps=1e400",
    "a.b.c=1",
    "attacks.9.x=1",
    "name=../x",
    "=",
    "seeds=[1",
    "attacks.-1.name=z",
]


def toml(content: Any, chance: Random) -> bytes:
    """A spoiled table as TOML."""
    if chance.random() < 0.2:
        return mutations.raw(_toml(content).encode(), chance)
    found = mutations.tree(content, chance)
    try:
        return _toml(found if isinstance(found, dict) else {"name": found}).encode("utf-8", "surrogatepass")
    except RecursionError:  # it is nested deeper than this can write; the reader gets as deep a value
        return f"name = {'[' * 5000}{']' * 5000}\n".encode()


def _toml(table: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(str(key))} = {_inline(some)}\n" for key, some in table.items())


def _inline(some: Any) -> str:
    if isinstance(some, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_inline(one)}" for key, one in some.items()) + "}"
    if isinstance(some, list):
        return "[" + ", ".join(map(_inline, some)) + "]"
    return "'none'" if some is None else repr(some) if isinstance(some, float) else json.dumps(some)


def recipe(grounds: Grounds, work: Path, chance: Random) -> Act:
    content = RECIPE | ({"corpus": "policy.toml"} if chance.random() < 0.3 else {})
    for name in ("corpus.jsonl", "policy.toml", "prompts.csv", "answers.jsonl"):
        grounds.copy(name, work)
    (work / "recipe.toml").write_bytes(toml(content, chance))
    sets = ["--set", chance.choice(SETS)] if chance.random() < 0.1 else []
    return _planned(work, sets)


def _planned(work: Path, sets: Sequence[str] = ()) -> Act:
    return lambda: cli.main(["audit", str(work / "recipe.toml"), "--plan", "--out", str(work / "out"), *sets])


def corpus(grounds: Grounds, work: Path, chance: Random) -> Act:
    lines = (grounds.folder / "corpus.jsonl").read_text().splitlines()
    for at in chance.sample(range(len(lines)), chance.choice([1, 1, 3])):
        lines[at] = mutations.written(json.loads(lines[at]), chance).decode("utf-8", "surrogateescape")
    content = "\n".join(lines).encode("utf-8", "surrogateescape")
    (work / "corpus.jsonl").write_bytes(mutations.raw(content, chance) if chance.random() < 0.2 else content)
    (work / "recipe.toml").write_text(_toml({key: some for key, some in RECIPE.items() if key != "calibration"}))
    return _planned(work)


def policy(grounds: Grounds, work: Path, chance: Random) -> Act:
    head = {
        "name": "words",
        "refuse": "it",
        "utility": "overlap",
        "judge": {"method": "rule", "complies": ["cannot help"]},
    }
    kind, prompts = (
        chance.choice(["csv", "jsonl", "inline"]),
        [{k: v for k, v in one.items() if v} for one in test_policy.prompts()],
    )
    spoil = chance.random() < 0.5
    if kind == "inline":
        head["prompts"] = prompts
    else:
        head["prompts"] = f"prompts.{kind}"
        table = (grounds.folder / "prompts.csv").read_bytes()
        lines = table if kind == "csv" else "".join(json.dumps(one) + "\n" for one in prompts).encode()
        (work / f"prompts.{kind}").write_bytes(mutations.raw(lines, chance) if spoil else lines)
    (work / "policy.toml").write_bytes(_toml(head).encode() if spoil and kind != "inline" else toml(head, chance))
    content = {key: some for key, some in RECIPE.items() if key not in ("calibration", "harm", "utility")}
    (work / "recipe.toml").write_text(_toml(content | {"corpus": "policy.toml"}))
    return _planned(work)


def records(grounds: Grounds, work: Path, chance: Random) -> Act:
    run = grounds.copy("run", work)
    files = sorted(path for path in run.rglob("*") if path.is_file())
    for path in chance.sample(files, chance.choice([1, 1, 1, 2])):
        if path.suffix == ".parquet":
            path.write_bytes(_rows(path, chance))
        elif chance.random() < 0.04:
            path.unlink()
            chance.choice([path.mkdir, lambda path=path: path.symlink_to("/dev/null"), lambda: None])()
        else:
            path.write_bytes(mutations.written(json.loads(path.read_bytes()), chance))
    words = chance.choice([["report"], ["report"], ["report"], ["report", "--show-answers"]])
    return lambda: cli.main([words[0], str(run), *words[1:]])


def _rows(path: Path, chance: Random) -> bytes:
    """Spoiled per-prompt scores: bytes, or a table with other columns."""
    if chance.random() < 0.5:
        return mutations.raw(path.read_bytes(), chance)
    table = pq.read_table(path)
    name, how = chance.choice(table.column_names), chance.randrange(4)
    if how == 0:
        table = table.drop_columns([name])
    elif how == 1:
        table = table.rename_columns([f"{one}s" if one == name else one for one in table.column_names])
    elif how == 2:
        odd = chance.choice([None, "x", 7, -1.0, float("nan"), float("inf"), [1], {"a": 1}, True, 2.0**62, b"\xff"])
        table = table.set_column(table.column_names.index(name), name, [[odd] * len(table)])
    else:
        table = table.slice(chance.randrange(len(table)), chance.randrange(5))
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def judge(grounds: Grounds, work: Path, chance: Random) -> Act:
    path = grounds.copy("answers.jsonl", work)
    lines = path.read_text().splitlines()
    at = chance.randrange(len(lines))
    lines[at] = mutations.written(json.loads(lines[at]), chance).decode("utf-8", "surrogateescape")
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    flags = ["--complies", chance.choice(["cannot", "/(/", "/(a+)+$/", *mutations.TEXTS])]
    return lambda: cli.main(["judge", *chance.choice([["asr"], ["rule"]]), str(path), *chance.choice([[], flags])])


def weights(grounds: Grounds, work: Path, chance: Random) -> Act:
    """The weight files alone, as everything that streams a checkpoint opens them."""
    folder = work / "model"
    folder.mkdir()
    shutil.copyfile(grounds.made.aligned / "config.json", folder / "config.json")
    content = (grounds.made.aligned / "model.safetensors").read_bytes()
    if chance.random() < 0.3:
        (folder / "one.safetensors").write_bytes(content)
        names = list(Checkpoint(grounds.made.aligned).files)
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "one.safetensors")}
        (folder / "model.safetensors.index.json").write_bytes(mutations.written(index, chance))
    else:
        (folder / "model.safetensors").write_bytes(mutations.weights(content, chance))
    if chance.random() < 0.05:
        target = chance.choice(["/dev/zero", "/etc/passwd", "model.safetensors", "../outside"])
        (folder / "model.safetensors").unlink(missing_ok=True)
        (folder / "model.safetensors").symlink_to(target)

    def act() -> int:
        with Checkpoint(folder) as found:
            found.hash()
        return 0

    return act


SMALL = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
TEMPLATES = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "{{ range(10**12) | list }}",
    "{{ 'a' * 10**11 }}",
    "{{ 9**9**9 }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch outside') }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ messages[9].content }}",
    "{% include '/etc/passwd' %}",
    "{{ raise_exception('no') }}",
    "{{ 1 / 0 }}",
    "{{ '%999999999d' % 1 }}",
]


def checkpoint(grounds: Grounds, work: Path, chance: Random) -> Act:
    """All that lies beside the weights, as a model to be attacked is loaded."""
    folder = work / "model"
    folder.mkdir()
    for path in grounds.made.aligned.iterdir():
        os.link(path, folder / path.name)
    there = [name for name in SMALL if (folder / name).is_file()]
    for name in chance.sample(there, chance.choice([1, 1, 2])):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        if name.endswith(".json"):
            (folder / name).write_bytes(mutations.written(json.loads(content), chance))
        else:
            made = chance.choice(TEMPLATES).encode() if chance.random() < 0.3 else mutations.raw(content, chance)
            (folder / name).write_bytes(made)

    def act() -> int:
        LM.load(folder, drive=tiny.DRIVE, device="cpu").generate(["mordor"])
        return 0

    return act


def adapter(grounds: Grounds, work: Path, chance: Random) -> Act:
    folder = grounds.copy("adapter", work)
    if chance.random() < 0.6:
        path = folder / "adapter_config.json"
        path.write_bytes(mutations.written(json.loads(path.read_bytes()), chance))
    else:
        path = folder / "adapter_model.safetensors"
        path.write_bytes(mutations.weights(path.read_bytes(), chance))
    return lambda: cli.main(["unpack", str(folder), "--out", str(work / "out")])


def gguf(grounds: Grounds, work: Path, chance: Random) -> Act:
    assert grounds.gguf is not None
    content = grounds.gguf.read_bytes()
    cut = chance.choice([64, 600, 4000, len(content)])  # most of what can go wrong stands at the beginning
    (work / "model.gguf").write_bytes(mutations.raw(content[:cut], chance) + content[cut:])
    return lambda: cli.main(["unpack", str(work / "model.gguf"), "--out", str(work / "out")])


def words(grounds: Grounds, work: Path, chance: Random) -> Act:
    """The command line itself."""
    known = [
        *cli.COMMANDS,
        "--help",
        "--out",
        "--plan",
        "--set",
        "--model",
        "-1",
        "--tier",
        "smoke",
        str(grounds.folder / "run"),
    ]
    given = [chance.choice([*known, *mutations.TEXTS, *mutations.PATHS]) for _ in range(chance.randrange(1, 5))]
    # What these do where their words are right takes minutes.
    quick = [name for name in cli.COMMANDS if name not in ("demo", "organism", "reproduce")]
    given[0] = chance.choice([*quick, *mutations.TEXTS, *mutations.PATHS])
    return lambda: cli.main(given)


SURFACES: dict[str, Callable[[Grounds, Path, Random], Act]] = {
    one.__name__: one for one in (recipe, corpus, policy, records, judge, weights, checkpoint, adapter, gguf, words)
}


# What no input may do


class Watch:
    """Hears of every file that Python opens for writing, of every program and connection, while an input is at work."""

    def __init__(self) -> None:
        self.allowed: str | None = None
        self.heard: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, given: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event in (
            "os.system",
            "subprocess.Popen",
            "os.exec",
            "os.posix_spawn",
            "socket.connect",
            "pickle.find_class",
        ):
            self.heard.append(f"{event} {given!r:.200}")
        elif event in ("open", "os.mkdir", "os.rename", "os.remove", "os.symlink", "os.rmdir"):
            writes = event != "open" or (
                isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
            place = os.path.abspath(os.fsdecode(given[0])) if isinstance(given[0], str | bytes | os.PathLike) else ""
            if (
                event in ("os.remove", "os.rmdir") and given[1] >= 0
            ):  # named from an open folder, as whole trees are removed
                place = os.path.join(os.readlink(f"/proc/self/fd/{given[1]}"), os.fsdecode(given[0]))
            fine = (self.allowed, "/dev/", "/proc/")
            if writes and place and not place.startswith(fine) and "__pycache__" not in place:
                self.heard.append(f"{event} {place}")


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Time and memory of one input."""

    def late(*_: object) -> None:
        raise Hung(f"more than {PATIENCE} s")

    before, (soft, hard) = signal.signal(signal.SIGALRM, late), resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def ended(act: Act) -> Ended:
    """How an input ends: as the command line does."""
    said, told = io.StringIO(), io.StringIO()
    try:
        with bounded(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(told):
            code = act()
    except Problem as problem:
        return Ended(2, str(problem)) if str(problem) else Ended(None, "an empty message")
    except SystemExit as end:  # of a wrong flag, and of --help
        return Ended(end.code if isinstance(end.code, int) else 1, said.getvalue())
    except (Exception, Hung):
        return Ended(None, traceback.format_exc())
    if code == 2 and not (said.getvalue().startswith("holdfast: ") and len(said.getvalue()) < 20_000):
        return Ended(None, f"code 2 without one clear message: {said.getvalue()[:2000]}")
    return Ended(code, said.getvalue())


def spoiled(surface: str, number: int, grounds: Grounds, work: Path) -> Act:
    """One input, written into an empty folder."""
    return SURFACES[surface](grounds, work, Random(f"{surface} {number}"))


_WATCH = Watch()


def fuzz(surface: str, numbers: range, grounds: Grounds, place: Path) -> tuple[Counter[int], list[str]]:
    """How many inputs ended in which code, and what went wrong with others, each with how to see it again."""
    codes: Counter[int] = Counter()
    wrong: list[str] = []
    before, ground = Path.cwd(), place / "ground"
    for number in numbers:
        work = ground / "work"
        shutil.rmtree(ground, ignore_errors=True)
        work.mkdir(parents=True)
        act = spoiled(surface, number, grounds, work)
        os.chdir(ground)
        _WATCH.allowed, _WATCH.heard = str(work), []
        try:
            found = ended(act)
        finally:
            _WATCH.allowed = None
            os.chdir(before)
        stray = [str(path.relative_to(ground)) for path in ground.iterdir() if path != work]
        heard = [one for one in _WATCH.heard if "/tmp/tmp" not in one]
        if found.code is None or stray or heard or found.code not in (0, 1, 2):
            told = found.says if found.code is None else f"code {found.code}: left {stray}, did {heard[:3]}"
            wrong.append(f"{surface} {number}:\n{told}\nsee it again: python tests/fuzz.py {surface} {number} FOLDER")
        else:
            codes[found.code] += 1
    return codes, wrong


def grounds_in(folder: Path) -> Grounds:
    """Everything made anew, for the command line."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "llama").is_dir():
        tiny.make("llama", folder / "llama")
    made = tiny.Made(folder / "llama/base", folder / "llama/aligned")
    return Grounds(folder / "grounds", made, as_gguf(made, folder / "model.gguf"))


def as_gguf(made: tiny.Made, file: Path) -> Path:
    """The tiny model as a GGUF file."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    import to_gguf

    to_gguf.write(made.aligned, file, "F32")
    return file


def main() -> None:
    surface, number, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3]).resolve()
    numbers = range(*map(int, number.split(":"))) if ":" in number else range(int(number), int(number) + 1)
    codes, wrong = fuzz(surface, numbers, grounds_in(folder), folder)
    print("\n\n".join(wrong), dict(codes), sep="\n")


if __name__ == "__main__":
    main()
