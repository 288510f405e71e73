"""From a name to something that answers: a checkpoint, plain or as it ships, a GGUF file, an address."""

import hashlib
import os
from pathlib import Path

from holdfast import disk, packed
from holdfast.checkpoint import locate
from holdfast.drive import Drive
from holdfast.lm import LM
from holdfast.served import Behind, Local, Served

Place = Path | str
"""A folder or file, or an address."""


def is_address(name: Place) -> bool:
    return str(name).startswith(("http://", "https://"))


def is_served(name: Place) -> bool:
    """Whether what is called so can only be asked."""
    return is_address(name) or str(name).endswith(".gguf")


def located(name: str) -> Place:
    """An address as it is, a GGUF file, or the folder of a checkpoint. Raises as `locate`."""
    return name if is_address(name) else Path(os.path.abspath(name)) if name.endswith(".gguf") else locate(name)


def opened(
    name: Place,
    *,
    base: Path | None = None,
    drive: Drive = Drive(),
    device: str | None = None,
    finite: bool = True,
) -> LM | Served:
    """What is called so, ready to be asked: a checkpoint as `LM.load` loads it, also a quantized one or an adapter as it ships,
    an address as `https://host/v1#model`, or a GGUF file. Raises `Problem` for what cannot be asked."""
    place = located(str(name))
    if isinstance(place, str):
        return Behind(place, drive)
    if place.suffix == ".gguf":
        return Local(place, drive)
    if (place / packed.ADAPTER).is_file():
        return packed.adapted(place, drive, device)
    return LM.load(place, base=base, drive=drive, device=device, finite=finite)


def digest(lm: LM | Served) -> str:
    """SHA-256 of what ships: of its weight files by name, an adapter's with its base's; of a GGUF file; of an address."""
    if isinstance(lm, Served):
        return lm.hash()
    found, folders = hashlib.sha256(), [lm.folder]
    if (lm.folder / packed.ADAPTER).is_file() and lm.base:
        folders.append(lm.base)
    for file in (file for folder in folders for file in sorted(folder.glob("*.safetensors"))):
        found.update(file.name.encode() + bytes.fromhex(disk.digest(file)))
    return found.hexdigest()
