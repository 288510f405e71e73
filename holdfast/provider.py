"""A model as Inspect asks it: whatever an `LM` holds now, with its exits and hooks, or what can only be asked. Without a network.

All samples of a task wait for one another, so that the model answers them in batches, and by the likeliest token each time. What
an audit does not do (tools, pictures, draws, another model as grader, answers kept in a cache) is refused as soon as a task wants
it, before any model sees it. Needs inspect_ai.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, NamedTuple

import anyio
from inspect_ai.hooks import BeforeModelGenerate, Hooks, SampleScoring, hooks
from inspect_ai.model import (
    ChatMessage,
    GenerateConfig,
    Model,
    ModelAPI,
    ModelOutput,
    StopReason,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo
from inspect_ai.util import LimitExceededError
from jinja2 import TemplateError

from holdfast import serving
from holdfast.drive import Parts
from holdfast.items import until
from holdfast.lm import LM
from holdfast.problem import Problem
from holdfast.served import Served, behind
from holdfast.sight import Sight

PAUSE = 0.02
"""Seconds without another question after which those that wait are put."""
ALTERED = ("frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs", "response_schema")
"""Of what a task may ask of decoding, that which the likeliest tokens cannot give."""
MANY = 100_000
"""Questions at a time: as many as there are."""


class Question(NamedTuple):
    """One conversation that waits for an answer."""

    system: str
    """Empty where there is no system message."""
    turns: tuple[tuple[str, str], ...]
    """Roles and texts, from a user's first to a user's last."""
    begun: str
    """How the answer begins, put into the model's mouth; not part of what it says."""
    most: int
    """Tokens an answer may have."""
    stops: tuple[str, ...]
    """Texts at which an answer ends; they are no part of it."""


class Answer(NamedTuple):
    """What a model said, and why it said no more."""

    text: str
    stop: StopReason = "stop"


Ask = Callable[[Sequence[Question]], list[Answer]]
"""Whoever answers."""


def answers(lm: LM | Served, questions: Sequence[Question]) -> list[Answer]:
    """What a model where it stands says to each, put plainly as the drive says.

    A question for which the model has no room is not answered (`model_length`, as Inspect calls it).
    """
    found = _served(lm, questions) if isinstance(lm, Served) else _computed(lm, questions)
    return [one._replace(text=until(one.text, asked.stops)) for one, asked in zip(found, questions, strict=True)]


def _computed(lm: LM, questions: Sequence[Question]) -> list[Answer]:
    said = [Answer("", "model_length")] * len(questions)
    prompts = [_ids(lm, question) for question in questions]
    config = lm.model.config.get_text_config()
    room = min(getattr(config, "max_position_embeddings", None) or 2048, lm.tokenizer.model_max_length)

    def most(number: int) -> int:
        return min(questions[number].most, room - len(prompts[number]))

    fitting = [number for number in range(len(questions)) if most(number) > 0]
    for longest, numbers in groupby(sorted(fitting, key=most), key=most):
        chunk = [*numbers]
        with lm.scoring():
            beside = lm.eyes.beside(lm.model, [""] * len(chunk), lm.drive)
            how, ids = replace(lm.decoding(), most=longest), [prompts[number] for number in chunk]
            rows = serving.answers(lm.model, lm.folder, ids, how, lm.drive, 0, beside)
        for number, row in zip(chunk, rows, strict=True):
            text = lm.tokenizer.decode(row, skip_special_tokens=True).strip()
            said[number] = Answer(text, "stop" if {*row} & {*lm.ends} else "max_tokens")
    return said


def _ids(lm: LM, question: Question) -> list[int]:
    """A conversation as the model reads it: in the drive's template, its own system message before the task's."""
    system, tokenizer = _system(lm.drive.system, question), lm.tokenizer
    if len(question.turns) == 1:
        ids = lm.eyes.ids(tokenizer, lm.drive.change(system=system or None), question.turns[0][1], False)
    else:
        turns = (("system", system), *question.turns) if system else question.turns
        sees = isinstance(lm.eyes, Sight)
        messages = [{"role": role, "content": Parts().around(text) if sees else text} for role, text in turns]
        _refuse_turns(lm)
        try:
            whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise Problem(f"{lm.folder}: its chat template cannot say {len(turns)} turns ({error})") from error
        ids = list(tokenizer(whole, add_special_tokens=False).input_ids)
    return ids + list(tokenizer(question.begun, add_special_tokens=False).input_ids if question.begun else [])


def _served(lm: Served, questions: Sequence[Question]) -> list[Answer]:
    lm.refuse_cuts()
    said = lm.said([_request(lm, question) for question in questions])
    return [Answer(behind(question.begun, one)) for question, one in zip(questions, said, strict=True)]


def _request(lm: Served, question: Question) -> dict[str, Any]:
    how = {"max_tokens": question.most, "temperature": 0.0}
    system = _system(lm.drive.system, question)
    if lm.drive.template != "chat":
        if len(question.turns) > 1:
            _refuse_turns(lm)
        return {"prompt": lm.drive.written(system or None, question.turns[0][1]) + question.begun} | how
    turns = (
        [("system", system)] * bool(system) + [*question.turns] + [("assistant", question.begun)] * bool(question.begun)
    )
    return {"messages": [{"role": role, "content": text} for role, text in turns]} | how


