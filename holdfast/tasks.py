"""Tasks of other frameworks by the names that a command or a recipe gives them: as utility, and as judges of harm."""

from typing import Any

from holdfast.harness import Harness
from holdfast.inspection import Inspection
from holdfast.problem import Problem, meant
from holdfast.settings import checked

Tasks = Harness | Inspection
KINDS: dict[str, type[Tasks]] = {"lm-eval": Harness, "inspect": Inspection}


def utility(value: Any) -> Any:
    """`lm-eval:a,b` or `inspect:a,b` as the table that it stands for; anything else as it is."""
    method, is_there, names = value.partition(":") if isinstance(value, str) else ("", "", "")
    if method not in KINDS or not is_there:
        return value
    return {"method": method, "tasks": [one.strip() for one in names.split(",")]}


def checked_utility(value: Any) -> Any:
    """The tasks that a table names. Raises `Problem` naming the key."""
    value = utility(value)
    if not isinstance(value, dict):
        return value
    method = str(value.get("method", "lm-eval"))
    if method not in KINDS:
        raise Problem(f"utility: no tasks of {method!r} are known; {meant(method, KINDS)}")
    return checked(KINDS[method], value, "utility")


def judge(value: Any) -> Any:
    """A judge's name as its table, `inspect:TASK` too; a table as it is."""
    if not isinstance(value, str):
        return value
    if value.startswith("inspect:"):
        return {"method": "inspect", "task": value.removeprefix("inspect:")}
    return {"method": value}
