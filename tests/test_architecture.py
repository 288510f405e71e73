"""The house: an import points to a strictly lower floor, and rooms on one floor do not import each other."""

import ast
import re
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent / "holdfast"
FLOORS = [
    {"problem", "processes", "confined", "quiet", "units", "sketch", "warm"},
    {"disk", "changes", "asked", "remote", "settings", "notebook", "markdown", "speech", "sizes"},
    {
        "access",
        "checkpoint",
        "cluster",
        "rounding",
        "quantizers",
        "unrolled",
        "relabeling",
        "live",
        "reading",
        "resume",
        "lattice",
        "signing",
        "ci",
        "readme",
    },
    {"drive", "anatomy", "moved", "kvcache"},
    {"surgery", "answering", "losses", "shards", "vision", "thinning"},
    {"loading", "exits", "serving", "passes", "sight", "ppo", "interrupted", "formats", "tables"},
    {"lm", "corpus", "record", "refusals", "reread"},
    {
        "method",
        "calibration",
        "stream",
        "spectrum",
        "run",
        "dossier",
        "likeness",
        "deltas",
        "random_directions",
        "ablation",
        "memory",
        "selftaught",
        "choices",
        "spent",
        "classifying",
        "deployed",
        "served",
        "packed",
        "activity",
        "items",
    },
    {
        "opening",
        "train",
        "pair",
        "dealing",
        "survival",
        "rubrics",
        "repurposing",
        "policy",
        "adapter",
        "provider",
        "labels",
        "gathering",
        "seal",
    },
    {
        "tuning",
        "pruning",
        "finetuning",
        "perturb",
        "refusal_direction",
        "judging",
        "thrift",
        "safeguards",
        "pictured",
        "evallog",
        "redaction",
        "one_hardening",
        "progress",
        "harness",
        "inspection",
    },
    {"inner", "hardening", "footprint", "ladder", "rewards", "tasks", "dashboard", "following"},
    {"rehearsal", "leavers", "repairing", "display"},
    {"organisms", "attacks", "defenses", "evals", "statistics", "landscape", "ratio"},
    {"evidence", "reliability", "comparison"},
    {"controls", "curves", "kinds", "double_sampling"},
    {"trial", "rectified"},
    {"checks", "recipe", "catalogue"},
    {"cell", "hardened", "claims", "conclusion", "relearning", "values", "wording"},
    {"rivals", "prepare", "paper", "adversaries"},
    {"job", "verdict", "tier", "pooled", "foresight", "comparing", "reproduction"},
    {"auditing", "beside", "report", "plan", "space", "watched", "rejudged", "footing", "gate"},
    {"convergence", "sampling", "trials", "shell", "reckoning", "audited", "gated", "card", "regression"},
    {"search", "reproducing", "api"},
    {"commands"},
    {"cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(path for path in HOUSE.rglob("*.py") if path != HOUSE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def imported_rooms(source: str) -> set[str]:
    """The rooms of holdfast that a source file imports."""
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "holdfast":
            names = [f"holdfast.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("holdfast.")}
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_imports_point_strictly_down(path):
    room = room_of(path)
    assert room in FLOOR, f"{room} has no floor: give it one in this test"
    for other in imported_rooms(path.read_text()) - {room}:
        assert other in FLOOR, f"{path.name} imports holdfast.{other}, which is no room"
        assert FLOOR[other] < FLOOR[room], f"{room} imports {other}, which is not below it"


@pytest.mark.parametrize(
    "light",
    [
        "record",
        "dossier",
        "run",
        "statistics",
        "survival",
        "checks",
        "verdict",
        "wording",
        "corpus",
        "disk",
        "problem",
        "report",
        "display",
    ],
)
def test_records_and_verdicts_know_no_torch(light):
    seen, waiting = set(), [light]
    while waiting:
        room = waiting.pop()
        seen.add(room)
        for path in [p for p in FILES if room_of(p) == room]:
            source = path.read_text()
            assert "import torch" not in source and "from torch" not in source, f"{light} reaches torch through {room}"
            waiting += imported_rooms(source) - seen


def test_the_check_sees_an_upward_import():
    assert imported_rooms("from holdfast import auditing\nimport holdfast.cell\nfrom holdfast.lm import LM") == {
        "auditing",
        "cell",
        "lm",
    }


def test_a_file_is_one_room():
    long = {
        str(path.relative_to(HOUSE)): lines for path in FILES if (lines := len(path.read_text().splitlines())) > 300
    }
    assert not long


def test_the_house_has_a_map() -> None:
    """docs/house.md names every room, on its floor."""
    table = (HOUSE.parent / "docs/house.md").read_text().partition("| floor |")[2].partition("\n\n")[0]
    told, floor = {}, 0
    for line in table.splitlines()[2:]:
        _, number, rooms, *_ = line.split("|")
        floor = int(number) if number.strip() else floor
        told |= dict.fromkeys(re.findall(r"`([a-z_]+)/?`", rooms), floor)
    assert told == FLOOR
