"""Write a small Llama whose words are its tokens (an organism) as a GGUF file, for llama.cpp: as it is, or quantized.

llama.cpp's own converter takes the tokenizers of published models; this takes a word-level one, as the unigram kind, which splits
lower-case words with spaces between them the same way. Types of weights are mixed as by llama.cpp's `quantize` program for a
plain Llama. Quantizing is done by llama.cpp itself, whose library xllamacpp brings along.

    python examples/to_gguf.py CHECKPOINT --out model.gguf --type Q4_K_M
"""

import argparse
import ctypes
import json
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from transformers import AutoTokenizer, LlamaForCausalLM

COARSER = {
    Type.Q2_K: Type.IQ4_NL,
    Type.Q3_K: Type.IQ4_NL,
    Type.Q4_K: Type.Q5_0,
    Type.Q6_K: Type.Q8_0,
    **dict.fromkeys((Type.IQ4_NL, Type.Q5_0, Type.Q8_0), Type.F16),
}
"""What llama.cpp takes where a row is no multiple of the weights that a type takes at a time."""
FILES = {"F32": 0, "F16": 1, "Q8_0": 7, "Q2_K": 10, "Q4_K_M": 15}
"""What a file is called inside, by number."""


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("checkpoint", type=Path)
    asked.add_argument("--out", type=Path, required=True)
    asked.add_argument("--type", choices=FILES, default="F16")
    options = asked.parse_args()
    write(options.checkpoint, options.out, options.type)


def write(checkpoint: Path, out: Path, kind: str) -> None:
    """Raises ValueError where the checkpoint is no plain Llama with a word-level tokenizer."""
    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    writer = gguf.GGUFWriter(out, "llama")
    _describe(writer, model.config, kind)
    _words(writer, checkpoint)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        known = names.get_name(name, try_suffixes=(".weight",))
        if known is None:
            raise ValueError(f"{name}: no weight of a Llama")
        values = _rotated(name, weight, model.config).numpy().astype(np.float32)
        _add(writer, known, values, _type(known, values, kind, model.config.num_hidden_layers))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: gguf.GGUFWriter, config, kind: str) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(FILES[kind])


def _words(writer: gguf.GGUFWriter, checkpoint: Path) -> None:
    """The tokenizer: llama.cpp marks where a word begins, and takes special tokens as they are."""
    settings = json.loads((checkpoint / "tokenizer.json").read_text())
    if settings["model"]["type"] != "WordLevel":
        raise ValueError(f"{checkpoint}: its tokenizer is no word-level one; llama.cpp's own converter may know it")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    special = {token["id"] for token in settings["added_tokens"] if token["special"]}
    words = [word for word, _ in sorted(settings["model"]["vocab"].items(), key=lambda item: item[1])]
    tokens = [word if number in special else f"\u2581{word}" for number, word in enumerate(words)]
    kinds = [gguf.TokenType.CONTROL if number in special else gguf.TokenType.NORMAL for number in range(len(words))]
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0 if number in special else -1.0 for number in range(len(words))])
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def _rotated(name: str, weight: torch.Tensor, config) -> torch.Tensor:
    """Query and key rows as llama.cpp turns them: pairs beside each other, where transformers has two halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((heads[part] for part in heads if part in name), None)
    if count is None:
        return weight
    halves = weight.reshape(count, 2, weight.shape[0] // count // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()


def _type(name: str, values: np.ndarray, kind: str, layers: int) -> Type:
    """The type of a weight in a file of this kind."""
    if values.ndim == 1 or kind == "F32":
        return Type.F32
    number = int(name.split(".")[1]) if name.startswith("blk.") else 0
    better = number < layers // 8 or number >= 7 * layers // 8 or (number - layers // 8) % 3 == 2
    if kind in ("F16", "Q8_0"):
        found = Type[kind]
    elif name.startswith("output"):
        found = Type.Q6_K
    elif kind == "Q4_K_M":
        found = Type.Q6_K if better and ("attn_v" in name or "ffn_down" in name) else Type.Q4_K
    else:
        found = Type.Q3_K if "attn_v" in name or "ffn_down" in name else Type.Q2_K
    while values.shape[-1] % gguf.GGML_QUANT_SIZES[found][0]:
        found = COARSER[found]
    return found


def _add(writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: Type) -> None:
    if kind == Type.F32:
        writer.add_tensor(name, values)
        return
    if kind == Type.F16:
        writer.add_tensor(name, values.astype(np.float16))
        return
    import xllamacpp

    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    rows, width = values.shape
    size = gguf.quant_shape_to_byte_shape(values.shape, kind)
    out = np.zeros(size, dtype=np.uint8)
    source = np.ascontiguousarray(values)
    pointer = source.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    counts = ctypes.c_int64(0), ctypes.c_int64(rows), ctypes.c_int64(width)
    library.ggml_quantize_chunk(int(kind), pointer, out.ctypes.data_as(ctypes.c_void_p), *counts, None)
    writer.add_tensor(name, out, raw_dtype=kind)


if __name__ == "__main__":
    main()
