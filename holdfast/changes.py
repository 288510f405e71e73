"""One value of a table changed, as `--set key.path=value` says it."""

import tomllib
from typing import Any

from holdfast.problem import Problem


def change(content: dict[str, Any], wanted: str) -> None:
    """Set one value in place, as `key.path=value` says; it is read as TOML, or as text where it is not."""
    where, equals, value = wanted.partition("=")
    *parents, last = where.split(".")
    if not equals:
        raise Problem(f"--set {wanted}: write key.path=value, as attacks.0.learning_rate=5e-5")
    place: Any = content
    try:
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[int(last) if isinstance(place, list) else last] = _value(value)
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise Problem(f"--set {wanted}: the recipe has no place {where!r}; count list entries from 0") from error


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
