"""What a sweep over every exit of an image encoder costs beside one pass of the encoder and the language model's own passes.

A LLaVA with random weights is asked the same questions about the same pictures at each exit. `sweep` is all of that as an audit
does it: the encoder's states once a picture, then the whole model at every exit. `bare` is one pass of the encoder over the
pictures, and as many passes of the language model alone over embeddings of the same size. `sweep_ratio` is the median over rounds
of their ratio; `naive_ratio` has the encoder run anew at each exit, as a change of the configuration would.

Run: python benchmarks/exits.py [--rounds N] [--out FILE]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from holdfast import disk, prepare, vision

RESULTS = Path(__file__).parent / "results/exits.json"
PICTURES, WORDS, IMAGE = 4, 24, 5
TOWER = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 12, "num_attention_heads": 6}
LANGUAGE = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8}


def made() -> LlavaForConditionalGeneration:
    """An encoder that is no trifle beside its language model; 49 features a picture."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER, image_size=112, patch_size=16),
        text_config=LlamaConfig(**LANGUAGE, num_key_value_heads=8, vocab_size=1000),
        image_token_index=IMAGE,
        image_seq_length=49,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return LlavaForConditionalGeneration(config).eval()


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@torch.no_grad()
def round_of(model: LlavaForConditionalGeneration, pixels: Tensor, ids: Tensor) -> tuple[float, float, float]:
    """Seconds of the sweep, of the bare passes and of the naive way."""
    tower, mask = vision.Tower.of(model), torch.ones_like(ids)
    exits = range(1, tower.last + 1)

    def sweep() -> None:
        states = [tower.states({"pixel_values": picture[None]}) for picture in pixels]
        for exit in exits:
            with tower.leaving(states, [exit] * len(states)):
                model(input_ids=ids, attention_mask=mask, pixel_values=pixels)

    def bare() -> None:
        model.get_image_features(pixel_values=pixels)
        embedded = torch.zeros(*ids.shape, LANGUAGE["hidden_size"])
        for _ in exits:
            model.lm_head(model.model.language_model(inputs_embeds=embedded, attention_mask=mask).last_hidden_state)

    def naive() -> None:
        for exit in exits:
            model(input_ids=ids, attention_mask=mask, pixel_values=pixels, vision_feature_layer=exit)

    return seconds(sweep), seconds(bare), seconds(naive)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    model, generator = made(), torch.Generator().manual_seed(1)
    pixels = torch.randn(PICTURES, 3, 112, 112, generator=generator)
    words = torch.randint(10, 1000, (PICTURES, WORDS), generator=generator)
    ids = torch.cat([torch.full((PICTURES, 49), IMAGE), words], 1)
    round_of(model, pixels, ids)
    rounds = [round_of(model, pixels, ids) for _ in range(options.rounds)]
    ratios = {name: [one[n] / one[1] for one in rounds] for name, n in (("sweep_ratio", 0), ("naive_ratio", 2))}
    result = {
        "versions": prepare.versions(),
        "hardware": prepare.hardware(),
        "exits": vision.Tower.of(model).last,
        "rounds": options.rounds,
        **{name: statistics.median(some) for name, some in ratios.items()},
        **{f"{name}_range": [min(some), max(some)] for name, some in ratios.items()},
    }
    disk.write(options.out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
