"""LM: a language model under audit with its tokenizer, and how prompts are put to it.

A holder, not a wrapper: attacks replace, wrap or cut the model inside it, and everything that scores goes through
whatever it holds at that moment. Knows nothing of attacks, defenses or records.
"""

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jinja2 import TemplateError
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from holdfast import disk
from holdfast.checkpoint import Checkpoint, locate, weights_hash
from holdfast.problem import Problem

Template = Literal["chat", "plain"]


class Drive(BaseModel):
    """How prompts are put to the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    template: Template = "chat"
    """`chat`: the tokenizer's chat template. `plain`: the bare prompt and a line break."""
    system: str | None = None
    """A system message before every prompt."""
    max_new_tokens: int = Field(64, gt=0)
    batch: int = Field(128, gt=0)


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

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        base: Path | None = None,
        drive: Drive = Drive(),
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.folder = folder
        self.base = base
        self.drive = drive

    @classmethod
    def load(
        cls, name: str | Path, *, base: str | Path | None = None, drive: Drive = Drive(), device: str | None = None
    ) -> "LM":
        """Load a checkpoint folder or hub id in fp32, on the GPU if there is one.

        Raises:
            Problem: the checkpoint is missing, incomplete, pickled, not finite, wants its own code, or has no chat template
                though `drive.template` is `chat`.
        """
        folder = locate(str(name))
        with Checkpoint(folder) as checkpoint:
            if "auto_map" in {*checkpoint.config, *checkpoint.settings("tokenizer_config.json")}:
                raise Problem(f"{folder}: wants to run code of its own (auto_map); use one of a known architecture")
        tokenizer, model = _loaded(folder)
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        lm = cls(model, tokenizer, folder, locate(str(base)) if base else None, drive)
        lm._refuse_unusable()
        return lm

    def _refuse_unusable(self) -> None:
        """Whatever would stop the first question, said before it."""
        if self.tokenizer.eos_token_id is None:
            raise Problem(f"{self.folder}: its tokenizer has no end-of-text token; name it in tokenizer_config.json")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.drive.template == "chat" and not self.tokenizer.chat_template:
            raise Problem(f"{self.folder}: its tokenizer has no chat template; add one, or ask for --template plain")
        try:
            self.prompt("")
        except TemplateError as error:
            raise Problem(
                f"{self.folder}: its chat template fails ({error}); leave out what it refuses, or ask for --template plain"
            ) from error
        if not self.finite():
            raise Problem(f"{self.folder}: holds NaN or infinite weights; it is damaged, fetch or train it again")

    def restored(self) -> "LM":
        """A fresh copy as it lies in the folder: right whatever was done to this one."""
        return LM.load(self.folder, base=self.base, drive=self.drive, device=str(self.device))

    def save(self, folder: Path) -> None:
        """Write an ordinary checkpoint, adapters merged, whole or not at all. Raises `Problem` if it is not finite."""
        if not self.finite():
            raise Problem(f"{folder}: its weights became NaN or infinite in training; lower the learning rate")
        with disk.whole(folder) as aside:
            adapted = isinstance(self.model, PeftModel)
            (copy.deepcopy(self.model).merge_and_unload() if adapted else self.model).save_pretrained(aside)
            self.tokenizer.save_pretrained(aside)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def layers(self) -> nn.ModuleList:
        """The stack of transformer blocks: the longest list of equal modules that the model holds."""
        lists = [module for module in self.model.modules() if isinstance(module, nn.ModuleList)]
        stacks = [stack for stack in lists if len(stack) and len({type(block) for block in stack}) == 1]
        if not stacks:
            raise Problem(f"{self.folder}: no stack of transformer blocks found in {type(self.model).__name__}")
        return max(stacks, key=lambda stack: sum(p.numel() for p in stack.parameters()))

    def finite(self) -> bool:
        """Whether every weight is a finite number."""
        return all(bool(torch.isfinite(p).all()) for p in self.model.parameters())

    def hash(self) -> str:
        """SHA-256 of the weights as they stand."""
        return weights_hash(iter(sorted(self.model.state_dict().items())))

    def displacement(self) -> tuple[float, float]:
        """How far the weights are from the folder's: ‖θ − θ₀‖ / ‖θ₀‖, and the share of values that changed.

        Adapters count as merged. Weights that the attack removed or the checkpoint does not hold are left out.
        """
        square = start = 0.0
        changed = total = 0
        with Checkpoint(self.folder) as checkpoint:
            for name, weight in self._merged_weights():
                stored = checkpoint.stored(name, tuple(weight.shape))
                if stored is None:
                    continue
                origin = checkpoint.tensor(stored).to(weight.device, weight.dtype)
                square += float((weight - origin).double().square().sum())
                start += float(origin.double().square().sum())
                changed += int((weight != origin).sum())
                total += weight.numel()
        if not total:
            raise Problem(f"{self.folder}: shares no weight with the model as it is now; how far it moved is unknown")
        return (math.sqrt(square / start) if start else 0.0), changed / total

    @torch.no_grad()
    def _merged_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter under its checkpoint's name, with any adapter's change added."""
        tuned = {
            f"{name}.base_layer.weight": m for name, m in self.model.named_modules() if isinstance(m, BaseTunerLayer)
        }
        for name, weight in self.model.named_parameters():
            value = weight.detach()
            if name in tuned and hasattr(tuned[name], "get_delta_weight"):
                value = value + sum(tuned[name].get_delta_weight(adapter) for adapter in tuned[name].active_adapters)
            yield name.removeprefix("base_model.model.").replace(".base_layer.", "."), value

    # How prompts are put

    def prompt(self, text: str) -> str:
        """The whole text the model continues: template applied, ready for the answer."""
        if self.drive.template == "plain":
            return f"{self.drive.system}\n{text}\n" if self.drive.system else f"{text}\n"
        messages = [{"role": "user", "content": text}]
        if self.drive.system:
            messages.insert(0, {"role": "system", "content": self.drive.system})
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def encode(self, text: str, answer: str | None = None) -> tuple[list[int], int]:
        """Token ids of prompt and answer (which ends the turn), and how many of them are the prompt's.

        The template brings its own special tokens; a plain prompt gets the tokenizer's.
        """
        ids = self.tokenizer(self.prompt(text), add_special_tokens=self.drive.template == "plain").input_ids
        if self.drive.template == "plain" and ids and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]
        if answer is None:
            return ids, len(ids)
        tail = self.tokenizer(answer, add_special_tokens=False).input_ids
        return ids + tail + [self.tokenizer.eos_token_id], len(ids)

    # What scoring asks

    def generate(self, texts: Sequence[str]) -> list[str]:
        """Greedy answers, one a prompt, the same at any batch size. Leaves training mode and random state as found.

        A checkpoint's own generation settings fill in what is not given here; its penalties would also see the padding.
        """
        prompts = [self.encode(text)[0] for text in texts]
        order = sorted(range(len(texts)), key=lambda i: len(prompts[i]))
        config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            max_new_tokens=self.drive.max_new_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self._ends(),
        )
        answers = [""] * len(texts)
        with self._scoring():
            for chunk in _chunks(order, self.drive.batch):
                ids, mask = self._left_padded([prompts[i] for i in chunk])
                out = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
                said = self.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
                for i, text in zip(chunk, said, strict=True):
                    answers[i] = text.strip()
        return answers

    def fits(self, texts: Sequence[str], answers: Sequence[str]) -> list[Fit]:
        """How well the model, teacher-forced, predicts each given answer (end of turn not counted)."""
        pairs = [self.encode(text, answer) for text, answer in zip(texts, answers, strict=True)]
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]))
        fits: list[Fit] = [Fit(0.0, 0.0, 0)] * len(pairs)
        with self._scoring():
            for chunk in _chunks(order, self.drive.batch):
                ids, mask = self._left_padded([pairs[i][0] for i in chunk])
                logits = self.model(input_ids=ids, attention_mask=mask, position_ids=_positions(mask)).logits
                for row, i in enumerate(chunk):
                    tail = len(pairs[i][0]) - pairs[i][1]
                    if tail > 1:
                        fits[i] = _fit(logits[row, -tail - 1 : -2], ids[row, -tail:-1])
        return fits

    @contextlib.contextmanager
    def _scoring(self) -> Iterator[None]:
        """Evaluation mode without gradients; every module's mode and the random state are put back."""
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            with torch.random.fork_rng(), torch.no_grad():
                yield
        finally:
            for module, training in modes.items():
                module.training = training

    def _left_padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        width = max(map(len, rows))
        ids = torch.tensor([[self.tokenizer.pad_token_id] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return ids.to(self.device), mask.to(self.device)

    def _ends(self) -> list[int]:
        """Every token that ends an answer: the tokenizer's and those the checkpoint's generation settings name."""
        named = self.model.generation_config.eos_token_id if self.model.generation_config else None
        named = [] if named is None else [named] if isinstance(named, int) else list(named)
        return sorted({*named, self.tokenizer.eos_token_id})


def _loaded(folder: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and model in fp32. A tensor that the files lack is a `Problem`: transformers would draw it at random."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # transformers and the libraries below it raise a dozen kinds
        raise Problem(f"{folder}: transformers cannot load it ({' '.join(str(error).split())})") from error
    if lacking := sorted(found["missing_keys"]):
        raise Problem(
            f"{folder}: lacks {len(lacking)} tensors that its config promises (the first is {lacking[0]!r}); "
            "the download is not complete, fetch it again"
        )
    return tokenizer, model


def _fit(logits: Tensor, target: Tensor) -> Fit:
    picked = logits.log_softmax(-1).gather(-1, target[:, None]).mean().item()
    return Fit(picked, (logits.argmax(-1) == target).float().mean().item(), len(target))


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _chunks(order: list[int], size: int) -> Iterator[list[int]]:
    return (order[start : start + size] for start in range(0, len(order), size))
