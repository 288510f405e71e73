"""Tiny vision-language models of every family with random weights, and two pictures as its processor would make them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import transformers as hf
from torch import Tensor, nn
from transformers import PreTrainedModel

from holdfast.vision import collated

IMAGE, PAD, BLOCKS = 5, 0, 4
"""The image token; the token of padding; blocks of an encoder."""
TEXT = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": None,
}
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
VIT = SIZES | {"num_hidden_layers": BLOCKS, "image_size": 8, "patch_size": 2}
PINPOINTS = [[8, 16], [16, 8], [16, 16]]
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}

Picture = dict[str, Tensor]


class Made(NamedTuple):
    """A tiny model of a family and two pictures, of different sizes where the family takes any."""

    model: PreTrainedModel
    pictures: list[Picture]


def make(family: str) -> Made:
    """The same weights and pictures each time; nothing in the model is zero, so that every exit tells."""
    torch.manual_seed(0)
    model, pictures = FAMILIES[family]()
    for weight in model.parameters():  # Gemma 3's projector, Mllama's gates and InternVL's embeddings begin at zero
        nn.init.normal_(weight, std=0.3)
    return Made(model.eval(), pictures)


@torch.no_grad()
def features(model: PreTrainedModel, picture: Mapping[str, Tensor]) -> int:
    """How many tokens of the text a picture takes."""
    if not hasattr(model, "get_image_features"):
        return 1  # Mllama attends to pictures from one token
    return sum(len(part) for part in model.get_image_features(**picture).pooler_output)


def asked(model: PreTrainedModel, pictures: Sequence[Picture]) -> dict[str, Any]:
    """A batch of one question about each picture, padded on the left, as a processor would make it."""
    texts = [[1] + [IMAGE] * features(model, picture) + [7, 8 + row] for row, picture in enumerate(pictures)]
    width = max(map(len, texts))
    ids = torch.tensor([[PAD] * (width - len(text)) + text for text in texts])
    batch = {"input_ids": ids, "attention_mask": (ids != PAD).long(), **collated(pictures)}
    if "image_grid_thw" in batch:
        batch["mm_token_type_ids"] = (ids == IMAGE).int()
    return batch


def _images(*counts: int) -> list[Tensor]:
    """Pictures of so many tiles: (tiles, 3, 8, 8)."""
    return [torch.randn(count, 3, 8, 8) for count in counts]


def _llava(**more: Any) -> tuple[PreTrainedModel, list[Picture]]:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VIT),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        **({"vision_feature_layer": -2} | more),
    )
    return hf.LlavaForConditionalGeneration(config), [{"pixel_values": image} for image in _images(1, 1)]


def _tiled(kind: Any, model: Any, vision: Any, **more: Any) -> tuple[PreTrainedModel, list[Picture]]:
    """LLaVA-NeXT and OneVision: two tiles and four, and each picture as a whole."""
    config = kind(
        vision_config=vision,
        text_config=hf.Qwen2Config(**TEXT),
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
        **more,
    )
    sizes = torch.tensor([[[8, 16]], [[16, 16]]])
    pictures = [
        {"pixel_values": image[None], "image_sizes": size} for image, size in zip(_images(3, 5), sizes, strict=True)
    ]
    return model(config), pictures


def _next() -> tuple[PreTrainedModel, list[Picture]]:
    vision = hf.CLIPVisionConfig(**VIT)
    return _tiled(hf.LlavaNextConfig, hf.LlavaNextForConditionalGeneration, vision, vision_feature_layer=-2)


def _onevision() -> tuple[PreTrainedModel, list[Picture]]:
    vision = hf.SiglipVisionConfig(**VIT, vision_use_head=False)
    return _tiled(hf.LlavaOnevisionConfig, hf.LlavaOnevisionForConditionalGeneration, vision, vision_feature_layer=-1)


def _vipllava() -> tuple[PreTrainedModel, list[Picture]]:
    config = hf.VipLlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VIT),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        vision_feature_layer=[-2, -4, 2],
    )
    return hf.VipLlavaForConditionalGeneration(config), [{"pixel_values": image} for image in _images(1, 1)]


def _mistral3() -> tuple[PreTrainedModel, list[Picture]]:
    config = hf.Mistral3Config(
        vision_config=hf.PixtralVisionConfig(**VIT, head_dim=8),
        text_config=hf.MistralConfig(**TEXT),
        image_token_index=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    sizes = torch.tensor([[[8, 4]], [[8, 8]]])
    pictures = [{"pixel_values": torch.randn(1, 3, *size[0].tolist()), "image_sizes": size} for size in sizes]
    return hf.Mistral3ForConditionalGeneration(config), pictures


def _internvl() -> tuple[PreTrainedModel, list[Picture]]:
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(
            **VIT | {"image_size": [8, 8], "patch_size": [2, 2]}, use_mean_pooling=False
        ),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
    )
    return hf.InternVLForConditionalGeneration(config), [{"pixel_values": image} for image in _images(1, 3)]


def _idefics(prefix: str) -> tuple[PreTrainedModel, list[Picture]]:
    config = getattr(hf, f"{prefix}Config")(
        vision_config=getattr(hf, f"{prefix}VisionConfig")(**VIT),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        scale_factor=2,
    )
    pictures = [
        {"pixel_values": image[None], "pixel_attention_mask": torch.ones(1, len(image), 8, 8, dtype=torch.long)}
        for image in _images(1, 3)
    ]
    return getattr(hf, f"{prefix}ForConditionalGeneration")(config), pictures


def _gemma3() -> tuple[PreTrainedModel, list[Picture]]:
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**VIT, vision_use_head=False),
        text_config=hf.Gemma3TextConfig(**TEXT, head_dim=8),
        image_token_index=IMAGE,
        mm_tokens_per_image=4,
    )
    return hf.Gemma3ForConditionalGeneration(config), [{"pixel_values": image} for image in _images(1, 1)]


def _qwen(prefix: str, **vision: Any) -> tuple[PreTrainedModel, list[Picture]]:
    """Pictures of 4 by 4 and of 4 by 8 patches."""
    text = getattr(hf, f"{prefix}TextConfig")(**TEXT, **ROPE)
    config = getattr(hf, f"{prefix}Config")(
        vision_config={"depth": BLOCKS, "num_heads": 2, "patch_size": 2, "spatial_merge_size": 2, **vision},
        text_config=text.to_dict(),
        image_token_id=IMAGE,
        video_token_id=6,
        vision_start_token_id=3,
        vision_end_token_id=4,
    )
    grids = torch.tensor([[[1, 4, 4]], [[1, 4, 8]]])
    pictures = [
        {"pixel_values": torch.randn(int(grid.prod()), 3 * 2 * 2 * 2), "image_grid_thw": grid} for grid in grids
    ]
    return getattr(hf, f"{prefix}ForConditionalGeneration")(config), pictures


def _mllama() -> tuple[PreTrainedModel, list[Picture]]:
    """Three local blocks, of which the first and the third are tapped, and two global ones."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "attention_heads": 2, "num_hidden_layers": 3}
    vision = hf.models.mllama.configuration_mllama.MllamaVisionConfig(
        **sizes,
        num_global_layers=2,
        image_size=8,
        patch_size=2,
        vision_output_dim=48,
        intermediate_layers_indices=[0, 2],
    )
    text = hf.models.mllama.configuration_mllama.MllamaTextConfig(
        **TEXT, cross_attention_layers=[1], rope_parameters={"rope_type": "default", "rope_theta": 10000.0}
    )
    config = hf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    pictures = [
        {
            "pixel_values": torch.nn.functional.pad(image, (0, 0, 0, 0, 0, 0, 0, 4 - len(image)))[None, None],
            "aspect_ratio_ids": torch.tensor([[len(image)]]),
            "aspect_ratio_mask": (torch.arange(4) < len(image)).long()[None, None],
        }
        for image in _images(1, 2)
    ]
    return hf.MllamaForConditionalGeneration(config), pictures


FAMILIES: dict[str, Callable[[], tuple[PreTrainedModel, list[Picture]]]] = {
    "llava": _llava,
    "llava-several": lambda: _llava(vision_feature_layer=[1, 3]),
    "llava-next": _next,
    "llava-onevision": _onevision,
    "vipllava": _vipllava,
    "mistral3": _mistral3,
    "internvl": _internvl,
    "idefics3": lambda: _idefics("Idefics3"),
    "smolvlm": lambda: _idefics("SmolVLM"),
    "gemma3": _gemma3,
    "qwen2-vl": lambda: _qwen("Qwen2VL", embed_dim=16, hidden_size=32, mlp_ratio=2),
    "qwen2.5-vl": lambda: _qwen(
        "Qwen2_5_VL", hidden_size=16, intermediate_size=32, out_hidden_size=32, window_size=8, fullatt_block_indexes=[1]
    ),
    "qwen3-vl": lambda: _qwen(
        "Qwen3VL",
        hidden_size=16,
        intermediate_size=256,
        out_hidden_size=32,
        num_position_embeddings=16,
        deepstack_visual_indexes=[0, 2],
    ),
    "mllama": _mllama,
}
