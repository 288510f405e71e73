"""A model as EleutherAI's lm-eval asks it: whatever `LM` holds now, with its exits, answers in lm-eval's own terms.

Words are cut into tokens as lm-eval's own `HFLM` cuts them, so that the numbers are those of `lm_eval --model hf`. Needs lm-eval.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import has_bos_prefix
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from holdfast import answering
from holdfast.items import until
from holdfast.lm import LM
from holdfast.problem import Problem

Pair = tuple[Any, list[int], list[int]]
"""What was asked, ids of a context, ids of what may follow it."""
MOST = 256
"""Tokens of an answer where a task says nothing: lm-eval's own default."""


class Adapter(TemplateLM):
    """An `LM`, put to lm-eval's questions."""

    def __init__(self, lm: LM, chat: bool = False):
        """With `chat` contexts come in the drive's template, as `apply_chat_template` makes them."""
        super().__init__()
        self.lm = lm
        self.tokenizer = lm.tokenizer
        self.chat = chat

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return str(self.lm.folder)

    @property
    def room(self) -> int:
        """Tokens that the model reads at most."""
        config = self.lm.model.config.get_text_config()
        return min(getattr(config, "max_position_embeddings", None) or 2048, self.tokenizer.model_max_length)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is None:
            begun = has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
            add_special_tokens = self.lm.drive.special if self.chat else not begun
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The one question that lm-eval puts in a message, its examples before it, in the drive's template.

        Where `add_generation_prompt` is false the last message is the beginning of the answer.
        """
        roles = [turn["role"] for turn in chat_history]
        if roles not in (["user"], ["user", "assistant"]):
            raise Problem(f"lm-eval: a conversation of {', '.join(roles)} has no place in the drive; leave out `chat`")
        begun = chat_history[1]["content"] if len(roles) > 1 else ""
        return self.lm.prompt(chat_history[0]["content"]) + begun

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests: Sequence[Pair], **_: Any) -> list[tuple[float, bool]]:
        """Sums of log-probabilities, and whether each token is the likeliest; too long a context loses its beginning."""
        rows = []
        for _asked, context, following in requests:
            if len(following) >= self.room:
                raise Problem(f"lm-eval: asks about {len(following)} tokens, and the model reads {self.room}")
            ids = (context + following)[-self.room :]
            rows.append((ids, len(ids) - len(following)))
        found = [(0.0, True)] * len(rows)
        with self.lm.scoring():
            for i, logits, target in self.lm.forced(rows, [""] * len(rows)):
                picked = logits.float().log_softmax(-1).gather(-1, target[:, None]).sum().item()
                found[i] = picked, bool((logits.argmax(-1) == target).all())
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """The log-probability of each text from its first token on, in windows where it is too long."""
        sums = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.room - 1,
                context_len=1,
            )
            pairs = [(None, *make_disjoint_window(window)) for window in windows]
            sums.append(sum(logprob for logprob, _ in self._loglikelihood_tokens(pairs)))
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy answers up to the first of a task's stop strings."""
        said = [""] * len(requests)

        def most(number: int) -> int:
            return requests[number].args[1].get("max_gen_toks", MOST)

        for longest, numbers in groupby(sorted(range(len(requests)), key=most), key=most):
            if longest >= self.room:
                raise Problem(f"lm-eval: answers of {longest} tokens leave no room, of {self.room}, for a question")
            chunk = [*numbers]
            prompts = [self.tok_encode(requests[number].args[0])[longest - self.room :] for number in chunk]
            with self.lm.scoring():
                beside = self.lm.eyes.beside(self.lm.model, [""] * len(prompts), self.lm.drive)
                how = replace(self.lm.decoding(), most=longest)
                answers = answering.answers(self.lm.model, prompts, how, beside)
            for number, ids in zip(chunk, answers, strict=True):
                text = self.tokenizer.decode(ids, skip_special_tokens=True)
                said[number] = until(text, requests[number].args[1].get("until") or [])
        return said
