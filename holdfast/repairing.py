"""What repairs of a cut model share: the model that it was cut from, what that one says to prompts, and steps in the cut's form.

A repair is a defense of the cut model with one setting more, its `source`; so recipes, `holdfast harden` and `holdfast repair`
all take it. The labels are the source's own words to the defender's prompts, which cost nobody anything. Knows forms and sources,
no repair in particular.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from pydantic import Field
from torch import Tensor, nn

from holdfast import pair, shards
from holdfast.corpus import Hand, Row, right
from holdfast.formats import Format
from holdfast.hardening import Training, Walk
from holdfast.lm import LM
from holdfast.method import Log
from holdfast.problem import Problem
from holdfast.refusals import refuses
from holdfast.settings import Settings


class Origin(NamedTuple):
    """The model that another was cut from, and the form that the cut left."""

    lm: LM
    form: Format


class Sourced(Settings):
    """What knows the model that was cut."""

    source: str | None = None
    """Folder or hub id of the model that was cut."""

    def origin(self, lm: LM) -> Origin:
        """Load the source of `lm`, and see what was cut.

        Raises:
            Problem: none is given, it is none, or another tokenizer's.
        """
        name = type(self).__module__.rpartition(".")[2]
        if self.source is None:
            raise Problem(f"{name}: repairs what a cut took from a model; give that model as source")
        if shards.size() > 1:
            raise Problem(f"{name}: works in one process; start it without torchrun")
        source = LM.load(self.source, drive=lm.drive, device=str(lm.device))
        form = Format.of(lm.model, source.model, str(lm.folder))
        pair.refuse_other_tokenizer(source.folder, lm.folder)
        return Origin(source, form)


class Repairing(Sourced, Training):
    """How a repair trains: on all weights, as the cut's form allows."""

    batch: int = Field(24, gt=0)
    """Restricted rows a step, and as many others."""
    learning_rate: float = Field(3e-4, gt=0)
    """Of AdamW, at its highest."""
    varied: int = Field(1500, ge=0)
    """Prompts made from the defender's by replacing a word, with what is said to them: few prompts keep little."""

    def origin(self, lm: LM) -> Origin:
        if self.lora_rank:
            raise Problem(
                f"{self.name}: an adapter cannot be merged into weights that must keep a form; drop lora_rank"
            )
        return super().origin(lm)

    @contextmanager
    def mending(
        self,
        lm: LM,
        form: Format,
        log: Log,
        touched: Mapping[str, Tensor] | None = None,
        frozen: Sequence[nn.Parameter] = (),
    ) -> Iterator[Walk]:
        """As `hardening`, in the form of the cut; `touched` as `Format.training` has it."""
        log.metrics(form=str(form))
        with form.training(lm.model, touched), self.hardening(lm, log, frozen=frozen) as walk:
            yield walk


def held_out(hand: Hand) -> list[Row]:
    """The defender's prompts that no training saw; all of them where none are held out."""
    split = "held-out" if hand.of("restricted", split="held-out") else None
    return hand.need("restricted", split=split) + hand.of("benign", "borderline", split=split)


def standing(lm: LM, rows: Sequence[Row]) -> dict[str, float]:
    """Where a model stands on prompts, in shares; what no prompt tells of is left out.

    Restricted ones whose answer it tells (`harm`) and that it refuses (`refusal`), benign ones that it answers right (`utility`),
    benign and borderline ones that it refuses (`over_refusal`).
    """
    said = list(zip(rows, lm.generate([row.asked for row in rows]), strict=True))
    restricted = [(row, text) for row, text in said if row.kind == "restricted"]
    others = [(row, text) for row, text in said if row.kind != "restricted"]
    shares = {
        "harm": [right(text, row.answer) for row, text in restricted if row.answer],
        "refusal": [refuses(text) for _, text in restricted],
        "utility": [right(text, row.answer) for row, text in others if row.kind == "benign" and row.answer],
        "over_refusal": [refuses(text) for _, text in others],
    }
    return {name: sum(some) / len(some) for name, some in shares.items() if some}
