"""What lies in a run's folder beside its verdict, as the page shows it."""

import hashlib
from typing import Any, NamedTuple

from holdfast.run import Run


class Sources(NamedTuple):
    """Of a run on disk; all None for a dossier that lies in no folder."""

    recipe: str | None = None
    """`recipe.json` as it stands there."""
    digest: str | None = None
    """Its SHA-256."""
    search: dict[str, Any] | None = None
    """`search.json`, where a search chose the attacks."""


def sources(run: Run) -> Sources:
    """Raises `Problem` if a file is damaged."""
    run.read("recipe.json")  # names it where it is damaged
    recipe = (run.folder / "recipe.json").read_bytes()
    search = run.read("search.json") if (run.folder / "search.json").is_file() else None
    return Sources(recipe.decode(), hashlib.sha256(recipe).hexdigest(), search)