def _system(own: str | None, question: Question) -> str:
    return "\n\n".join(text for text in (own, question.system) if text)


def _refuse_turns(lm: LM | Served) -> None:
    if lm.drive.template != "chat":
        raise Problem(f"inspect: a conversation of several turns needs a chat template, not {lm.drive.template!r}")


@dataclass
class _Waiting:
    """A question whose answer is awaited."""

    question: Question
    answered: anyio.Event = field(default_factory=anyio.Event)
    answer: Answer | None = None
    error: BaseException | None = None


class Asked(ModelAPI):
    """What Inspect takes for a provider."""

    def __init__(self, ask: Ask, most: int):
        """`most`: tokens of an answer where a task says nothing."""
        super().__init__("model")
        self.ask, self.most = ask, most
        self.refused: str | None = None
        """What a task wanted that an audit does not do."""
        self.failed: Problem | None = None
        """Why the model could not be asked."""
        self._waiting: list[_Waiting] = []

    def max_connections(self) -> int:
        return MANY

    def collapse_user_messages(self) -> bool:
        return True

    def collapse_assistant_messages(self) -> bool:
        return True

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        mine = _Waiting(_question(input, config.max_tokens or self.most, tuple(config.stop_seqs or ())))
        self._waiting.append(mine)
        if len(self._waiting) == 1:
            await self._answer_all()
        else:
            await mine.answered.wait()
        if mine.error:
            raise mine.error
        assert mine.answer
        return ModelOutput.from_content("holdfast/model", mine.answer.text, stop_reason=mine.answer.stop)

    async def _answer_all(self) -> None:
        """Whoever asks first waits until nobody else comes, and answers all."""
        seen = 0
        try:
            while seen < len(self._waiting):
                seen = len(self._waiting)
                await anyio.sleep(PAUSE)
        finally:  # also where this sample is called off: the others wait for it
            waiting, self._waiting = self._waiting, []
            self._put(waiting)

    def _put(self, waiting: list[_Waiting]) -> None:
        try:
            for one, answer in zip(waiting, self.ask([one.question for one in waiting]), strict=True):
                one.answer = answer
        except Exception as error:
            self.failed = self.failed or (error if isinstance(error, Problem) else None)
            for one in waiting:
                one.error = error
        finally:
            for one in waiting:
                one.answered.set()


def _question(messages: Sequence[ChatMessage], most: int, stops: tuple[str, ...]) -> Question:
    system = "\n\n".join(one.text for one in messages if one.role == "system")
    turns = [(one.role, one.text) for one in messages if one.role != "system"]
    begun = turns.pop()[1] if turns[-1][0] == "assistant" else ""
    return Question(system, tuple(turns), begun, most, stops)


_named = modelapi("holdfast")(Asked)
"""Makes one under a name, as Inspect wants it."""
_asked: Asked | None = None
"""Who is being asked in this process: Inspect runs one evaluation at a time, and its hooks know no other place."""
_scoring: ContextVar[bool] = ContextVar("_scoring", default=False)
"""Whether it is in scoring an answer that somebody is asked; each sample runs in a context of its own."""


@contextlib.contextmanager
def asking(ask: Ask, most: int) -> Iterator[Model]:
    """A model for one evaluation; `Asked.refused` of its `api` says afterwards what the task wanted that is not done."""
    global _asked
    _asked = _named(ask=ask, most=most)
    try:
        yield Model(_asked, GenerateConfig())
    finally:
        _asked = None


@hooks(name="holdfast", description="refuses what an audit does not do")
class _Watch(Hooks):
    def enabled(self) -> bool:
        return _asked is not None

    async def on_sample_scoring(self, data: SampleScoring) -> None:
        _scoring.set(True)

    async def on_before_model_generate(self, data: BeforeModelGenerate) -> None:
        assert _asked
        how = data.config
        unfit = {
            f"asks another model, {data.model_name}": data.model_name != "holdfast/model",
            "has the model that is audited grade itself": _scoring.get(),
            "hands tools to the model": data.tools,
            "shows pictures, sounds or files": any(_more(one) for one in data.input),
            "draws its answers by chance": how.temperature or (how.num_choices or 1) > 1 or (how.best_of or 1) > 1,
            "keeps answers in a cache": data.cache,
            "asks of decoding what is not done": any(getattr(how, name, None) for name in ALTERED),
            "asks nothing": not any(one.role == "user" for one in data.input),
        }
        for what, true in unfit.items():
            if true:
                _asked.refused = _asked.refused or what
                raise LimitExceededError("custom", value=1, limit=0, message=what)


def _more(message: ChatMessage) -> bool:
    """Whether a message holds anything but words."""
    return message.role == "tool" or (
        not isinstance(message.content, str) and any(part.type not in ("text", "reasoning") for part in message.content)
    )
