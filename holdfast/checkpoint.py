"""A Hugging Face checkpoint on disk, tensor by tensor: which file holds what, is it all there, is it safe to read.

Knows file formats, not architectures. Only safetensors are read: a pickled file can run code when it is opened.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from holdfast.problem import Problem
from holdfast.sizes import refuse_absurd

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Checkpoint:
    """A folder with `config.json` and safetensors, checked for completeness when opened.

    Attributes:
        folder: where it lies.
        config: the parsed `config.json`.
        files: tensor name -> name of the file that holds it, in file order.
        shards: names of the weight files, in index order.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        if (folder / "adapter_config.json").exists():
            raise Problem(
                f"{folder}: is an adapter beside its base; run: holdfast unpack {folder} --out FOLDER, and give that folder"
            )
        self.config: dict[str, Any] = _json(folder / "config.json", "every checkpoint needs one")
        self._promised = self._read_index()
        self.shards = self._find_shards()
        self._handles = ExitStack()
        self._open: dict[str, Any] = {}
        self.files: dict[str, str] = {}
        for shard in self.shards:
            handle = self._shard(shard)
            self.files.update(dict.fromkeys(handle.keys(), shard))
        self._refuse_missing()
        biggest = max((math.prod(self.shape(name)) for name in self.files), default=0)
        refuse_absurd(self.config, len(self.files), biggest, folder / "config.json")

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()
        self._handles.close()

    def tensor(self, name: str) -> torch.Tensor:
        """The stored tensor, on the CPU, in its stored type; read from disk at each call."""
        return self._shard(self.files[name]).get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, without reading it."""
        return tuple(self._shard(self.files[name]).get_slice(name).get_shape())

    def stored(self, name: str, shape: tuple[int, ...]) -> str | None:
        """The stored tensor of that shape that a model's weight `name` is read from; None if there is none.

        Some checkpoints leave out the model's own prefix, as the hub's gpt2: `h.0...` for `transformer.h.0...`.
        """
        names = (name, name.partition(".")[2])
        return next((one for one in names if one in self.files and self.shape(one) == shape), None)

    def settings(self, name: str) -> dict[str, Any]:
        """The parsed JSON file `name` of the folder; empty if there is none."""
        return _json(self.folder / name, "") if (self.folder / name).exists() else {}

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def hash(self) -> str:
        """SHA-256 over names, types, shapes and bytes, independent of how the tensors are spread over files."""
        return weights_hash((name, self.tensor(name)) for name in sorted(self.files))

    def _read_index(self) -> dict[str, str]:
        """Which file the index promises for each tensor; empty where there is no index."""
        path = self.folder / INDEX
        if not path.exists():
            return {}
        promised = _json(path, "").get("weight_map")
        if not (isinstance(promised, dict) and promised and all(isinstance(shard, str) for shard in promised.values())):
            raise Problem(f"{path}: names no weights; the file is damaged, fetch it again")
        for shard in promised.values():
            if Path(shard).name != shard:
                raise Problem(f"{path}: names a file outside the folder ({shard!r}); mend the index")
        return promised

    def _find_shards(self) -> list[str]:
        if self._promised:
            return list(dict.fromkeys(self._promised.values()))
        if (self.folder / SINGLE).is_file():
            return [SINGLE]
        if pickled := sorted(p.name for p in self.folder.glob("*") if p.suffix in {".bin", ".pt", ".pth", ".pkl"}):
            raise Problem(
                f"{self.folder}: its weights are pickled ({pickled[0]}), which can run code when opened; "
                "convert them to safetensors, or ask their publisher for safetensors"
            )
        raise Problem(f"{self.folder}: holds no {SINGLE}; is this the folder of a model, and is the download complete?")

    def _shard(self, name: str) -> Any:
        if name not in self._open:
            path = self.folder / name
            if not os.path.isfile(path):  # also of a name that no file can have
                raise Problem(f"{path}: named in the index but missing; the download is not complete, fetch it again")
            try:
                self._open[name] = self._handles.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise Problem(
                    f"{path}: cannot be read ({error}); the file is cut short or damaged, fetch it again"
                ) from error
        return self._open[name]

    def _refuse_missing(self) -> None:
        for name, shard in self._promised.items():
            if name not in self.files:
                raise Problem(f"{self.folder / shard}: lacks tensor {name!r} that the index promises; fetch it again")


def weights_hash(tensors: Iterator[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over (name, type, shape, bytes) of each tensor, in the order given."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def locate(name: str) -> Path:
    """The folder of a checkpoint: `name` itself, or the download of the hub model of that id (safetensors only).

    Raises:
        Problem: neither a folder nor a model that the hub hands out.
    """
    folder = Path(os.path.expanduser(name))
    if os.path.isdir(folder):
        return folder
    if name.startswith(("http://", "https://")) or name.endswith(".gguf"):
        raise Problem(
            f"{name}: only answers; give a checkpoint here (holdfast unpack FILE.gguf --out FOLDER makes one of a file)"
        )
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise Problem(
            f"{name}: no such folder; give the folder of a Hugging Face checkpoint or a hub id like owner/model"
        )
    from huggingface_hub import snapshot_download  # 0.4 s to import, and most subjects are folders

    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]))
    except Exception as error:  # the hub's client raises a dozen kinds, all meaning that there is no model
        raise Problem(
            f"{name}: no such folder, and the hub gave no model of that id ({type(error).__name__})"
        ) from error


def _json(path: Path, why: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Problem(f"{path}: missing; {why}: is this the folder of a model, and is the download complete?") from None
    except (ValueError, RecursionError) as error:
        raise Problem(f"{path}: not valid JSON ({error}); the file is damaged, fetch it again") from error
    except OSError as error:
        raise Problem(f"{path}: cannot be read ({error.strerror}); fetch it again") from error
    if not isinstance(content, dict):
        raise Problem(f"{path}: holds no settings by name; the file is damaged, fetch it again")
    return content
