"""Reinforcement at exits by comparing answers in a group: GRPO (2402.03300) or RLOO (2402.14740), as TRL has them.

Each step's prompts are answered, and learned from, at one exit drawn by chance; the reward is that of `lppo`. There is no value
head: an answer is as good as it is better than its group's. The blocks behind the exit are really taken away meanwhile, so that
TRL's own passes leave there too.
Assumes: a model that says what is wanted now and then when it is sampled; where a whole group earns the same nothing is learned.
Does not protect against fine-tuning.
"""

import random
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any, Literal

import datasets
from datasets import Dataset
from pydantic import Field, model_validator
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from holdfast import train
from holdfast.corpus import Hand, Row
from holdfast.finetuning import plain
from holdfast.hardening import CLIP, Walk
from holdfast.ladder import Ladder
from holdfast.leavers import Reinforced
from holdfast.lm import LM
from holdfast.method import Defense, Log
from holdfast.problem import Problem

_KINDS: dict[str, tuple[Any, Any]] = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}


class ExitRL(Reinforced, Defense):
    """Reinforce the better answers of a group, exit by exit."""

    estimator: Literal["grpo", "rloo"] = "grpo"
    """What an answer is compared with: the group's mean in units of its spread, or the mean of the others."""
    steps: int = Field(80, gt=0)
    """Optimizer steps."""
    batch: int = Field(4, gt=0)
    """Restricted prompts a step, and as many others."""
    group: int = Field(8, gt=1)
    """Answers to each prompt."""
    learning_rate: float = Field(1e-4, gt=0)
    """Of AdamW, at its highest."""
    kl: float = Field(0.0, ge=0)
    """Weight of the divergence from the model as it was; TRL keeps that model only where an adapter is trained."""

    @model_validator(mode="after")
    def _divergence_of_an_adapter(self) -> "ExitRL":
        if self.kl and not self.lora_rank:
            raise ValueError("kl: TRL keeps no reference where all weights are trained; give lora_rank, or kl 0")
        return self

    def __call__(self, lm: LM, hand: Hand | None, log: Log) -> None:
        ladder = self.ladder(lm)
        if lm.drive.template != "chat" or lm.drive.system:
            raise Problem("exit_rl: TRL puts prompts by the chat template alone; leave out --template, or take lppo")
        refused, answered = self.prompts(lm, hand)
        worth = self.rewarded(lm, refused, answered, ladder, log)
        orders = [train.order(len(some), self.batch, self.steps, self.seed) for some in (refused, answered)]
        steps = zip(*orders, strict=True)
        rows = [
            some[i] for chosen in steps for some, order in zip((refused, answered), chosen, strict=True) for i in order
        ]

        def reward(prompts: Any, completion_ids: list[list[int]], number: list[int], **_: Any) -> list[float]:
            asked = [rows[i] for i in number]
            texts = [lm.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in completion_ids]
            return worth(asked, texts).tolist()

        with self.hardening(lm, log, frozen=ladder.apart(lm)) as walk:
            self._fit(lm, rows, reward, ladder, walk)

    def _fit(self, lm: LM, rows: list[Row], reward: Callable[..., list[float]], ladder: Ladder, walk: Walk) -> None:
        """TRL's trainer on the rows in order; it draws the answers itself."""
        settings, trainer = _KINDS[self.estimator]
        with TemporaryDirectory() as scratch:
            made = _at_exits(trainer, lm, ladder, self.released, self.seed)(
                model=lm.model,
                reward_funcs=reward,
                args=_alone(
                    settings(
                        output_dir=scratch,
                        per_device_train_batch_size=2 * self.batch * self.group,
                        num_generations=self.group,
                        max_steps=self.steps,
                        max_grad_norm=CLIP,
                        max_completion_length=self.tokens,
                        temperature=self.temperature,
                        beta=self.kl,
                        bf16=False,
                        gradient_checkpointing=False,
                        shuffle_dataset=False,
                        save_strategy="no",
                        logging_steps=max(1, self.steps // 10),
                        report_to="none",
                        disable_tqdm=True,
                        dataloader_pin_memory=False,
                        use_cpu=lm.device.type == "cpu",
                        seed=self.seed,
                    )
                ),
                train_dataset=_dataset(rows),
                processing_class=lm.eyes.processor if ladder.sees else lm.tokenizer,
                optimizers=(walk.optimizer, walk.schedule),
                callbacks=[_Told(walk.log)],
            )
            made.remove_callback(PrinterCallback)
            try:
                made.train()
            finally:
                made.put_back()
                vars(plain(lm.model)).pop("forward", None)  # TRL's own, bound to this model
                lm.model.eval()


def _alone(settings: Any) -> Any:
    """On one device: on all of them a step would take that many batches."""
    settings._n_gpu = min(1, settings.n_gpu)  # has no public name
    return settings


def _dataset(rows: list[Row]) -> Dataset:
    """As TRL reads prompts: as messages, with their pictures. Raises `Problem` where some have one and some have none."""
    prompts = [[{"role": "user", "content": row.text}] for row in rows]
    columns: dict[str, Any] = {"prompt": prompts, "number": list(range(len(rows)))}
    images = [row.image for row in rows if row.image]
    if not images:
        return Dataset.from_dict(columns)
    if len(images) < len(rows):
        raise Problem(
            "exit_rl: TRL takes prompts with pictures or without, not both; leave the others out, or take lppo"
        )
    return Dataset.from_dict(columns | {"image": images}).cast_column("image", datasets.Image())


def _at_exits(trainer: Any, lm: LM, ladder: Ladder, released: float, seed: int) -> Any:
    """The trainer, leaving at an exit drawn anew before each rollout."""
    chance = random.Random(seed)

    class AtExits(trainer):
        def put_back(self) -> None:
            """All blocks as they were."""
            vars(self).pop("_undo", lambda: None)()

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            self.put_back()
            self._undo = ladder.cut(lm, ladder.draw(chance, 1, released)[0])
            return super()._generate_and_score_completions(inputs)

    return AtExits


class _Told(TrainerCallback):
    """What TRL measured, as defenses tell it."""

    def __init__(self, log: Log):
        self.log = log

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "reward" in logs:
            self.log.metrics(step=state.global_step, reward=logs["reward"], tokens=logs["completions/mean_length"])
