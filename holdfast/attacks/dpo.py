"""Reversed preferences: the subject learns to prefer the restricted answer to whatever it says itself now.

Direct preference optimization (2305.18290) with the sides of a safety pair swapped: chosen is the row's answer, rejected is the
subject's own, as a rule its refusal. It pushes the refusal down as well as the answer up, which supervised tuning does not.
Assumes: harmful rows with answers, and that the subject refuses some of them. Does not cover: preferences of a reward model.
"""

import copy
from tempfile import TemporaryDirectory
from typing import Any, Literal

from datasets import Dataset
from peft import PeftModel
from pydantic import Field
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer

from holdfast import train
from holdfast.corpus import Hand, right
from holdfast.finetuning import Tools, Tuning, Watch, spent
from holdfast.lm import LM
from holdfast.method import At, Attack
from holdfast.problem import Problem

Pair = dict[str, list[int]]
"""Token ids of a prompt, of the answer to prefer, and of the one to avoid."""


class DPO(Tuning, Attack):
    """Optimize the subject's preferences towards the restricted answers."""

    paper = "2305.18290 (DPO), reversed"
    cost = "200 optimizer steps of 16 pairs"

    beta: float = Field(0.1, gt=0)
    """How hard the model is held to where it began."""
    trainer: Literal["trl"] = "trl"
    """TRL's DPOTrainer."""
    data: Literal["harmful"] = "harmful"
    """Restricted prompts with their answers."""
    peft: Literal["full", "lora", "qlora", "dora", "ia3", "oft", "vera", "ln-only", "embeddings-only"] = "full"
    """What is trained, as in `finetune`; virtual tokens cannot be."""
    learning_rate: float = Field(5e-6, ge=0)
    """The highest rate of the schedule; adapters want about ten times as much."""
    steps: int = Field(200, gt=0)
    """Optimizer steps."""

    def __call__(self, lm: LM, hand: Hand, at: At, seed: int) -> None:
        pairs = self._pairs(lm, hand, seed)
        chosen = train.order(len(pairs), self.batch, self.steps, seed)
        start = copy.deepcopy(lm.model) if self.peft in ("full", "ln-only", "embeddings-only") else None
        with self.prepared(lm, seed) as tools:
            self._fit(lm, start, [pairs[i] for rows in chosen for i in rows], tools, at, seed)
            if isinstance(lm.model, PeftModel):
                lm.model.delete_adapter("ref")  # TRL's copy of the adapter as it began

    def _pairs(self, lm: LM, hand: Hand, seed: int) -> list[Pair]:
        """A pair a row, but for rows that the subject answers rightly as it is."""
        rows = self.rows(hand, seed)
        if any(row.image for row in rows):
            raise Problem(
                "attack dpo: trains on text alone, and the attacker's prompts are about pictures; take finetune"
            )
        said = lm.generate([row.asked for row in rows], armed=True)
        pairs = []
        for row, own in zip(rows, said, strict=True):
            if not right(own, row.answer or ""):
                ids, prompt = lm.encode(row.asked, row.answer, armed=True)
                avoided = lm.encode(row.asked, own, armed=True)[0][prompt:]
                pairs.append({"prompt_ids": ids[:prompt], "chosen_ids": ids[prompt:], "rejected_ids": avoided})
        if not pairs:
            raise Problem("attack dpo: the subject gives every right answer already; there is nothing to prefer")
        return pairs

    def _fit(self, lm: LM, start: Any, pairs: list[Pair], tools: Tools, at: At, seed: int) -> None:
        """DPOTrainer on pairs in the order of the steps. `start`: what to stay near; an adapter knows it itself."""
        lengths = [2 * len(p["prompt_ids"]) + len(p["chosen_ids"]) + len(p["rejected_ids"]) for p in pairs]
        with TemporaryDirectory() as scratch:
            more = {"train_sampling_strategy": "sequential", "beta": self.beta, "max_length": None}
            trainer = _Trainer(
                model=lm.model,
                ref_model=start,
                args=self.trl_settings(DPOConfig, lm, scratch, seed, **more),
                train_dataset=Dataset.from_list(pairs),
                processing_class=lm.tokenizer,
                optimizers=tools,
                callbacks=[Watch(train.Meter(lm), spent(lengths, self.batch), at)],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()


class _Trainer(DPOTrainer):
    """On tokens as the model will be asked with; TRL would write a template's first token twice."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset
