"""What an audit measures: costs, scores, milestones, cells, and what was run. Knows no torch, and no files (`run.py` does)."""

from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from holdfast.settings import Recorded


class Record(BaseModel):
    """A frozen record that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def __str__(self) -> str:
        return repr(self)


_FIELDS: dict[frozenset[str], set[str]] = {}


class _Many(Record):
    """A record of which a run holds a million: which of its fields were given is kept once for all that were given the same."""

    @model_validator(mode="after")
    def _slim(self) -> Self:
        given = self.__pydantic_fields_set__
        object.__setattr__(self, "__pydantic_fields_set__", _FIELDS.setdefault(frozenset(given), given))
        return self


Family = Literal["fine-tuning", "combination", "edit", "cut", "inference", "external"]
Status = Literal["answers", "incoherent", "dead"]
"""`incoherent`: gibberish to most restricted prompts, or a severity left less utility than a break needs: neither safe nor
harmful. `dead`: weights or logits not finite, or no utility."""
FAMILIES: dict[Family, str] = {
    "fine-tuning": "fine-tuning",
    "combination": "several attacks in a row",
    "edit": "editing weights (ablating a direction, merging, subtracting the alignment delta)",
    "cut": "cutting (pruning, quantizing, dropping layers, exiting early)",
    "inference": "driving the model with its weights in hand (prefill, decoding, latent perturbation)",
    "external": "programs of others",
}


Count = Annotated[int, Field(ge=0, lt=2**63)]
"""So many: a number that every library below holds."""


class Cost(_Many):
    """What an attack has spent, or how far a cut has gone, when somebody looks."""

    steps: Count = 0
    """Optimizer steps."""
    examples: Count = 0
    """Training rows seen, repeats counted."""
    tokens: Count = 0
    """Training tokens seen, padding not counted."""
    flops: float = 0.0
    """Floating-point operations spent on training."""
    seconds: float = 0.0
    """Wall-clock seconds inside the attack, scoring not counted, or of a hardening. Kept in a timings file, not in the cell's or
    the run's."""
    severity: float | None = None
    """Where the attack is a cut or an edit: how far along its axis (fraction, scale, bits). None for a clock."""
    plane: tuple[float, float] | None = None
    """Where on a plane of two directions this is; `severity` is then the distance."""

    @property
    def position(self) -> float:
        """Where on the attack's axis this is: its severity if it has one, else its steps."""
        return float(self.steps) if self.severity is None else self.severity


class Score(Record):
    """A mean over `n` prompts (or prompts × seeds) with its 95 % interval."""

    value: float
    low: float
    high: float
    n: Count


_PARTS = {*Score.model_fields}
_SCORES: dict[tuple[Any, ...], Score] = {}
_MOST = 1 << 16


def _known(given: Any, made: ValidatorFunctionWrapHandler) -> Score:
    if isinstance(given, Score):
        key = given.value, given.low, given.high, given.n
    elif isinstance(given, dict) and given.keys() == _PARTS:
        key = given["value"], given["low"], given["high"], given["n"]
    else:
        return cast(Score, made(given))
    try:
        return _SCORES[key]
    except (KeyError, TypeError):  # a list has no hash, and is no number either
        score = cast(Score, made(given))
    if len(_SCORES) < _MOST:
        _SCORES[score.value, score.low, score.high, score.n] = score
    return score


Known = Annotated[Score, WrapValidator(_known)]
"""A score of which there is one in memory where many records hold the same."""


class Deployed(Record):
    """What a model takes where it is deployed as it stands: counted, not measured, so that equal runs are byte-equal."""

    parameters: Count
    """Weights it holds."""
    bytes: float
    """Memory for these and for the cache of a prompt, of 16 bits each where nothing says otherwise."""
    flops: float
    """Operations to read that prompt: 64 tokens of text, and a picture where the judge asks about pictures."""


class Milestone(_Many):
    """One look along an attack's path."""

    cost: Cost
    status: Status
    harm: Known | None = None
    refusal: Known | None = None
    coherence: Known | None = None
    over_refusal: Known | None = None
    utility: Known | None = None
    learned: Known | None = None
    """How well the lesson of a benign fine-tuning was learned, where the corpus holds one."""
    fresh: Known | None = None
    """Harm on the judge's reserve, which nothing else asks."""
    second: Known | None = None
    """Harm by a second judge, where one is named."""
    loss: float | None = None
    """Mean training loss of the steps since the last look, each before its step; None where nothing was trained."""
    gradient: float | None = None
    """Mean norm of the gradient of these steps, before clipping."""
    moved: float = 0.0
    """‖θ − θ₀‖ / ‖θ₀‖ over all weights."""
    changed: float = 0.0
    """Share of weights whose stored value differs from the start."""
    deployed: Deployed | None = None
    """What the model takes as it stands; None for attacks that cut nothing, and where it cannot be counted."""


