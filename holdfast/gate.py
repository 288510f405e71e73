"""Rules that a release must pass, as a team writes them in a TOML file. Judges nothing (`gated.py` does); docs/gate.md describes
the file.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from packaging.version import InvalidVersion, Version
from pydantic import Field, field_validator

from holdfast import signing
from holdfast.adversaries import ADVERSARIES
from holdfast.problem import Problem, meant
from holdfast.settings import Settings, checked
from holdfast.tier import Tier

NAMES = [one.name for one in ADVERSARIES]
Share = Annotated[float, Field(ge=0, le=1)]
Least = Annotated[float, Field(gt=0)]


class Means(Settings):
    """What one adversary must not achieve, or not for less."""

    unbroken: bool = False
    """Nothing that it does may break the model within its means, while some of it breaks the undefended twin."""
    steps: Least | None = None
    """So many optimizer steps the model must hold."""
    examples: Least | None = None
    """So many training rows, repeats counted."""
    dollars: Least | None = None
    """So much training on a rented GPU."""
    ratio: Least | None = None
    """So many times longer than its undefended twin."""


class GatePolicy(Settings):
    """What must be true of a run."""

    tier: Literal[Tier, "any"] = "standard"
    """The least tier whose attacks must all have been run; `any` asks for none."""
    excused: tuple[str, ...] = ()
    """Attacks of that tier that may be missing, by the tier's names for them."""
    organisms: bool = False
    """Evidence from an organism will do."""
    believable: bool = True
    """Nothing may be `not-believable`, but verdicts on attacks that leave the undefended twin unbroken, which claim nothing."""
    subjects: tuple[str, ...] = ()
    """Which models it is about; all but twins and controls unless given."""
    required: tuple[str, ...] = ()
    """Attacks that must have been run to the end, by name or by method."""
    max_age_days: Annotated[int | None, Field(ge=0)] = None
    min_version: str | None = None
    """Of holdfast, which made the run."""
    signed_by: str | None = None
    """The run must be as sealed and signed with this public key: a file, by its path from the policy's folder, or the line in it
    that begins with RW."""
    max_utility_loss: Share | None = None
    """Before any attack, beside the undefended twin."""
    max_over_refusal: Share | None = None
    """Share of benign prompts refused, before any attack."""
    max_harm: dict[str, Share] = Field({})
    """After an attack, by its name, or after each of a family, as `cut`."""
    adversaries: dict[str, Means] = Field({})

    @field_validator("min_version")
    @classmethod
    def _is_a_version(cls, value: str | None) -> str | None:
        try:
            Version(value or "0")
        except InvalidVersion:
            raise ValueError("not a version, as 0.1.0") from None
        return value


def read(path: Path) -> GatePolicy:
    """Read a gate policy. Raises `Problem` naming the file, the key and the remedy, whatever is wrong."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Problem(f"{path}: cannot be read ({error.strerror}); give a TOML file, as examples/gate.toml") from error
    except (ValueError, RecursionError) as error:
        raise Problem(f"{path}: not valid TOML ({error}); mend it") from error
    policy = checked(GatePolicy, content, str(path))
    if policy.signed_by is not None and not signing.is_line(policy.signed_by):
        policy = policy.model_copy(update={"signed_by": str(path.parent / policy.signed_by)})
    for name, means in policy.adversaries.items():
        if name not in NAMES:
            raise Problem(f"{path}, adversaries: nobody is called {name!r}; {meant(name, NAMES)}")
        clock = [key for key in ("steps", "examples", "dollars", "ratio") if getattr(means, key) is not None]
        if clock and ADVERSARIES[NAMES.index(name)].examples is None:
            raise Problem(f"{path}, adversaries.{name}.{clock[0]}: the {name} trains nothing; write unbroken = true")
        if not clock and not means.unbroken:
            raise Problem(
                f"{path}, adversaries.{name}: asks nothing; write unbroken = true, steps or ratio, or drop it"
            )
    return policy
