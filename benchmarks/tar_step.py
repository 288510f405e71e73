"""What an outer step of TAR costs beside its bare forward, backward and optimizer steps, and its memory beside the plan.

A Llama with random weights takes TAR's own outer steps on random rows. After each, the same batches go bare through a copy of
the model: the attack's losses, backward passes and AdamW steps; the resistance losses and their backward passes; the reference's
pass, the retain loss and its backward pass; and one AdamW step. Nothing is clipped, gathered, put aside, put back or said there.
`overhead` is the median over rounds of the ratio of wall-clock seconds within a round; `cpu` is that of processor seconds, which
suffer less on a machine that others use. Memory is the most bytes of live tensors over two more steps, beside `--plan`'s.

Run: python benchmarks/tar_step.py [--rounds N] [--out FILE]
"""

import argparse
import copy
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from holdfast import footprint, hardening, inner, losses, train
from holdfast.corpus import Hand, Row
from holdfast.defenses.tar import TAR
from holdfast.drive import Drive
from holdfast.live import Live
from holdfast.lm import LM
from holdfast.prepare import hardware

WORDS, PROMPT, ANSWER = 1000, 24, 24
SHAPE = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 8}
HOW: dict[str, Any] = {"inner_steps": 8, "stride": 4, "batch": 16, "looked": 8, "warmup": 0, "varied": 0}
HOW |= {"families": (inner.Family(batch=(8,)),), "forgetting_weight": 0.0}


class Timed(hardening.Walk):
    """A walk that hands over to `between` after each step, with what it took and the batches it saw."""

    between: Callable[["Timed", np.ndarray, list[train.Batch]], None]

    def steps(self) -> Iterator[int]:
        collate = train.collate

        def seen(*given: Any) -> train.Batch:
            batches.append(collate(*given))
            return batches[-1]

        train.collate = seen
        for number in super().steps():
            batches: list[train.Batch] = []
            start = now()
            yield number
            self.between(self, now() - start, batches)
        train.collate = collate


class Quiet:
    folder: Path | None = None

    def metrics(self, **values: Any) -> None:
        pass


class Given(TAR):
    """TAR on random rows: what a random model says is nothing to learn from."""

    def lessons(self, lm: LM, hand: Hand | None) -> hardening.Lessons:
        assert hand is not None
        harmful = hand.of("restricted")
        return hardening.Lessons(harmful, harmful, hand.of("benign"))


def now() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def made() -> tuple[LM, Hand]:
    chance = random.Random(0)
    words = {f"w{number}": number for number in range(WORDS)}
    core = Tokenizer(WordLevel(words, "w0"))
    core.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="w1", eos_token="w2", unk_token="w0")
    torch.manual_seed(0)
    settings = LlamaConfig(**SHAPE, vocab_size=WORDS, pad_token_id=1, bos_token_id=2, eos_token_id=2)

    def text(length: int) -> str:
        return " ".join(f"w{chance.randrange(3, WORDS)}" for _ in range(length))

    def rows(kind: Any) -> list[Row]:
        texts = [
            (text(chance.randint(PROMPT // 2, PROMPT)), text(chance.randint(ANSWER // 2, ANSWER - 1)))
            for _ in range(64)
        ]
        return [
            Row(id=f"{kind}{n}", text=asked, answer=said, kind=kind, hand="defender", split="train", source="random")
            for n, (asked, said) in enumerate(texts)
        ]

    lm = LM(AutoModelForCausalLM.from_config(settings).eval(), tokenizer, Path(), drive=Drive(template="plain"))
    return lm, Hand("defender", [*rows("restricted"), *rows("benign")])


class Bare:
    """The same passes and optimizer steps on a copy of the model."""

    def __init__(self, lm: LM, how: TAR):
        self.model, self.reference, self.how = (
            copy.deepcopy(lm.model),
            copy.deepcopy(lm.model).requires_grad_(False),
            how,
        )
        for model in (self.model, self.reference):
            model.config.use_cache = False
        self.outer = torch.optim.AdamW(self.model.parameters(), lr=how.learning_rate, weight_decay=0.0)

    def step(self, batches: list[train.Batch]) -> np.ndarray:
        left, start = iter(batches), now()
        optimizer = train.make_optimizer(self.model.parameters(), "adamw", 1e-4)
        for taken in range(1, self.how.inner_steps + 1):
            train.answer_loss(self.model, next(left)).backward()
            optimizer.step()
            optimizer.zero_grad()
            if taken in self.how.shares(self.how.inner_steps):
                train.answer_loss(self.model, next(left)).backward()
                optimizer.zero_grad()
        batch = next(left)
        with torch.no_grad():
            taught = train.predictions(self.reference, batch)
        losses.divergence(train.predictions(self.model, batch), taught).mean().backward()
        self.outer.step()
        self.outer.zero_grad()
        assert next(left, None) is None
        return now() - start


def timed(rounds: int) -> list[np.ndarray]:
    """Seconds (wall-clock, processor) of each round's outer step, over those of its bare parts."""
    lm, hand = made()
    how = Given(**HOW, steps=rounds + 1)
    bare, pairs = Bare(lm, how), []

    def between(walk: Timed, spent: np.ndarray, batches: list[train.Batch]) -> None:
        pairs.append(np.stack([spent, bare.step(batches)]))

    Timed.between = staticmethod(between)
    hardening.Walk = Timed
    try:
        how(lm, hand, Quiet())
    finally:
        hardening.Walk = Timed.__base__
    return pairs[1:]  # the first makes the optimizers' state


def memory() -> dict[str, float]:
    """The most bytes of live tensors over two outer steps, and what the plan says of them."""
    lm, hand = made()
    how = Given(**HOW, steps=2)
    longest = max(len(lm.encode(row.text, row.answer)[0]) for row in hand.rows)
    planned = footprint.footprint(lm.model.config, how.rehearsal(), footprint.Text(longest, ANSWER))
    with Live() as live:
        for weight in lm.model.parameters():
            live.name(weight, "weights")
        how(lm, hand, Quiet())
    return {"measured": live.peak, "planned": planned.worst.device, "ratio": live.peak / planned.worst.device}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/tar_step.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairs = timed(options.rounds)
    ratios = [pair[0] / pair[1] for pair in pairs]
    wall, cpu = ([float(ratio[kind]) for ratio in ratios] for kind in (0, 1))
    result = {
        "overhead": statistics.median(wall),
        "overhead_spread": [min(wall), max(wall)],
        "cpu": statistics.median(cpu),
        "cpu_spread": [min(cpu), max(cpu)],
        "seconds": {"step": [float(p[0][0]) for p in pairs], "bare": [float(p[1][0]) for p in pairs]},
        "memory": memory(),
        "shape": SHAPE | {"vocab_size": WORDS},
        "hardware": hardware(),
        "versions": {name: version(name) for name in ("torch", "transformers")} | {"python": platform.python_version()},
        "date": date.today().isoformat(),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
