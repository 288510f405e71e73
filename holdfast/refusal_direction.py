"""The direction of refusal: what the residual stream holds after a harmful prompt and not after a harmless one.

Difference of means at every layer and every token of the template behind the prompt, and the choice among them: the one whose
removal undoes refusal, whose addition brings it about, and without which harmless answers begin as before (2406.11717).
Which tokens begin a refusal is asked of the model itself. Knows models and prompts, nothing of what is done with a direction.
"""

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from holdfast.ablation import Ablation, Cut
from holdfast.corpus import Hand, Kind, Row
from holdfast.lm import LM
from holdfast.problem import Problem
from holdfast.refusals import refuses
from holdfast.settings import Settings

_COMMON = 0.1
"""A token begins refusals if this share more of the refused prompts than of the harmless ones is answered with it first."""
_SHARE = 0.8
"""At most this share of the prompts gives the direction, so that another seed gives another one."""


class Contrast(NamedTuple):
    """The residual stream after harmful and after harmless prompts, each of shape (layers + 1, prompts, tokens, width)."""

    harmful: Tensor
    harmless: Tensor
    tests: tuple[list[str], list[str]]
    """Harmful and harmless prompts to try a direction on."""

    def differences(self, projected: bool = False) -> Tensor:
        """Harmful mean minus harmless mean, fp64, shape (layers + 1, tokens, width).

        Args:
            projected: less its component along the harmless mean, which answers to harmless prompts need.
        """
        harmless = self.harmless.mean(1, dtype=torch.float64)
        difference = self.harmful.mean(1, dtype=torch.float64) - harmless
        return _less(difference, harmless) if projected else difference

    def whitened(self, layer: int, token: int, rank: int, projected: bool = False) -> Tensor:
        """The `rank` leading directions in which harmful prompts leave the harmless mean, shape (rank, width).

        Lengths are measured in the spread of the harmless prompts (Σ, shrunk by its mean eigenvalue, since prompts are
        fewer than dimensions): the right singular vectors of D Σ^(-1/2), taken back by Σ^(1/2).
        """
        harmless = self.harmless[layer, :, token].double()
        away = self.harmful[layer, :, token].double() - harmless.mean(0)
        _, spread, axes = torch.linalg.svd(harmless - harmless.mean(0), full_matrices=False)
        variance = spread.square() / len(harmless)
        floor = (variance.sum() / harmless.shape[1]).clamp(min=1e-12)

        def powered(rows: Tensor, power: float) -> Tensor:
            inside = rows @ axes.T
            return (rows - inside @ axes) * floor**power + inside * (variance + floor) ** power @ axes

        leading = torch.linalg.svd(powered(away, -0.5), full_matrices=False).Vh[:rank]
        found = powered(leading, 0.5)
        return nn.functional.normalize(_less(found, harmless.mean(0)) if projected else found, dim=-1)


class Found(NamedTuple):
    """One direction of refusal, chosen among all."""

    layer: int
    """Number of the block before which the stream was read."""
    token: int
    """Which of the template's tokens, from the first behind the prompt."""
    difference: Tensor
    """Harmful minus harmless mean there, fp64, shape (width,); its length is how far apart they lie."""


