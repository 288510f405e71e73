"""Checkpoints that ship in another form than plain weights: quantized as saved, an adapter beside its base, a GGUF file.

As they ship they can be asked (`opening`). Whoever means to change them unpacks them first, into an ordinary checkpoint of the
same numbers: on that every attack and every cut can be tried, and so can a repair.
"""

import copy
import json
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, modeling_gguf_pytorch_utils
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import logging

from holdfast import disk
from holdfast.checkpoint import locate
from holdfast.drive import Drive
from holdfast.lm import LM
from holdfast.loading import loaded, ready, refuse_code, sees
from holdfast.problem import Problem, printable
from holdfast.sight import Sight
from holdfast.sizes import refuse_false_gguf

modeling_gguf_pytorch_utils.tqdm = logging.tqdm  # whose switch for bars the one of GGUF files does not heed else
ADAPTER = "adapter_config.json"


def form(place: Path) -> str | None:
    """In what other form than plain weights a file or folder holds a model, in a few words; None where it does not."""
    if place.suffix == ".gguf":
        return "a GGUF file"
    if (place / ADAPTER).is_file():
        return "an adapter beside its base"
    settings = _settings(place / "config.json").get("quantization_config")
    return f"quantized ({settings.get('quant_method', 'by an unknown method')})" if isinstance(settings, dict) else None


def plain(name: str) -> Path:
    """The checkpoint of that name, whose weights can be changed as they lie there. Raises `Problem` where they cannot."""
    place = locate(name)
    if found := form(place):
        raise Problem(
            f"{place}: is {found}, and what changes weights needs plain ones; run: holdfast unpack {place} --out FOLDER, "
            "and give that folder"
        )
    return place


def adapted(folder: Path, drive: Drive, device: str | None = None) -> LM:
    """A base with its adapter on it, as PEFT serves it.

    Raises:
        Problem: the base is not there, or the adapter does not fit it.
    """
    base, (tokenizer, model) = _based(folder)
    model = _with(model, folder)
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    eyes = _eyes(base, model)
    ready(tokenizer, model, drive, base)
    return LM(model, tokenizer, folder, base, drive, eyes)


def _based(folder: Path) -> tuple[Path, tuple[PreTrainedTokenizerBase, PreTrainedModel]]:
    """An adapter's base, and what it loads as, with the adapter's own tokenizer if it has one."""
    settings = _settings(folder / ADAPTER)
    named, kind = settings.get("base_model_name_or_path"), settings.get("peft_type")
    if not isinstance(named, str) or not named:
        raise Problem(f"{folder / ADAPTER}: names no base; add base_model_name_or_path")
    if kind != "LORA":
        raise Problem(f"{folder}: is an adapter of type {printable(kind)}; only LoRA's can be read")
    if not (folder / "adapter_model.safetensors").is_file():
        raise Problem(f"{folder}: holds no adapter_model.safetensors; save the adapter as safetensors")
    base = locate(named)
    tokenizer, model = loaded(base)
    if (folder / "tokenizer_config.json").is_file():
        try:
            refuse_code(_settings(folder / "tokenizer_config.json"), folder / "tokenizer_config.json")
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise Problem(f"{folder}: its tokenizer cannot be loaded ({' '.join(str(error).split())})") from error
    return base, (tokenizer, model)


def _with(model: PreTrainedModel, folder: Path) -> Any:
    try:
        return PeftModel.from_pretrained(model, folder, low_cpu_mem_usage=False)
    except Exception as error:  # PEFT raises whatever its parts do
        raise Problem(f"{folder}: does not fit its base ({' '.join(str(error).split())})") from error


def _merged(model: Any, folder: Path) -> PreTrainedModel:
    try:
        return model.merge_and_unload()
    except Exception as error:  # of kinds of adapters that cannot be
        raise Problem(f"{folder}: cannot be merged into its base ({' '.join(str(error).split())})") from error


def unpack(place: Path, out: Path) -> str:
    """Write the same numbers as an ordinary fp32 checkpoint; says what they were before.

    Raises:
        Problem: it is plain already, its library is missing, or transformers cannot read it.
    """
    found = form(place)
    if found is None:
        raise Problem(f"{place}: holds plain weights already; give it as it is")
    disk.refuse_taken(out)
    tokenizer, model, eyes = _plain(place)
    with disk.whole(out) as aside:
        model.save_pretrained(aside)
        (eyes.save(aside, tokenizer) if eyes else tokenizer.save_pretrained(aside))
    return found


def _plain(place: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel, Sight | None]:
    if place.suffix == ".gguf":
        return *_from_gguf(place), None
    if (place / ADAPTER).is_file():
        base, (tokenizer, model) = _based(place)
        plain = _dense(model, base) if form(base) else model  # merged into few bits, both would be rounded once more
        return tokenizer, _merged(_with(plain, place), place), _eyes(base, plain)
    tokenizer, model = loaded(place)
    return tokenizer, _dense(model, place), _eyes(place, model)


def _eyes(folder: Path, model: PreTrainedModel) -> Sight | None:
    return Sight.load(folder) if sees(model.config.to_dict()) else None


def _from_gguf(file: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    if re.search(r"-\d{5}-of-(?!00001)\d{5}\.gguf$", file.name):
        raise Problem(
            f"{file}: is one of several parts, which transformers does not join; do so with `llama-gguf-split --merge`"
        )
    refuse_false_gguf(file)
    try:
        with TemporaryDirectory() as alone:  # what lies beside the file is no part of it
            os.symlink(file.resolve(), Path(alone) / "model.gguf")
            how = {"gguf_file": "model.gguf", "trust_remote_code": False}
            tokenizer = AutoTokenizer.from_pretrained(alone, **how)
            model = AutoModelForCausalLM.from_pretrained(alone, **how, dtype=torch.float32)
    except Exception as error:  # transformers and the libraries below it raise a dozen kinds
        raise Problem(f"{file}: transformers cannot read it ({' '.join(str(error).split())})") from error
    return tokenizer, _anew(model)


def _dense(model: PreTrainedModel, place: Path) -> PreTrainedModel:
    """The same model with weights of floating-point numbers."""
    try:
        model = model.dequantize()
    except NotImplementedError:
        pass  # of torchao, whose tensors know it themselves
    except Exception as error:
        raise Problem(f"{place}: cannot be dequantized ({' '.join(str(error).split())})") from error
    return _anew(model)


def _anew(model: PreTrainedModel) -> PreTrainedModel:
    """A model of its numbers that knows nothing of how they were packed."""
    config = copy.deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)
    plain = type(model)(config).float()
    plain.load_state_dict({name: weight.dequantize().float() for name, weight in model.state_dict().items()})
    plain.generation_config = model.generation_config
    return plain


def _settings(path: Path) -> dict[str, Any]:
    """A JSON file's content; nothing where there is none, or none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