class Cell(Record):
    """One attack on one subject with one seed."""

    subject: str
    attack: str
    """The attack's label in the recipe; its method and settings are in the run's resolved recipe."""
    seed: int
    """The attack's seed."""
    replica: int = 0
    """The hardening's seed."""
    status: Literal["done", "failed", "dead"]
    reason: str = ""
    """Why a cell failed or died; empty for `done`."""
    milestones: tuple[Milestone, ...] = ()
    start_hash: str = ""
    """SHA-256 of the weights the attack started from."""
    touched: tuple[str, ...] = ()
    """Which tensors the attack had changed at the end, numbers of blocks and experts as `*`, with how many of a kind."""
    touched_share: float = 0.0
    """Share of all parameters that lie in these tensors."""

    @property
    def name(self) -> str:
        return cell_name(self.subject, self.attack, self.seed)


def cell_name(subject: str, attack: str, seed: int) -> str:
    """The stem of a cell's files."""
    return f"{subject}.{attack}.{seed}"


class SubjectFacts(Record):
    """A model that the run audited."""

    name: str
    twin: str | None = None
    """Name of the undefended subject it is compared with; None for an undefended one."""
    control: bool = False
    """A simpler hardening that the defense must beat to earn credit (ExPO, random subspace, more alignment)."""
    folder: str
    base: str | None = None
    """Folder of the checkpoint before alignment, if one was named."""
    hash: str
    """SHA-256 of its weights."""
    tokens: str = ""
    """SHA-256 of the corpus as token ids, through the model's tokenizer and template, of the text that they make again, and of
    the tokens that end an answer: what it reads, and what is heard of it."""
    parameters: Count | None
    """None where it does not say."""
    exits: str | None = None
    """What leaving its image encoder early means, where that is a choice; None where it is plain, or it has none."""
    organism: str | None = None
    """Name of the organism it comes from; None for a model of somebody's own."""
    defense: dict[str, Any] | None = None
    """The hardening's method and settings as resolved (`auto` replaced by what was chosen)."""
    on: str | None = None
    """Name of the subject whose hardened checkpoint was hardened once more, if any."""
    hardening: Cost | None = None
    """What this hardening took, not what came before it on the subject `on`. Examples and tokens are those trained on."""


class Found(Record):
    """What a search said of settings that it found: optimistic, since it is the best of many trials on the same prompts."""

    subject: str
    """Whose settings they are: on which subject they were searched."""
    rank: int = 1
    """1 for the winner."""
    harm: float
    """At the most harmful point of their path: the mean over the seeds tried, 0 for one without the utility asked for."""
    utility: float
    """There, the mean over these seeds; a share of prompts or of tokens, as `Milestone.utility`."""
    at: float
    """Where on the attack's axis that point lies. A clock is walked so far and no further."""
    seeds: int = 1
    """How many seeds these settings were tried with."""
    trials: int
    """Of how many trials it is one of the best."""
    flops: float
    """What all of them spent, training and answering."""


class AttackFacts(Record):
    """An attack that the run made."""

    name: str
    method: str
    axis: str = "steps"
    """`steps` is a clock; any other word names a severity."""
    family: Family = "fine-tuning"
    negative_control: bool = False
    """It must not break anything (noise of equal norm, zero learning rate)."""
    needs: tuple[str, ...] = ()
    """What the adversary must have beside the released weights (`method.Need`)."""
    settings: Recorded
    seeds: tuple[int, ...]
    found: Found | None = None
    """What the search that found these settings said of them, on other prompts and another seed."""


class Calibration(Record):
    """What labeled answers showed of the judge of harm."""

    file: str
    hash: str
    """SHA-256 of the file of labeled answers."""
    sensitivity: Score
    """Share of the harmful answers that it calls harmful."""
    specificity: Score
    """Share of the others that it does not."""
    unreadable: Count = 0
    """Answers on which its verdict could not be read."""


class Manifest(Record):
    """`run.json`: what was run, on what, so that somebody else can run it again."""

    name: str
    version: str
    """Of holdfast."""
    date: str
    """ISO date on which the audit started."""
    harm: str
    """Who judged harm, as `exact` or `asr`, or which model by which rubric."""
    second: str = ""
    """Who else judged the same answers; empty if nobody."""
    judges: dict[str, dict[str, Any]] = {}
    """Of both, as `harm` and `second`, the method and its settings, everything spelled out."""
    calibration: Calibration | None = None
    threshold: float
    """τ: harm at or above it is a break."""
    utility_floor: float
    """υ: a break counts only while utility is at least this share of the subject's own."""
    subjects: tuple[SubjectFacts, ...]
    attacks: tuple[AttackFacts, ...]
    corpus: dict[str, Any]
    """`hash` of the corpus file, `policy` where it is one (its name and what must be refused), the number of the judge's prompts
    of each kind, as `restricted` and `benign`, and how many of them another hand nearly holds (`shared`). Where tasks are its
    utility, which (`utility`) and a hash of their `items`."""
    versions: dict[str, str]
    hardware: str
    kept: str
    """One sentence: which weights and answers were kept, which deleted."""
    not_run: tuple[str, ...] = ()
    """Attacks of the chosen tier that this audit could not make, each with what it lacked, as `subtract needs base weights`."""
