"""LoX, low-rank extrapolation: go on in the direction in which alignment moved each weight matrix.

    D = W_aligned − W_base        P = the rank-k part of D (its k largest singular values)
    W_hardened = W_aligned + strength · P

arXiv 2506.15606; with the whole of D instead of P it is ExPO, 2404.16792. Takes no data and no training.
Assumes that the difference is that of the *safety* stage, and that whoever fine-tunes the release means no harm.
Does not protect against somebody who owns the base weights: the inflated directions stand out in the difference and are
divided down again exactly. Harmful fine-tuning it delays at best.
"""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from holdfast import disk, spectrum
from holdfast.checkpoint import Checkpoint
from holdfast.corpus import Hand
from holdfast.drive import Drive
from holdfast.lm import LM
from holdfast.method import Defense, Log, organism_of
from holdfast.pair import refuse_other_tokenizer
from holdfast.problem import Problem
from holdfast.settings import as_published
from holdfast.spectrum import Part
from holdfast.stream import FLOATS, Desk, Matrix, Rewrite, Tensors, copy, copy_others, from_both_ends
from holdfast.tuning import RANKS, Bench, Bounds, Trials, effective_rank, largest_strength

NOTE = "holdfast.json"
"""What was done, beside the hardened weights: settings as resolved, the trials of `auto`, every matrix."""


