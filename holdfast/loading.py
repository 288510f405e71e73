"""A checkpoint folder as transformers loads it, or one clear reason why it cannot be used. Knows nothing of prompts' content."""

import contextlib
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from holdfast import processes
from holdfast.checkpoint import Checkpoint
from holdfast.drive import Drive
from holdfast.problem import Problem, printable

_PICTURES = ("image_token_id", "image_token_index")
"""Where a config names the token that stands for a picture, which needs no row among the words."""
SECONDS, MEMORY = 3, 1 << 30
"""What a chat template may take for a short conversation, in seconds of computing and in bytes."""


def loaded(
    folder: Path, kind: type[Any] | None = None, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and model, as `kind` of transformers' auto classes loads it, in fp32 unless told otherwise. Unless a kind is
    given, what writes loads as such, with its eyes if it has some, and an encoder without whatever stands behind its last block.

    Of the checkpoint's own generation settings nothing is left but the special tokens that end a turn: the others (suppressed
    tokens, forced ones, penalties, stop strings) would steer what is heard of a model, whatever its weights want to say.

    Raises:
        Problem: the checkpoint is missing, incomplete, pickled, or wants foreign code. A tensor that the files lack is one:
            transformers would draw it at random.
    """
    with Checkpoint(folder) as checkpoint:
        refuse_code(checkpoint.config, folder / "config.json")
        refuse_code(checkpoint.settings("tokenizer_config.json"), folder / "tokenizer_config.json")
        spoken = checkpoint.settings("chat_template.json").get("chat_template")
        encoder = kind is None and _encoder(checkpoint.config)
        writes = AutoModelForImageTextToText if sees(checkpoint.config) else AutoModelForCausalLM
    kind = kind or (AutoModel if encoder else writes)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model, found = kind.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # transformers and the libraries below it raise a dozen kinds
        raise Problem(f"{folder}: transformers cannot load it ({' '.join(str(error).split())})") from error
    if tokenizer.chat_template is None and isinstance(spoken, str):
        tokenizer.chat_template = spoken  # LLaVA 1.5 came with its processor's template alone
    refuse_endless(tokenizer, folder)
    lacking = sorted(found["missing_keys"])
    if encoder and lacking and all(name.startswith("pooler.") for name in lacking):
        # Trained with masked words alone: what transformers puts there is drawn at random, and nobody reads it.
        model.pooler, lacking = None, []
    if lacking:
        raise Problem(
            f"{folder}: lacks {len(lacking)} tensors that its config promises (the first is {lacking[0]!r}); "
            "the download is not complete, fetch it again"
        )
    if model.can_generate():
        model.generation_config = GenerationConfig(eos_token_id=_ends(model.generation_config, tokenizer) or None)
    return tokenizer, model


def sees(settings: dict[str, Any]) -> bool:
    """Whether a checkpoint of this config is shown pictures."""
    kind = settings.get("model_type")
    return "vision_config" in settings and isinstance(kind, str) and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def _encoder(settings: dict[str, Any]) -> bool:
    """Whether a checkpoint of this config reads in both directions and writes nothing: BERT and its kin."""
    kind, named = settings.get("model_type"), settings.get("architectures")
    named = [one for one in named if isinstance(one, str)] if isinstance(named, list) else []
    writes = settings.get("is_encoder_decoder") or {*named} & {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}
    return isinstance(kind, str) and kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and bool(named) and not writes


def refuse_silent(model: PreTrainedModel, folder: Path) -> None:
    """Raise `Problem` where the model writes nothing that could be asked for."""
    if not model.can_generate():
        raise Problem(
            f"{folder}: is an encoder ({model.config.model_type}), which answers no prompt; give a model that writes, or ask "
            "only what tells texts apart"
        )


def token_ids(ids: Callable[[], list[int]], model: PreTrainedModel, folder: Path) -> list[int]:
    """The ids that a checkpoint's tokenizer makes of a text; `Problem` where it fails, or writes one that the model lacks."""
    try:
        found = ids()
    except Problem:
        raise
    except Exception as error:  # the tokenizers library raises nothing more special
        raise Problem(
            f"{folder}: its tokenizer cannot read a text ({printable(error)}); fetch its files again"
        ) from error
    known, pictures = (
        model.config.get_text_config().vocab_size,
        {getattr(model.config, name, None) for name in _PICTURES},
    )
    if beyond := [one for one in found if one >= known and one not in pictures]:
        raise Problem(
            f"{folder}: its tokenizer writes token {beyond[0]}, and the model knows {known}; they are not of one checkpoint, "
            "fetch both again"
        )
    return found


def refuse_code(settings: dict[str, Any], file: Path) -> None:
    """Raises `Problem` where a config wants code of its own to be run, or some of the hub's."""
    if "auto_map" in settings:
        raise Problem(f"{file.parent}: wants to run code of its own (auto_map); use one of a known architecture")
    for key, value in _implementations(settings):
        if "/" in json.dumps(value):
            raise Problem(
                f"{file}: {key} names code on the hub ({printable(value)}), which would be fetched and run; remove that key"
            )


def _ends(settings: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokenizer's end of text, and what the settings name beside it (Llama 3 `<|eot_id|>`, Gemma `<end_of_turn>`), but for
    words: one that ended an answer would silence whatever begins with it."""
    named = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = {number for number in added.union(tokenizer.all_special_ids) if number in named}
    return sorted(special.union({tokenizer.eos_token_id} - {None}))


def refuse_endless(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raises `Problem` where the chat template, which is a program, does not end or eats memory. One that merely fails does not.

    It is tried on short messages: one that lies in wait for other words is not found.
    """
    template = tokenizer.chat_template
    for one in template.values() if isinstance(template, dict) else [template]:
        if isinstance(one, str) and (why := _endless(one)):
            raise Problem(
                f"{folder}: its chat template {why}; ask its publisher for another, or put a plain one in its place"
            )


@cache
def _endless(template: str) -> str | None:
    """What is wrong with how a template computes; None where nothing is."""
    user, answer = {"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Well."}

    def render() -> None:
        for turns in ([user], [{"role": "system", "content": "Be brief."}, user, answer, user]):
            with contextlib.suppress(TemplateError):
                render_jinja_template([turns], chat_template=template, add_generation_prompt=True)

    return processes.unbounded(render, SECONDS, MEMORY)


def _implementations(settings: Any) -> Iterator[tuple[str, Any]]:
    """What a config, or one inside it, says of how to compute: `attn_implementation`, `experts_implementation` and their kin."""
    if isinstance(settings, dict):
        yield from ((key, value) for key, value in settings.items() if "_implementation" in key)
    for part in settings.values() if isinstance(settings, dict) else settings if isinstance(settings, list) else ():
        yield from _implementations(part)


def ready(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, drive: Drive, folder: Path) -> None:
    """Give the tokenizer a pad token if it has none. Raises `Problem` for whatever would stop the first question."""
    if not model.can_generate() and tokenizer.pad_token_id is not None:
        return  # an encoder, which nobody can ask
    if tokenizer.eos_token_id is None:
        raise Problem(f"{folder}: its tokenizer has no end-of-text token; name it in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if drive.template == "chat" and not tokenizer.chat_template:
        raise Problem(f"{folder}: its tokenizer has no chat template; add one, or ask for --template plain")
    try:
        drive.text(tokenizer, "")
    except Exception as error:  # a template computes: it may divide by nothing, or ask for a message that is not there
        raise Problem(
            f"{folder}: its chat template fails ({printable(error)}); leave out what it refuses, or ask for --template plain"
        ) from error
