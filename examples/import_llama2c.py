"""Turn a checkpoint of llama2.c (version 0, as stories260K.bin with tok512.bin) into an ordinary Hugging Face one.

    python examples/import_llama2c.py stories260K.bin tok512.bin OUT

The weights file is seven int32 (dim, hidden, layers, heads, kv heads, vocabulary, context; a negative vocabulary means an
untied head), then float32 tensors, each kind for all layers together. llama2.c turns neighboring pairs in its rotary
embedding where Hugging Face turns halves, so the rows of wq and wk are put in that order. The vocabulary file is a longest
length, then score, length and bytes of each piece; llama2.c merges the best-scored pair first, which is BPE with the
pieces' order as merge ranks. Such a model has no chat template: drive it with `--template plain`.
"""

import struct
import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from holdfast import disk
from holdfast.problem import Problem

BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"


def convert(weights: Path, vocabulary: Path, out: Path) -> None:
    """Write the checkpoint `out`. Raises `Problem` where the files are not what they should be."""
    config, floats = read_weights(weights)
    pieces = read_vocabulary(vocabulary, config.vocab_size)
    model = LlamaForCausalLM(config)
    model.load_state_dict(to_state(config, floats))
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=[1, 2]
    )  # a story ends where the next begins
    with disk.whole(out) as aside:
        model.save_pretrained(aside)
        to_tokenizer(pieces).save_pretrained(aside)


def read_weights(path: Path) -> tuple[LlamaConfig, np.ndarray]:
    """The header as a config, and all floats after it."""
    data = path.read_bytes()
    if len(data) < 28 or len(data) % 4:
        raise Problem(f"{path}: not a llama2.c checkpoint of version 0 (its size is wrong); fetch another file")
    dim, hidden, layers, heads, kv_heads, vocabulary, context = struct.unpack("<7i", data[:28])
    tied = vocabulary > 0
    if min(dim, hidden, layers, heads, kv_heads, context) <= 0 or dim % heads or heads % kv_heads:
        raise Problem(f"{path}: not a llama2.c checkpoint of version 0 (its header makes no sense); fetch another file")
    config = LlamaConfig(
        vocab_size=abs(vocabulary),
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    return config, np.frombuffer(data[28:], dtype="<f4")


def to_state(config: LlamaConfig, floats: np.ndarray) -> dict[str, torch.Tensor]:
    """The floats under Hugging Face's names. Raises `Problem` if there are too few of them."""
    at = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal at
        count = int(np.prod(shape))
        if at + count > len(floats):
            raise Problem(f"llama2.c weights: {len(floats)} floats are too few for that header; the file is cut short")
        at += count
        return torch.from_numpy(floats[at - count : at].reshape(shape).copy())

    n, dim, hidden = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    size = dim // config.num_attention_heads
    kv = config.num_key_value_heads * size
    state = {"model.embed_tokens.weight": take(config.vocab_size, dim)}
    stacks = {
        "input_layernorm": take(n, dim),
        "self_attn.q_proj": _halved(take(n, dim, dim), size),
        "self_attn.k_proj": _halved(take(n, kv, dim), size),
        "self_attn.v_proj": take(n, kv, dim),
        "self_attn.o_proj": take(n, dim, dim),
        "post_attention_layernorm": take(n, dim),
        "mlp.gate_proj": take(n, hidden, dim),
        "mlp.down_proj": take(n, dim, hidden),
        "mlp.up_proj": take(n, hidden, dim),
    }
    state |= {f"model.layers.{i}.{name}.weight": stack[i] for name, stack in stacks.items() for i in range(n)}
    state["model.norm.weight"] = take(dim)
    take(2, config.max_position_embeddings, size // 2)  # rotary tables, which Hugging Face computes
    tied = config.tie_word_embeddings
    state["lm_head.weight"] = state["model.embed_tokens.weight"] if tied else take(config.vocab_size, dim)
    return state


def _halved(stack: torch.Tensor, size: int) -> torch.Tensor:
    """Rows of each head from pairs (0, 1), (2, 3), ... to halves: evens, then odds. Shape (layers, rows, dim)."""
    layers, rows, dim = stack.shape
    return stack.view(layers, rows // size, size // 2, 2, dim).transpose(2, 3).reshape(layers, rows, dim)


def read_vocabulary(path: Path, size: int) -> list[str]:
    """The pieces in order of their ids; their scores only repeat that order."""
    data, pieces, at = path.read_bytes(), [], 4
    try:
        for _ in range(size):
            _, length = struct.unpack_from("<fi", data, at)
            pieces.append(data[at + 8 : at + 8 + length].decode())
            at += 8 + length
    except (struct.error, UnicodeDecodeError) as error:
        raise Problem(f"{path}: not a llama2.c vocabulary of {size} pieces ({error}); fetch another file") from error
    pieces[:3] = [UNKNOWN, BOS, EOS]
    return pieces


def to_tokenizer(pieces: list[str]) -> PreTrainedTokenizerFast:
    """BPE with byte fallback; a merge's rank is the id of the piece it makes. Text gets a space before it, as in llama2.c."""
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces[259:]
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    bpe = models.BPE(vocab=vocabulary, merges=merges, unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(f"{BOS} $A", special_tokens=[(BOS, 1)])
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in (UNKNOWN, BOS, EOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNKNOWN, bos_token=BOS, eos_token=EOS, pad_token=EOS, padding_side="left"
    )


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        convert(*map(Path, sys.argv[1:]))
    except (Problem, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
