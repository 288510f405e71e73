"""A published result as a file of `papers/` holds it: its table, claims of shape written down beforehand, and how to run it here.

Two scales: on an organism, which any machine runs, and with the paper's own models and data, whose ids on the hub, files and
settings are named. At both an audit (`recipe`) or a relearning does the work; `measures` says where its columns lie in it.
"""

import copy
import importlib.resources
import json
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from holdfast import recipe
from holdfast.changes import change
from holdfast.gathering import Source, located
from holdfast.problem import Problem, meant
from holdfast.recipe import Label, Recipe
from holdfast.relearning import Relearning
from holdfast.settings import Settings, checked

Scale = Literal["organism", "paper"]
Mark = Literal["paper", "paper-fig", "secondary"]
"""Where a published number comes from: the paper's text or table; read off its figure; others who quote it."""
MODELS = "models/"
"""How the names of a paper's models begin in its recipe."""
DATA = "data/"
"""And of its files."""


class Column(Settings):
    name: Label
    says: str
    """What its numbers are."""


class PublishedRow(Settings):
    name: Label
    mark: Mark
    values: dict[str, float | tuple[float, float]]
    """By column; two numbers are a range."""


class Published(Settings):
    """A paper's table."""

    model: str
    columns: list[Column]
    rows: list[PublishedRow]


class Place(Settings):
    """A cell of the table."""

    row: Label
    column: Label


class Claim(Settings):
    """That one cell is lower than another, or higher by no more than `within`."""

    says: str
    less: Place
    than: Place
    within: float = Field(0.0, ge=0)


class Measure(Settings):
    """Where a column is found in what was run."""

    attacks: list[Label] = Field([])
    """Of an audit, the mean over these."""
    at: list[float] | None = None
    """Positions on the attack's axis, the mean over these; where harm is compared unless given."""
    of: Literal["harm", "refusal", "utility", "over_refusal", "desired", "harmful"] = "harm"
    """What is scored; the last two in a relearning."""
    prompts: str = ""
    """Only the prompts whose ids begin so."""
    examples: int | None = None
    """Of a relearning's `harmful`, the attacker's examples."""


class Model(Settings):
    """A model that the paper's scale needs."""

    hub: str
    """Its id; as published."""
    parameters: float = Field(gt=0)
    bytes: float = Field(2.0, gt=0)
    """Of a weight as it lies on the hub."""
    place: str | None = None
    """A folder of one's own to take in its place."""

    @property
    def name(self) -> str:
        return self.place or self.hub


class Setup(Settings):
    """How to run a paper at one scale."""

    model: str
    """What it is run on, in words."""
    differs: list[str] = Field([])
    """Where it departs from the paper."""
    lacks: dict[str, str] = Field({})
    """Rows and columns of the table that are not run, each with the reason."""
    measures: dict[str, Measure]
    models: dict[str, Model] = Field({})
    data: dict[str, Source] = Field({})
    pictures: Literal[False] | str = False
    """Folder with the benchmarks' files about pictures, as `holdfast corpus pictures` reads them; empty: it must be given."""
    tokens: int = Field(256, gt=0)
    """Of a training row, at most; for the estimate alone."""
    asked: int = Field(200, gt=0)
    """The judge's prompts; for the estimate alone."""
    seed: int = 0
    """By which rows are dealt."""
    recipe: dict[str, Any] | None = None
    """An audit's; its models are named `models/NAME`."""
    relearning: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "Setup":
        if (self.recipe is None) == (self.relearning is None):
            raise ValueError("give either a recipe or a relearning")
        return self

    @property
    def used(self) -> dict[str, Model]:
        """The models that are really named in what is run."""
        named = json.dumps(self.recipe or self.relearning)
        return {name: model for name, model in self.models.items() if f'"{MODELS}{name}"' in named}

    def audit(self, corpus: Path | None) -> Recipe:
        """The audit to run. Raises `Problem` as `recipe.resolved`."""
        content = self._named(copy.deepcopy(self.recipe or {}))
        return recipe.resolved(content | ({"corpus": str(corpus)} if corpus else {}), Path("papers"))

    def relearn(self) -> Relearning:
        """What is relearned."""
        return checked(Relearning, self._named(copy.deepcopy(self.relearning or {})), "papers, relearning")

    def _named(self, content: Any) -> Any:
        """The same with models under their own names, and files where they lie."""
        if isinstance(content, dict):
            return {key: self._named(value) for key, value in content.items()}
        if isinstance(content, list):
            return [self._named(one) for one in content]
        if isinstance(content, str) and content.startswith(MODELS):
            return self.models[content.removeprefix(MODELS)].name
        if isinstance(content, str) and content.startswith(DATA):
            name = content.removeprefix(DATA)
            return str(located(name, self.data[name]))
        return content


class Paper(Settings):
    """A paper's file."""

    title: str
    arxiv: str
    published: Published
    claims: list[Claim]
    organism: Setup
    paper: Setup

    def setup(self, scale: Scale) -> Setup:
        return self.organism if scale == "organism" else self.paper

    @model_validator(mode="after")
    def _claims_name_cells(self) -> "Paper":
        rows = {row.name for row in self.published.rows}
        columns = {column.name for column in self.published.columns}
        for place in (place for claim in self.claims for place in (claim.less, claim.than)):
            if place.row not in rows or place.column not in columns:
                raise ValueError(f"the table has no cell {place.row}, {place.column}")
        for setup in (self.organism, self.paper):
            if odd := [name for name in setup.measures if name not in columns]:
                raise ValueError(f"measures: the table has no column {odd[0]}")
        return self


def names() -> list[str]:
    """The papers there are."""
    here = importlib.resources.files("holdfast") / "papers"
    return sorted(one.name.removesuffix(".toml") for one in here.iterdir() if one.name.endswith(".toml"))


def load(name: str, scale: Scale, changes: tuple[str, ...] = ()) -> Paper:
    """A paper's file, with changes to one scale's tables: `models.NAME=FOLDER`, `data.NAME=FOLDER`, any `recipe....=value`.

    Raises:
        Problem: there is no such paper, or a change finds no place.
    """
    if name not in names():
        raise Problem(f"{name}: no such paper; {meant(name, names())}")
    content = tomllib.loads((importlib.resources.files("holdfast") / "papers" / f"{name}.toml").read_text("utf-8"))
    for one in changes:
        change(content[scale], _placed(one, content[scale]))
    return checked(Paper, content, f"papers, {name}")


def _placed(wanted: str, setup: dict[str, Any]) -> str:
    """A change with the whole name of what it changes: a folder alone is where a model or a source lies."""
    where, equals, value = wanted.partition("=")
    kind, _, name = where.partition(".")
    if kind in ("models", "data") and "." not in name:
        known = setup.get(kind, {})
        if name not in known:
            raise Problem(f"--set {wanted}: this paper has no {kind} of that name; {meant(name, known)}")
        return f"{where}.place{equals}{value}"
    return wanted