class Selection(Settings):
    """How a direction of refusal is found; what uses one takes these settings."""

    prompts: int = Field(128, gt=0)
    """Harmful prompts that give the direction, and as many harmless ones; fewer where the hand holds fewer."""
    held_out: int = Field(32, gt=0)
    """Prompts of each kind on which candidates are tried; not among the others where the hand holds enough."""
    projected: bool = True
    """Take out of the direction what lies along the harmless mean: without it an ablation moves harmless prompts too, on the
    text organism so far that it fails (refusal 0.28-0.90 left, benign answers lost)."""
    max_kl: float = Field(0.1, gt=0)
    """Candidates that change the first token of harmless answers more (nats) are dropped."""
    min_induced: float = 0.0
    """Candidates whose addition leaves harmless prompts with smaller log-odds of refusal are dropped."""
    pruned: float = Field(0.2, ge=0, lt=1)
    """Share of the last layers whose directions are not tried."""

    def contrast(self, lm: LM, hand: Hand, seed: int) -> Contrast:
        """The stream at the template's tokens, after prompts that are refused and harmless ones that are not.

        Raises:
            Problem: the hand lacks harmful or harmless prompts.
        """
        refused, answered = (
            _asked(lm, hand, kind, self.prompts + self.held_out, seed) for kind in ("restricted", "benign")
        )
        harmful, harmless = (
            [text for text, said in asked if refuses(said) is wanted] or [text for text, _ in asked]
            for asked, wanted in ((refused, True), (answered, False))
        )
        streams = [
            lm.hidden(texts[: min(self.prompts, max(1, int(_SHARE * len(texts))))], last=lm.tail)
            for texts in (harmful, harmless)
        ]
        return Contrast(*streams, tests=(harmful[-self.held_out :], harmless[-self.held_out :]))

    def choose(self, lm: LM, contrast: Contrast) -> Found:
        """Of the candidates whose ablation makes refusal the less likely beginning the one that leaves least of it, within the
        bounds if any is. Leaves the model as it was.

        Bounds come second, because alone they would choose a direction that does nothing. A model whose refusals begin like
        its other answers shows nothing in a first token: then the direction that separates the prompts best is taken.

        Raises:
            Problem: harmful and harmless prompts look the same at every place.
        """
        trial = _Trial(lm, contrast)
        differences = contrast.differences(self.projected)
        layers = max(1, math.ceil((1 - self.pruned) * (len(differences) - 1)))
        best: tuple[tuple[bool, bool, float], Found] | None = None
        for layer, token in itertools.product(range(layers), range(differences.shape[1])):
            found = Found(layer, token, differences[layer, token])
            if found.difference.norm() <= 1e-6 * contrast.harmless[layer, :, token].norm(dim=-1).mean():
                continue  # a template's own token, before anything was read
            left, induced, kl = trial.of(found)
            rank = (left >= 0, kl > self.max_kl or induced < self.min_induced, left)
            if math.isfinite(left + kl) and (best is None or rank < best[0]):
                best = rank, found
        trial.ablation.undo()
        if best is None:
            raise Problem(
                "refusal direction: harmful and harmless prompts look alike to the model; add prompts of both kinds"
            )
        return best[1]

    def find(self, lm: LM, hand: Hand, seed: int) -> Found:
        """The model's direction of refusal. Raises as `contrast` and `choose`."""
        return self.choose(lm, self.contrast(lm, hand, seed))


class _Trial:
    """Tries directions on prompts that are refused and on prompts that are not."""

    def __init__(self, lm: LM, contrast: Contrast):
        self.lm = lm
        self.contrast = contrast
        self.ablation = Ablation(lm.model)
        self.harmful, self.harmless = contrast.tests
        self.before = first_logits(lm, self.harmless)
        self.openings = openings(first_logits(lm, self.harmful), self.before)

    def of(self, found: Found) -> tuple[float, float, float]:
        """Refusal left under ablation, refusal induced by addition (both mean log-odds), KL on harmless prompts (nats)."""
        self.ablation.set(lambda writer: Cut(found.difference[None], 1.0))
        kl = first_kl(self.before, first_logits(self.lm, self.harmless))
        if not self.openings:
            return -self._separation(found), float("inf"), kl
        left = log_odds(first_logits(self.lm, self.harmful), self.openings)
        self.ablation.undo()
        handle = push(self.lm.layers[found.layer], found.difference)
        induced = log_odds(first_logits(self.lm, self.harmless), self.openings)
        handle.remove()
        return left, induced, kl

    def _separation(self, found: Found) -> float:
        """Distance of the means in units of the prompts' spread along it."""
        unit = nn.functional.normalize(found.difference, dim=0)
        one, other = (
            stream[found.layer, :, found.token].double() @ unit
            for stream in (self.contrast.harmful, self.contrast.harmless)
        )
        spread = (one.var(correction=0) + other.var(correction=0)).sqrt()
        return float((one.mean() - other.mean()).abs() / spread.clamp(min=1e-12))


