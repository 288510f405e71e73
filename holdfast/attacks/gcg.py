"""GCG: one suffix of tokens, the same after every restricted prompt, found by greedy coordinate gradient (2307.15043).

nanogcg searches on one of the attacker's rows after another, each time from the best suffix so far; the suffix kept is the one
with the lowest mean loss over all his rows, asked as the judge will ask. It works without weights in hand once it is found.
Assumes: answers to aim at, or that an affirmative opening is enough. Does not cover: a suffix for each prompt.
"""

import contextlib
import copy
import gc
import io
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pydantic import Field

from holdfast import exits, perturb, train
from holdfast.corpus import Hand, Row
from holdfast.drive import Drive
from holdfast.lm import LM
from holdfast.method import At, Attack, Need
from holdfast.problem import Problem
from holdfast.record import Cost

_PLACE = "{optim_str}"
_VERBATIM = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""A chat template that adds nothing: the drive has written the text already."""


class GCG(perturb.Aim, Attack):
    """Search a suffix of tokens."""

    family = "inference"
    paper = "2307.15043 (Zou et al.), by nanogcg"
    cost = "250 steps of 512 candidates"

    tokens: int = Field(20, gt=0)
    """Length of the suffix."""
    steps: int = Field(250, gt=0)
    """Search steps over all rows together."""
    turn: int = Field(5, gt=0)
    """Steps on one row before the next has its turn."""
    width: int = Field(512, gt=0)
    """Candidates a step."""
    top: int = Field(256, gt=0)
    """Likeliest replacements of a token, by its gradient, from which candidates are drawn."""
    retokenized: bool = True
    """Drop candidates that the tokenizer would read otherwise once they are text."""

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("harmful data",)

    def __call__(self, lm: LM, hand: Hand, at: At, seed: int) -> None:
        exits.refuse_early(lm.drive.exit)
        rows, start = self.rows(hand), lm.drive
        targets = [lm.tokenizer.decode(one.ids[one.start :], True) for one in self.examples(lm, rows)]
        lm.drive, _ = perturb.place(lm, self.tokens, [row.text for row in rows])
        best, suffix = self._loss(lm, rows), lm.drive.trigger.removeprefix(start.trigger or "{prompt}")
        search, meter = self._searcher(lm), _Meter(lm, self.width)
        turns = train.order(len(rows), 1, -(-self.steps // self.turn), seed)
        for number, (chosen,) in enumerate(turns):
            text = _asked(lm, start, rows[chosen].text)
            search.config.num_steps = min(self.turn, self.steps - number * self.turn)
            search.config.optim_str_init = suffix
            with _alone(lm, seed * len(turns) + number):
                found = _found(search, text, targets[chosen])
            for other in found:
                kept, lm.drive = lm.drive, _ending(start, other)
                if (value := self._loss(lm, rows)) < best:
                    best, suffix = value, other
                else:
                    lm.drive = kept
            if not at(meter.turn(search.config.num_steps, len(lm.encode(rows[chosen].text, armed=True)[0]))):
                return
            meter.since = time.perf_counter()

    def _loss(self, lm: LM, rows: Sequence[Row]) -> float:
        """Of all rows, asked as the drive now says."""
        return perturb.loss(lm, self.examples(lm, rows))

    def _searcher(self, lm: LM) -> Any:
        """nanogcg's search. Raises `Problem` where it is not installed."""
        try:
            from nanogcg import gcg
        except ImportError as error:
            raise Problem("attack gcg: needs the package nanogcg; run: pip install 'holdfast[gcg]'") from error
        tokenizer = copy.deepcopy(lm.tokenizer)
        tokenizer.chat_template = _VERBATIM
        config = gcg.GCGConfig(
            search_width=self.width,
            batch_size=min(self.width, lm.drive.batch),
            use_prefix_cache=False,  # it reads and reuses caches as transformers 5 no longer does
            filter_ids=self.retokenized,
            verbosity="ERROR",
        )
        gcg.logger.setLevel(config.verbosity)
        search = gcg.GCG(perturb.core(lm.model), tokenizer, config)
        size = search.embedding_layer.weight.shape[0]
        banned = {*search.not_allowed_ids.tolist(), *lm.tokenizer.all_special_ids, *range(len(lm.tokenizer), size)}
        search.not_allowed_ids = torch.tensor([token for token in sorted(banned) if token < size], device=lm.device)
        config.topk = max(1, min(self.top, size - len(search.not_allowed_ids)))
        return search


def _ending(start: Drive, suffix: str) -> Drive:
    """The drive whose armed prompts end with the suffix."""
    return start.change(trigger=(start.trigger or "{prompt}") + suffix)


def _asked(lm: LM, start: Drive, prompt: str) -> str:
    """The whole text that the model continues, with nanogcg's mark where the suffix goes."""
    text = _ending(start, _PLACE).text(lm.tokenizer, prompt, armed=True)
    given = lm.tokenizer(start.prefill or "", add_special_tokens=False).input_ids[: start.prefill_tokens]
    return text + lm.tokenizer.decode(given)


def _found(search: Any, text: str, target: str) -> list[str]:
    """The best suffix after each step, once each, with the space before it that separates it from the prompt."""
    try:
        strings = search.run(text, target).strings
    except RuntimeError as error:
        if "re-encoding" not in str(error):
            raise
        raise Problem(
            "attack gcg: this tokenizer reads no candidate back as it was; set `retokenized = false`"
        ) from error
    return list(dict.fromkeys(f" {string.lstrip(' ')}" for string in strings))


@contextlib.contextmanager
def _alone(lm: LM, seed: int) -> Iterator[None]:
    """Chance of its own, nothing on the screen, no gradient of a weight."""
    said = io.StringIO()
    gc.freeze()  # nanogcg collects garbage at every batch, which takes a second with all that lives in this process
    quiet = contextlib.redirect_stdout(said), contextlib.redirect_stderr(said)
    with torch.random.fork_rng(), perturb.frozen(lm.model), quiet[0], quiet[1]:
        torch.manual_seed(seed)
        try:
            yield
        finally:
            gc.unfreeze()


class _Meter:
    """Counts what the search spends: every candidate's forward pass. Seconds leave out whoever looks."""

    def __init__(self, lm: LM, width: int):
        self.parameters = sum(p.numel() for p in lm.model.parameters())
        self.width, self.steps, self.tokens, self.seconds = width, 0, 0, 0.0
        self.since = time.perf_counter()

    def turn(self, steps: int, length: int) -> Cost:
        """`steps` more on one row of so many tokens."""
        self.steps, self.tokens = self.steps + steps, self.tokens + steps * self.width * length
        self.seconds += time.perf_counter() - self.since
        return Cost(
            steps=self.steps,
            examples=self.steps,
            tokens=self.tokens,
            flops=2.0 * self.parameters * self.tokens,
            seconds=round(self.seconds, 3),
        )
