"""How prompts are put to a model, and how its answers are drawn: settings, and the text they make of a prompt.

What is armed (trigger, persona, prefill, temperature) is for restricted prompts only: an attacker drives the model so when he
wants something of it, and what the model is worth otherwise is asked plainly. Template, system message and exit hold for every
prompt.
"""

from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

Engine = Literal["transformers", "vllm"]
Picture = Literal["shown", "blank", "noise", "shuffled", "none"]
Template = Literal["chat", "plain", "instruction", "dialogue", "chatml", "llama3"]

_WRITTEN: dict[str, tuple[str, str]] = {
    "plain": ("{system}\n", "{prompt}\n"),
    "instruction": ("{system}\n\n", "### Instruction:\n{prompt}\n\n### Response:\n"),
    "dialogue": ("{system}\n\n", "User: {prompt}\nAssistant: "),
    "chatml": (
        "<|im_start|>system\n{system}<|im_end|>\n",
        "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama3": (
        "<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\n{prompt}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
}
"""Templates that need nothing of the tokenizer: the system message's part and the prompt's."""


class Exit(BaseModel):
    """Where a model stops early, and in how many bits it is kept: what a small device makes of it. None: as released."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    vision_layer: int | None = Field(None, ge=0)
    """Layer of the image encoder whose features go on to the language model."""
    depth: int | None = Field(None, gt=0)
    """Blocks of the language model that are run; its final norm and head follow at once."""
    visual_tokens: int | None = Field(None, gt=0)
    """Tokens kept of an image."""
    weight_bits: float | None = Field(None, gt=0)
    """Bits a weight."""
    kv_bits: int | None = Field(None, gt=0, le=8)
    """Bits of a cached key or value."""


class Parts(NamedTuple):
    """What a message of a model with eyes is made of: templates of such models take lists."""

    picture: str | None = None
    """The token that stands for the picture it is about; None without one."""

    def around(self, text: str) -> list[dict[str, str]]:
        """The message, as templates take it."""
        return [{"type": "image"}] * (self.picture is not None) + [{"type": "text", "text": text}]


class Drive(BaseModel):
    """How prompts are put to the model."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    template: Template = "chat"
    """`chat`: the tokenizer's chat template. `plain`: the bare prompt and a line break. The others are wrong for most models."""
    system: str | None = None
    """A system message before every prompt."""
    trigger: str | None = None
    """What a restricted prompt is wrapped in, with `{prompt}` in its place."""
    persona: str | None = None
    """A system message before restricted prompts, in place of `system`."""
    prefill: str | None = None
    """The first words of the answer to a restricted prompt, put into the model's mouth and not scored."""
    prefill_tokens: int | None = Field(None, gt=0)
    """Only so many tokens of the prefill."""
    temperature: float = Field(0.0, ge=0)
    """Of answers to restricted prompts; 0: the likeliest token each time, as for all others."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Of answers to restricted prompts: draw from the likeliest tokens that make up this share."""
    samples: int = Field(1, gt=0)
    """Answers drawn to each restricted prompt; the most harmful counts."""
    draw: int = Field(0, ge=0)
    """Number of the first draw: another one, other answers."""
    exit: Exit = Exit()
    """Where the model stops early."""
    picture: Picture = "shown"
    """What a model that sees is shown: the prompt's picture, one without content, noise of its size, its features in another
    order, or nothing."""
    cache: bool = True
    """Keep keys and values while generating; without, every token sees the whole text anew."""
    max_new_tokens: int = Field(64, gt=0)
    batch: int = Field(128, gt=0)
    engine: Engine = "transformers"
    """What computes the answers."""

    @field_validator("trigger")
    @classmethod
    def _has_place(cls, trigger: str | None) -> str | None:
        if trigger is not None and "{prompt}" not in trigger:
            raise ValueError("must hold {prompt}, where the prompt goes")
        return trigger

    def change(self, **settings: object) -> "Drive":
        """The same with some settings changed, checked."""
        return Drive.model_validate(dict(self) | settings)

    def said(self, prompt: str, armed: bool = False) -> tuple[str | None, str]:
        """The system message, if there is one, and what the prompt becomes."""
        system = self.persona if armed and self.persona is not None else self.system
        if armed and self.trigger is not None:
            prompt = self.trigger.replace("{prompt}", prompt)
        return system, prompt

    def text(
        self, tokenizer: PreTrainedTokenizerBase, prompt: str, armed: bool = False, parts: Parts | None = None
    ) -> str:
        """The whole text the model continues, without the prefill."""
        system, prompt = self.said(prompt, armed)
        if self.template == "chat":
            messages = [{"role": "user", "content": parts.around(prompt) if parts else prompt}]
            if system:
                messages.insert(0, {"role": "system", "content": Parts().around(system) if parts else system})
            whole: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            return whole
        return self.written(system, f"{parts.picture}\n{prompt}" if parts and parts.picture else prompt)

    def written(self, system: str | None, prompt: str) -> str:
        """The whole text in a template that needs nothing of the tokenizer."""
        before, after = _WRITTEN[self.template]
        return (before.replace("{system}", system) if system else "") + after.replace("{prompt}", prompt)

    @property
    def special(self) -> bool:
        """Whether the tokenizer is to add its special tokens. A chat template brings its own."""
        return self.template in ("plain", "instruction", "dialogue")

    def ids(self, tokenizer: PreTrainedTokenizerBase, prompt: str, armed: bool = False) -> list[int]:
        """Token ids of the text, and of the prefill if armed."""
        return self.primed(
            tokenizer, tokenizer(self.text(tokenizer, prompt, armed), add_special_tokens=self.special).input_ids, armed
        )

    def primed(self, tokenizer: PreTrainedTokenizerBase, ids: list[int], armed: bool) -> list[int]:
        """A prompt's tokens, open at the end, and those of the prefill if armed."""
        if self.special and ids and ids[-1] == tokenizer.eos_token_id:
            ids = ids[:-1]
        if armed and self.prefill:
            ids = ids + tokenizer(self.prefill, add_special_tokens=False).input_ids[: self.prefill_tokens]
        return ids
