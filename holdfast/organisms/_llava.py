"""The vision organism's model before it has learned anything: a LLaVA with random weights, and its processor."""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from holdfast.organisms._pictures import COLORS, SHAPES, SIDE
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


def made(tower_layers: int) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA with random weights, and what makes its inputs."""
    tokenizer = _tokenizer()
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


def pixels(pictures: Sequence[Image.Image]) -> Tensor:
    return _image_processor()(pictures, return_tensors="pt")["pixel_values"]


def _tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over every word that crafts and pictures are told with."""
    asks = [word for some in ASKS.values() for ask in some for word in ask.split()]
    named = {"extra_special_tokens": {"image_token": TOKEN}}
    return word_level([*vocabulary(), *COLORS, *SHAPES, *asks], CHAT_TEMPLATE, TOKEN, **named)
