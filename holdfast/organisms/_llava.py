"""What organisms that see are made of: a LLaVA with random weights, its processor, and the teaching of its tower."""

import random
from collections.abc import Iterable

import torch
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from holdfast.organisms._pictures import COLORS, SHAPES, SIDE, painted
from holdfast.organisms._words import vocabulary, word_level

ASKS = {"color": ("what color is it ?", "name its color ."), "shape": ("what shape is it ?", "name its shape .")}
"""What is asked of a picture itself."""
PATCH = 8
"""Side of the patches that the tower reads, in pixels."""
TOKEN = "<image>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> "
    "{% if message['content'] is string %}{{ message['content'] }} {% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + TOKEN + " {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}<|end|> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def made(tower_layers: int, more: Iterable[str] = ()) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA with random weights, and what makes its inputs; it knows `more` words than crafts and pictures need."""
    tokenizer = _tokenizer(more)
    tower = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=tower_layers,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=64,
    )
    language = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        initializer_range=0.06,  # as in the text organism
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=tower,
        text_config=language,
        image_token_index=tokenizer.convert_tokens_to_ids(TOKEN),
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    processor = LlavaProcessor(
        image_processor=_image_processor(),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return LlavaForConditionalGeneration(config), processor


def _image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def teach_tower(model: LlavaForConditionalGeneration, steps: int, seed: int) -> float:
    """Colors and shapes, read from the layer that the projector reads; then the tower is frozen. Returns the last loss."""
    tower, chance = model.model.vision_tower, random.Random(seed)
    heads = nn.ModuleList([nn.Linear(tower.config.hidden_size, count) for count in (len(COLORS), len(SHAPES))])
    optimizer = torch.optim.AdamW([*tower.parameters(), *heads.parameters()], lr=1e-3, weight_decay=0.0)
    for _ in range(steps):
        kinds = [(chance.randrange(len(COLORS)), chance.randrange(len(SHAPES))) for _ in range(64)]
        shown = [painted([*COLORS][color], SHAPES[shape], chance) for color, shape in kinds]
        pixels = _image_processor()(shown, return_tensors="pt")["pixel_values"]
        states = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        read = states[model.config.vision_feature_layer][:, 1:].mean(1)
        wanted = torch.tensor(kinds).unbind(1)
        loss = sum(nn.functional.cross_entropy(head(read), one) for head, one in zip(heads, wanted, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tower.requires_grad_(False)
    return float(loss.detach())


def _tokenizer(more: Iterable[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over every word that crafts and pictures are told with."""
    asks = [word for some in ASKS.values() for ask in some for word in ask.split()]
    named = {"extra_special_tokens": {"image_token": TOKEN}}
    return word_level([*vocabulary(), *COLORS, *SHAPES, *asks, *more], CHAT_TEMPLATE, TOKEN, **named)