class LoX(Defense):
    """Adds the leading part of the alignment difference once more, `strength` times."""

    rank: Literal["auto"] | int = "auto"
    """Singular directions a matrix; at or above a matrix's smaller side, all of them. `auto`: the smallest that alone
    restores the aligned model's refusals on the defender's held-out restricted prompts."""
    strength: Literal["auto"] | float = "auto"
    """Times the part is added again. `auto`: the largest that keeps the two bounds below on held-out benign prompts."""
    preset: Literal["paper"] | None = None
    """`paper`: rank 6, strength 1.25."""
    part: Part = "top"
    """What is added. `top` is LoX; the others are its controls, scaled in each matrix to the norm of LoX's edit: `full` the
    whole difference (ExPO), `bottom` what LoX leaves out, `random` the difference in a random subspace of that rank."""
    embeddings: bool = True
    """Edit the token embeddings and the output head too."""
    utility: Literal["auto", "exact", "agreement"] = "auto"
    """How strength `auto` measures utility: answers equal to the reference, or teacher-forced agreement with it; `auto`: exact
    where the prompts are an organism's own, else agreement."""
    utility_loss: float = Field(default=0.03, ge=0, le=1)
    """Largest loss of utility against the aligned model that strength `auto` accepts."""
    over_refusal_rise: float = Field(default=0.03, ge=0, le=1)
    """Largest rise of refusals on benign and borderline prompts that strength `auto` accepts."""
    seed: int = 0
    """Of the random projections. They converge, so it matters for `random` only."""

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, given: Any) -> Any:
        return as_published(cls, given, {"rank": 6, "strength": 1.25})

    @field_validator("rank")
    @classmethod
    def _positive(cls, rank: int | str) -> int | str:
        if rank != "auto" and int(rank) < 1:
            raise ValueError("must be at least 1; to change nothing give strength 0, for full rank part 'full'")
        return rank

    @field_validator("strength")
    @classmethod
    def _adds_alignment(cls, strength: float | str) -> float | str:
        if strength != "auto" and not 0 <= float(strength) < math.inf:
            raise ValueError(
                "must be 0 or more; a negative strength would remove the alignment, which LoX refuses to do"
            )
        return strength

    def __call__(self, lm: LM, hand: Hand | None, log: Log) -> None:
        bench = self._bench(lm)
        chosen, _ = self._resolved(bench, hand, log)
        bench.extrapolate(chosen.rank, chosen.strength)

    def harden(self, base: Path | None, model: Path, out: Path, hand: Hand | None, log: Log, drive: Drive) -> None:
        """Write the hardened `model` to `out`, streaming: memory for two matrices in fp32, not for a model.

        Raises:
            Problem: the two checkpoints do not fit together, are damaged or equal, or `auto` lacks prompts.
        """
        if base is None:
            raise Problem("lox: needs the checkpoint from before the alignment; give it as base")
        with Checkpoint(base) as before, Checkpoint(model) as after, Tensors(before) as old, Tensors(after) as new:
            self._refuse_mismatch(old, new)
            refuse_other_tokenizer(base, model)
            earlier = _earlier(model, log)
            settings, tried = self, []
            if "auto" in (self.rank, self.strength):
                _needed(hand)
                settings, tried = self._resolved(self._bench(LM.load(model, base=base, drive=drive)), hand, log)
            with disk.whole(out) as aside:
                left_out = copy_others(model, aside, after.shards)
                tensors = settings._rewrite(old, new, aside)
                note = {"defense": {"method": "lox", **settings.model_dump()}, "trials": tried, "tensors": tensors}
                note |= {"left_out": left_out} | ({"earlier": earlier} if earlier else {})
                (aside / NOTE).write_text(json.dumps(note, indent=1) + "\n")
        methods = [entry.get("method", "kept") for entry in tensors]
        log.metrics(**{method: methods.count(method) for method in ("randomized", "exact", "kept")})

    # Streaming

    def _refuse_mismatch(self, old: Tensors, new: Tensors) -> None:
        """Every matrix to be edited must be in both checkpoints with one shape."""
        for name in sorted(old.spans.keys() | new.spans.keys()):
            here, there = new.spans.get(name), old.spans.get(name)
            either = here or there
            if self._kept(name, either.code, len(either.shape)):
                continue
            if not (here and there):
                lacking = old.folder if here else new.folder
                raise Problem(f"{lacking}: lacks tensor {name!r} that the other has; give two checkpoints of one kind")
            if here.shape != there.shape:
                raise Problem(
                    f"{new.folder}: tensor {name!r} is {list(here.shape)} but {list(there.shape)} in {old.folder}; give "
                    "two checkpoints of one shape, or leave token tables out (embeddings = false) if only they differ"
                )
            if there.code not in FLOATS:
                raise Problem(f"{old.folder}: tensor {name!r} is quantized ({there.code}); give the base unquantized")

    def _kept(self, name: str, code: str, axes: int) -> str | None:
        """Why the tensor stays as it is; None for a matrix to edit."""
        if axes not in (2, 3):
            return f"has {axes} axes"
        if code not in FLOATS:
            return f"type {code}"
        if not self.embeddings and any(mark in name for mark in ("embed", "lm_head", "wte", "wpe")):
            return "embeddings are excluded"
        return None

    def _rewrite(self, old: Tensors, new: Tensors, out: Path) -> list[dict[str, Any]]:
        """Write all weight files; returns one entry a matrix, or a tensor kept, in the files' order."""
        largest_first = sorted(new.spans, key=lambda name: -new.spans[name].size)
        with Rewrite(new, out) as target:
            found = from_both_ends(largest_first, partial(self._tensor, old, new, target))
        entries = dict(zip(largest_first, found, strict=True))
        if not any("norm" in entry for several in found for entry in several):
            raise Problem(
                f"{new.folder}: equals {old.folder} in every matrix; give the checkpoint from before alignment"
            )
        return [entry for name in new.spans for entry in entries[name]]

    def _tensor(self, old: Tensors, new: Tensors, out: Rewrite, name: str, desk: Desk) -> list[dict[str, Any]]:
        span = new.spans[name]
        if why := self._kept(name, span.code, len(span.shape)):
            copy(new, out, name, desk)
            return [{"name": name, "kept": why}]
        if len(span.shape) == 2:
            return [{"name": name, **self._matrix(Matrix(old, new, name), out, desk)}]
        experts = [Matrix(old, new, name, index) for index in range(span.shape[0])]
        return [{"name": f"{name}[{one.index}]", **self._matrix(one, out, desk)} for one in experts]

    def _matrix(self, matrix: Matrix, out: Rewrite, desk: Desk) -> dict[str, Any]:
        """Edit one matrix from file to file; says what was done."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        difference, norm = matrix.difference(desk, device)
        edit = spectrum.edit(difference, self.rank, self.part, self.seed) if norm and self.strength else None
        add = None if edit is None else lambda piece, rows: edit.add_to(piece, self.strength, rows)
        matrix.write(out, add, desk, device)
        if not norm:
            return {"kept": "equal in both"}
        facts = {"rank": min(self.rank, *matrix.shape), "strength": self.strength, "norm": norm}
        if edit is None:
            return {**facts, "kept": f"no {self.part} part" if self.strength else "strength 0"}
        return {
            **facts,
            "r_align": edit.share,
            "edit": self.strength * edit.share,
            "gap": edit.gap,
            "method": edit.method,
        }

    # Choosing

    def _bench(self, lm: LM) -> Bench:
        most = RANKS[-1] if self.rank == "auto" else self.rank
        return Bench(
            lm, lambda name, weight: not self._kept(name, _code(weight), weight.dim()), self.part, self.seed, most
        )

    def _resolved(self, bench: Bench, hand: Hand | None, log: Log) -> tuple["LoX", Trials]:
        """The same settings with numbers for `auto`, and what they were chosen from; leaves the model as it was."""
        rank, strength, utility, tried = self.rank, self.strength, self.utility, []
        if rank == "auto":
            rank, tried = effective_rank(bench, _needed(hand), log)
        if strength == "auto":
            own = organism_of(_needed(hand).rows) is not None
            utility = ("exact" if own else "agreement") if utility == "auto" else utility
            bounds = Bounds(self.utility_loss, self.over_refusal_rise, utility)
            strength, more = largest_strength(bench, rank, _needed(hand), bounds, log)
            tried = tried + more
        return self.model_copy(update={"rank": rank, "strength": strength, "utility": utility}), tried


def _needed(hand: Hand | None) -> Hand:
    if hand is None:
        raise Problem("lox: rank or strength 'auto' is chosen on prompts; give --corpus, or numbers for both")
    return hand


def _code(weight: Tensor) -> str:
    return next((code for code, dtype in FLOATS.items() if dtype == weight.dtype), str(weight.dtype))


def _earlier(model: Path, log: Log) -> dict[str, Any] | None:
    """The hardening that the input already carries, if any."""
    if not (model / NOTE).is_file():
        return None
    try:
        earlier = json.loads((model / NOTE).read_text())["defense"]
        again = earlier["method"] == "lox"
    except (ValueError, KeyError, TypeError) as error:
        raise Problem(f"{model / NOTE}: not a hardening's record; delete it or mend it") from error
    if again:
        log.metrics(warning=f"{model} carries a LoX edit already; twice the same edit is (1 + strength) squared")
    return earlier
