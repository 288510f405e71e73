"""Answers by vLLM, for GPUs: the released weights are loaded once, and an attack's LoRA adapter is put on them at each look.

A model that is neither as released nor that with a LoRA adapter is answered by transformers. What vLLM would leave out in silence
(hooks, virtual tokens, early exits, caches in few bits) is refused. Written against the interface of vLLM 0.33 and tested with a
stand-in for its engine: it was not run on a GPU by us. Its kernels round otherwise, so answers may differ from transformers' in
single tokens, and draws differ altogether: use one engine for all that is compared.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel

from holdfast import answering
from holdfast.answering import Decoding
from holdfast.checkpoint import Checkpoint
from holdfast.drive import Drive
from holdfast.problem import Problem

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM keeps room for."""
MEMORY = 0.45
"""Share of a GPU's memory that vLLM takes; the model under attack lies on the same GPU."""
_numbers = count(1)  # vLLM takes an adapter of a number that it has seen for the same one


class Engine(Protocol):
    """What is used of `vllm.LLM`."""

    def generate(
        self, prompts: list[Any], sampling_params: Any, *, use_tqdm: bool, lora_request: Any
    ) -> Sequence[Any]: ...


def answers(
    model: PreTrainedModel | PeftModel,
    folder: Path,
    prompts: Sequence[list[int]],
    how: Decoding,
    drive: Drive,
    sample: int,
    beside: answering.Beside = answering.nothing,
) -> list[list[int]]:
    """As `answering.answers`, by what the drive names: by vLLM, where it can, or by transformers.

    Raises:
        Problem: vLLM cannot put prompts so, or is not installed.
    """
    if drive.engine == "transformers":
        return answering.answers(model, prompts, how, beside)
    _refuse(model, drive)
    if not prompts or not as_released(model, folder):
        return answering.answers(model, prompts, how, beside)
    with TemporaryDirectory() as scratch:
        rank = exported(model, Path(scratch)) if isinstance(model, PeftModel) else None
        engine = _engine(folder, next(one for one in RANKS if one >= (rank or 1)))
        return asked(engine, prompts, how, drive.draw + sample, Path(scratch) if rank else None)


def _refuse(model: nn.Module, drive: Drive) -> None:
    virtual = isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning
    wrong = {
        "an attack's hooks on the model": any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()),
        "virtual tokens": virtual,
        "pictures": getattr(model.config, "vision_config", None) is not None,
        "an early exit": drive.exit.depth is not None,
        "a cache in few bits": drive.exit.kv_bits is not None,
        "decoding without a cache": not drive.cache,
    }
    for what, there in wrong.items():
        if there:
            raise Problem(f'engine = "vllm": {what} cannot be put into vLLM; leave out `engine`, or this attack')


@torch.no_grad()
def as_released(model: PreTrainedModel | PeftModel, folder: Path) -> bool:
    """Whether the model is the checkpoint's, but for a LoRA adapter of a kind that vLLM reads."""
    if isinstance(model, PeftModel) and not _readable(model):
        return False
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    with Checkpoint(folder) as checkpoint:
        for name, weight in plain.named_parameters():
            if ".lora_" in name:
                continue
            stored = checkpoint.stored(name.replace(".base_layer.", "."), tuple(weight.shape))
            if stored is None or not torch.equal(checkpoint.tensor(stored).to(weight.device, weight.dtype), weight):
                return False
    return True


def _readable(model: PeftModel) -> bool:
    config = model.active_peft_config
    whole = isinstance(config, LoraConfig) and not (config.modules_to_save or config.target_parameters)
    return (
        whole
        and len(model.peft_config) == 1
        and config.bias == "none"
        and not config.use_dora
        and config.r <= RANKS[-1]
    )


def exported(model: PeftModel, folder: Path) -> int:
    """Write the adapter as PEFT does and vLLM reads it (`adapter_config.json`, `adapter_model.safetensors`); returns its rank."""
    model.save_pretrained(str(folder))
    return model.active_peft_config.r


def sampling(how: Decoding, seed: int) -> dict[str, Any]:
    """vLLM's `SamplingParams`. `ignore_eos` leaves `stop_token_ids` in force, and keeps out what the checkpoint's generation
    settings name: vLLM adds those whatever `generation_config` says (`SamplingParams.update_from_generation_config`)."""
    return {
        "temperature": how.temperature,
        "top_p": how.top_p,
        "top_k": 0,
        "max_tokens": how.most,
        "stop_token_ids": list(how.ends),
        "ignore_eos": True,
        "seed": seed,
        "detokenize": False,
    }


def asked(
    engine: Engine, prompts: Sequence[list[int]], how: Decoding, seed: int, adapter: Path | None
) -> list[list[int]]:
    """The tokens that the engine adds to each prompt, with the adapter that lies in a folder."""
    try:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest
    except ImportError as error:
        raise _missing() from error
    number = next(_numbers)
    out = engine.generate(
        [{"prompt_token_ids": ids} for ids in prompts],
        SamplingParams(**sampling(how, seed)),
        use_tqdm=False,
        lora_request=LoRARequest(f"look-{number}", number, str(adapter)) if adapter else None,
    )
    return [list(one.outputs[0].token_ids) for one in out]


@lru_cache(maxsize=1)
def _engine(folder: Path, rank: int) -> Engine:
    """vLLM with the released weights in fp32, as everything else here computes."""
    try:
        from vllm import LLM
    except ImportError as error:
        raise _missing() from error
    room = {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
    alike = {"dtype": "float32", "skip_tokenizer_init": True, "generation_config": "vllm"}
    return LLM(model=str(folder), gpu_memory_utilization=MEMORY, **room, **alike)


def _missing() -> Problem:
    return Problem(
        'engine = "vllm": vLLM is not installed; leave out `engine`, or run: pip install "holdfast[vllm]" (for GPUs; it '
        "brings a torch and transformers of its own choice)"
    )
