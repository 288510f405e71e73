"""What the same command goes on from after an interruption: a folder beside the checkpoint that is being made."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from holdfast import disk, shards


@contextlib.contextmanager
def resumable(out: Path) -> Iterator[Path]:
    """A folder beside `out` for what a hardening needs to go on after a kill; deleted when it is done, or nothing is in it.

    Raises:
        KeyboardInterrupt: passed on, and says what the same command will do.
    """
    aside = disk.private(Path(os.path.abspath(out)).parent / f".{out.name}.work")
    if shards.rank():
        yield aside  # the first process looks after it
        return
    with disk.alone(aside):
        try:
            yield aside
        except BaseException as end:
            kept = any(aside.glob("*.safetensors"))
            if not kept:
                shutil.rmtree(aside)
            if isinstance(end, KeyboardInterrupt):
                where = "goes on from where it was last saved" if kept else "begins anew: nothing was saved yet"
                raise KeyboardInterrupt(f"the same command {where}") from None
            raise
        shutil.rmtree(aside)