def _less(vectors: Tensor, along: Tensor) -> Tensor:
    """The vectors without their component along others."""
    unit = nn.functional.normalize(along, dim=-1)
    return vectors - (vectors * unit).sum(-1, keepdim=True) * unit


def random_vectors(lm: LM, rank: int, seed: int) -> Tensor:
    """Orthonormal random directions for every place of the stream, shape (layers + 1, rank, width): the control."""
    generator = torch.Generator().manual_seed(seed)
    width = lm.model.config.get_text_config().hidden_size
    drawn = torch.randn(len(lm.layers) + 1, width, min(rank, width), generator=generator)
    return torch.linalg.qr(drawn).Q.mT


def push(block: nn.Module, vector: Tensor) -> RemovableHandle:
    """Add a vector of shape (width,) to the stream before a block, at every token, until the handle is removed."""

    there = vector.float().to(next(block.parameters()).device)

    def hook(_: nn.Module, inputs: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        stream = inputs[0] if inputs else kwargs["hidden_states"]
        moved = stream + there.to(stream)
        return ((moved, *inputs[1:]), kwargs) if inputs else (inputs, kwargs | {"hidden_states": moved})

    return block.register_forward_pre_hook(hook, with_kwargs=True)


def first_logits(lm: LM, texts: Sequence[str]) -> Tensor:
    """Logits of each answer's first token, shape (prompts, vocabulary), fp32, on the CPU; no other position's are computed."""
    kept: list[Tensor] = []
    hooks = [
        lm.model.register_forward_pre_hook(lambda _, args, kw: (args, kw | {"logits_to_keep": 1}), with_kwargs=True),
        lm.model.register_forward_hook(lambda _, __, out: kept.append(out.logits[:, -1].float().cpu())),
    ]
    try:
        lm.hidden(texts)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(kept)


def openings(refused: Tensor, answered: Tensor) -> list[int]:
    """Tokens that begin a refusal: likeliest first ones to refused prompts, less often so to harmless ones."""
    ours, theirs = (Counter(logits.argmax(-1).tolist()) for logits in (refused, answered))
    return sorted(
        token for token, count in ours.items() if count / len(refused) - theirs[token] / len(answered) >= _COMMON
    )


def log_odds(logits: Tensor, tokens: Sequence[int]) -> float:
    """Mean over prompts of the log-odds that an answer begins with one of the tokens."""
    share = logits.double().softmax(-1)[:, list(tokens)].sum(-1)
    return float(((share + 1e-8).log() - (1 - share + 1e-8).log()).mean())


def first_kl(before: Tensor, after: Tensor) -> float:
    """Mean over prompts of KL(before ‖ after) of the first token (nats)."""
    one, other = (logits.double().log_softmax(-1) for logits in (before, after))
    return float((one.exp() * (one - other)).sum(-1).mean())


def plain_rows(hand: Hand, kind: Kind) -> list[Row]:
    """The hand's plainly asked prompts of a kind. Raises `Problem` where it holds none."""
    rows = [row for row in hand.need(kind) if row.variant is None]
    if not rows:
        raise Problem(f"corpus: the {hand.name} holds no plainly asked {kind} prompt; add some without `variant`")
    return rows


def _asked(lm: LM, hand: Hand, kind: Kind, most: int, seed: int) -> list[tuple[str, str]]:
    """At most so many prompts, shuffled, with the model's answers."""
    texts = [row.text for row in plain_rows(hand, kind)]
    random.Random(seed).shuffle(texts)
    return list(zip(texts[:most], lm.generate(texts[:most]), strict=True))
