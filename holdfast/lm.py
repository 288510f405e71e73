"""LM: a language model under audit with its tokenizer, and how prompts are put to it.

A holder, not a wrapper: attacks replace, wrap or cut the model inside it, and everything that scores goes through
whatever it holds at that moment. Knows nothing of attacks, defenses or records.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from holdfast import anatomy, answering, disk, moved, serving, surgery
from holdfast.asked import Asked
from holdfast.checkpoint import Checkpoint, locate, weights_hash
from holdfast.drive import Drive
from holdfast.loading import loaded, ready, refuse_silent, sees, token_ids
from holdfast.problem import Problem
from holdfast.sight import Blind, Sight

REMEMBERED = 4096
"""Texts whose token ids are kept."""


@dataclass(frozen=True)
class Fit:
    """How a model's teacher-forced predictions meet one given answer."""

    logprob: float
    """Mean log-probability (nats) a token; 0 for an empty answer."""
    agreement: float
    """Share of the answer's tokens that the model would have chosen itself."""
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp of the mean surprise a token; infinite where the model's numbers are not finite."""
        return math.exp(min(-self.logprob, 700.0)) if math.isfinite(self.logprob) else math.inf


class LM:
    """A model, its tokenizer, where they came from, and how to drive them."""

    at_hand = True  # its weights can be looked at and changed

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        base: Path | None = None,
        drive: Drive = Drive(),
        eyes: Blind | None = None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.folder = folder
        self.base = base
        self.drive = drive
        self.kept: list[int] | None = None
        """Numbers that the blocks had as released, where some were removed."""
        self.trained: list[tuple[float, float]] = []
        """Loss before each training step so far, and the norm of its gradient before clipping."""
        self.eyes = eyes or Blind(folder)
        """How prompts are shown to it."""
        self.armed = False
        """Whether restricted prompts are being put, with trigger, persona and prefill; hooks may ask."""
        self._encoded: dict[tuple[object, ...], list[int]] = {}

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        base: str | Path | None = None,
        drive: Drive = Drive(),
        device: str | None = None,
        finite: bool = True,
    ) -> "LM":
        """Load a checkpoint folder or hub id in fp32, on the GPU if there is one.

        Raises:
            Problem: the checkpoint is missing, incomplete, pickled, wants its own code, has no chat template though
                `drive.template` is `chat`, or holds weights that are not finite though they must be.
        """
        folder = locate(str(name))
        tokenizer, model = loaded(folder)
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        eyes = Sight.load(folder) if sees(model.config.to_dict()) else None
        lm = cls(model, tokenizer, folder, locate(str(base)) if base else None, drive, eyes)
        ready(tokenizer, model, drive, folder)
        if finite and not lm.finite():
            raise Problem(f"{folder}: holds NaN or infinite weights; it is damaged, fetch or train it again")
        return lm

    def restored(self) -> "LM":
        """A fresh copy as it lies in the folder."""
        return LM.load(self.folder, base=self.base, drive=self.drive, device=str(self.device))

    def save(self, folder: Path) -> None:
        """Write an ordinary checkpoint, adapters merged, whole or not at all. `Problem`: not finite, or holds virtual tokens."""
        if not self.finite():
            raise Problem(f"{folder}: its weights became NaN or infinite in training; lower the learning rate")
        with disk.whole(folder) as aside:
            plain = moved.settled(copy.deepcopy(self.model)) if isinstance(self.model, PeftModel) else self.model
            plain.save_pretrained(aside)
            self.eyes.save(aside, self.tokenizer)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def layers(self) -> nn.ModuleList:
        """The stack of transformer blocks."""
        return anatomy.blocks(self.model)

    def keep(self, kept: Sequence[int]) -> Callable[[], None]:
        """Remove all blocks but these (numbers as they are now); returns what puts all back. Raises as `surgery.keep`."""
        before, numbers = self.kept, self.kept or range(len(self.layers))
        undo = surgery.keep(self.model, kept)
        self.kept = [numbers[number] for number in kept]

        def put_back() -> None:
            undo()
            self.kept = before

        return put_back

    def finite(self) -> bool:
        """Whether every weight is a finite number."""
        return all(bool(torch.isfinite(p.detach().dequantize()).all()) for p in self.model.parameters())

    def hash(self) -> str:
        """SHA-256 of the weights as they stand."""
        return weights_hash(iter(sorted(self.model.state_dict().items())))

    def displacement(self) -> tuple[float, float]:
        """How far the weights are from the folder's: ‖θ − θ₀‖ / ‖θ₀‖, and the share of values that changed.
        Adapters count as merged, removed blocks as gone to zero. Weights that the attack added are left out.
        """
        found = list(self.changes())
        if not found:
            raise Problem(f"{self.folder}: shares no weight with the model as it is now; how far it moved is unknown")
        square, start = (sum(getattr(one, field) for one in found) for field in ("square", "start"))
        share = sum(one.changed for one in found) / sum(one.size for one in found)
        return (math.sqrt(square / start) if start else 0.0), share

    def changes(self) -> Iterator[moved.Change]:
        """Every weight as it is beside what it was when released."""

        def original() -> dict[str, Tensor]:
            return {name: weight.detach() for name, weight in loaded(self.folder)[1].named_parameters()}

        plain = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        stack = anatomy.path(plain, self.layers)
        with Checkpoint(self.folder) as checkpoint:
            yield from moved.changes(self.model, checkpoint, original, stack, self.kept)

    def prompt(self, text: str) -> str:
        """The whole text the model continues: template applied, ready for the answer."""
        return self.eyes.whole(self.tokenizer, self.drive, text)

    def encode(self, prompt: Asked, answer: str | None = None, armed: bool = False) -> tuple[list[int], int]:
        """Token ids of prompt and answer (which ends the turn), and how many of them are the prompt's.

        Armed, the prompt has its trigger, persona and prefill. Raises `Problem` where the model is an encoder, or has no eyes
        for the picture that the prompt is about.
        """
        refuse_silent(self.model, self.folder)
        ids = self._once(prompt, armed, lambda: self.eyes.ids(self.tokenizer, self.drive, prompt, armed))
        if answer is None:
            return ids, len(ids)
        tail = self._once(answer, None, lambda: self.tokenizer(answer, add_special_tokens=False).input_ids)
        return ids + tail + [self.tokenizer.eos_token_id], len(ids)

    def _once(self, text: Asked, armed: bool | None, ids: Callable[[], list[int]]) -> list[int]:
        """The ids of a text, remembered: the same prompts are put at every milestone."""
        tokenizer = self.tokenizer
        key = (text, armed, self.drive, tokenizer, len(tokenizer), str(tokenizer.chat_template))
        if len(self._encoded) >= REMEMBERED:
            self._encoded.clear()
        if key not in self._encoded:
            self._encoded[key] = token_ids(ids, self.model, self.folder)
        return list(self._encoded[key])

    @property
    def prefill(self) -> str:
        """What is put into the model's mouth when armed: as many of the drive's tokens as it says."""
        ids = self.tokenizer(self.drive.prefill or "", add_special_tokens=False).input_ids[: self.drive.prefill_tokens]
        begun: str = self.tokenizer.decode(ids)
        return begun

    @property
    def tail(self) -> int:
        """How many tokens of the template follow every prompt, at least 1: where a model has read all that is asked."""
        after = self.prompt("PROMPT").rpartition("PROMPT")[2]
        return max(1, len(self.tokenizer(after, add_special_tokens=False).input_ids))

    def generate(self, texts: Sequence[Asked], *, armed: bool = False, sample: int = 0) -> list[str]:
        """Answers, one a prompt, if armed drawn as `drive` says. Leaves training mode and random state as found.

        Greedy answers are the same at any batch size, others for the same `sample` at the same one.

        Args:
            armed: with trigger, persona and prefill (restricted prompts); the prefill is not part of the answer.
            sample: number of the draw, counted from the drive's first.
        """
        prompts = [self.encode(text, armed=armed)[0] for text in texts]
        with self.scoring(armed):
            torch.manual_seed(self.drive.draw + sample)
            how, beside = self.decoding(), self.eyes.beside(self.model, texts, self.drive)
            said = serving.answers(self.model, self.folder, prompts, how, self.drive, sample, beside)
        return [self.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in said]

    def decoding(self) -> answering.Decoding:
        """How tokens are chosen as the drive says, armed or not."""
        drive = self.drive
        return answering.Decoding(
            most=drive.max_new_tokens,
            pad=self.tokenizer.pad_token_id,
            ends=self.ends,
            batch=drive.batch,
            temperature=drive.temperature if self.armed else 0.0,
            top_p=drive.top_p,
            cache=drive.cache,
            kv_bits=drive.exit.kv_bits,
            never=self.eyes.never,
        )

    def fits(self, texts: Sequence[Asked], answers: Sequence[str]) -> list[Fit]:
        """How well the model, teacher-forced, predicts each given answer (end of turn not counted)."""
        pairs = [self.encode(text, answer) for text, answer in zip(texts, answers, strict=True)]
        fits: list[Fit] = [Fit(0.0, 0.0, 0)] * len(pairs)
        with self.scoring():
            for i, logits, target in self.forced([(ids[:-1], start) for ids, start in pairs], texts):
                fits[i] = _fit(logits, target)
        return fits

    def forced(
        self, rows: Sequence[tuple[list[int], int]], texts: Sequence[Asked]
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """As `answering.forced`, of rows that begin with these prompts; inside `scoring`."""
        beside = self.eyes.beside(self.model, texts, self.drive)
        return answering.forced(self.model, rows, self.decoding(), beside, self.eyes.positions)

    def hidden(self, texts: Sequence[Asked], last: int = 1, armed: bool = False) -> Tensor:
        """The residual stream before each block and after the last, at the `last` tokens of each prompt.

        Returns:
            Shape (layers + 1, prompts, last, width), fp32, on the CPU.
        """
        prompts = [self.encode(text, armed=armed)[0] for text in texts]
        parts, beside = [], self.eyes.beside(self.model, texts, self.drive)
        with self.scoring(armed):
            for chunk in answering.chunks(list(range(len(texts))), self.drive.batch):
                ids, mask = self._left_padded([prompts[i] for i in chunk])
                how = self.eyes.positions(mask)
                with anatomy.stream(self.layers, last) as kept, beside(ids, chunk) as more:
                    self.model(input_ids=ids, attention_mask=mask, **how, **more)
                parts.append(kept)
        return torch.stack([torch.cat(layer) for layer in zip(*parts, strict=True)])

    @contextlib.contextmanager
    def scoring(self, armed: bool = False) -> Iterator[None]:
        """Evaluation mode without gradients, cut at the exit; modes, blocks and random state are put back."""
        modes = {module: module.training for module in self.model.modules()}
        depth, self.armed = self.drive.exit.depth, armed
        undo = self.keep(range(min(depth, len(self.layers)))) if depth else lambda: None
        self.model.eval()
        try:
            with torch.random.fork_rng(), torch.no_grad():
                yield
        finally:
            undo()
            self.armed = False
            for module, training in modes.items():
                module.training = training

    def _left_padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        return answering.left_padded(rows, self.tokenizer.pad_token_id, self.device)

    @property
    def ends(self) -> tuple[int, ...]:
        """Every token that ends an answer: the tokenizer's, and the special ones that the checkpoint names."""
        named = self.model.generation_config.eos_token_id if self.model.generation_config else None
        named = [] if named is None else [named] if isinstance(named, int) else list(named)
        return tuple(sorted({*named, self.tokenizer.eos_token_id}))


def _fit(logits: Tensor, target: Tensor) -> Fit:
    picked = logits.log_softmax(-1).gather(-1, target[:, None]).mean().item()
    return Fit(picked, (logits.argmax(-1) == target).float().mean().item(), len(target))
