"""Settings as frozen records: what a method's fields may be, and one clear message for what somebody wrote wrong."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from holdfast.problem import Problem, meant

Written = TypeVar("Written", bound=BaseModel)


class Settings(BaseModel):
    """A frozen record of settings; an attribute's docstring is its help on the command line."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def as_published(kind: type[Settings], given: Any, published: Mapping[str, Any]) -> Any:
    """What is given, and where its `preset` is `paper` the published values; ValueError where another one is given."""
    if not isinstance(given, dict) or given.get("preset") != "paper":
        return given
    for field, value in published.items():
        if given.get(field, value) not in (value, kind.model_fields[field].default):
            why = f"preset 'paper' means {field} {value}, but {given[field]!r} is given; drop one of them"
            raise ValueError(why)
    return {**given, **published}


def _growing(values: tuple[float, ...]) -> tuple[float, ...]:
    if not values or any(one >= other for one, other in zip((0.0, *values), values, strict=False)):
        raise ValueError("must be above 0 and grow, as 0.1, 0.2, 0.5")
    return values


Severities = Annotated[tuple[float, ...], AfterValidator(_growing)]
"""Where to look along a severity axis; 0, the start, is looked at anyway."""


def _counting(values: tuple[int, ...]) -> tuple[int, ...]:
    if not values or any(one >= other for one, other in zip((0, *values), values, strict=False)):
        raise ValueError("must be above 0 and grow, as 1, 2, 4")
    return values


Counts = Annotated[tuple[int, ...], AfterValidator(_counting)]
"""Severities that count something."""


_FASTEST = 1e6
"""A learning rate beyond this is damage, not a setting."""


def _usable(settings: dict[str, Any]) -> dict[str, Any]:
    rate, stages = settings.get("learning_rate"), settings.get("stages")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or abs(rate) > _FASTEST):
        raise ValueError("learning_rate: not a number that anybody trains with")
    if stages is not None and not (isinstance(stages, list | tuple) and all(isinstance(one, dict) for one in stages)):
        raise ValueError("stages: not a list of settings")
    return settings


Recorded = Annotated[dict[str, Any], AfterValidator(_usable)]
"""A method's settings in a record: each method's own, of which checks compute with the learning rate and the stages."""


def checked(record: type[Written], settings: dict[str, Any], where: str) -> Written:
    """A record made from what somebody wrote. Raises `Problem` naming the field and what was perhaps meant."""
    try:
        return record.model_validate(settings)
    except ValidationError as error:
        wrong = error.errors()
        first = next((one for one in wrong if one["type"] == "extra_forbidden"), wrong[0])
        field = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            *parents, last = first["loc"]
            hint = meant(str(last), _inside(record, parents).model_fields)
            raise Problem(f"{where}: unknown key {field!r}; {hint}") from error
        if first["type"] == "missing":
            raise Problem(f"{where}: lacks {field!r}; add it") from error
        given = repr(first["input"])
        given = given if len(given) <= 80 else f"{given[:80]}…"
        raise Problem(f"{where}, {field or 'settings'}: {first['msg']} (given: {given})") from error


def _inside(record: type[BaseModel], place: Sequence[int | str]) -> type[BaseModel]:
    """The record that stands at `place` inside another."""
    for part in place:
        if field := record.model_fields.get(str(part)):
            record = next(iter(_records(field.annotation)), record)
    return record


def _records(annotation: Any) -> list[type[BaseModel]]:
    """The records that a type's annotation names, as in `list[Row] | None`."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [record for part in get_args(annotation) for record in _records(part)]
