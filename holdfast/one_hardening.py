"""One checkpoint hardened into a new folder, in this process: what the command and the Python function share."""

from collections.abc import Callable
from pathlib import Path

from holdfast import disk, packed, policy, shards, spent
from holdfast.checkpoint import locate
from holdfast.drive import Drive
from holdfast.interrupted import resumable
from holdfast.method import Defense, Journal
from holdfast.record import Cost


def harden(
    defense: Defense, name: str, model: str, out: Path, base: str | None, corpus: Path | None, drive: Drive,
    say: Callable[[str], None],
) -> Cost:  # fmt: skip
    """Write the hardened `model` to `out`; what it took. What stands in `out` is whole; after a kill the same call goes on.

    Args:
        name: what the defense is called in the lines that go to `say`.

    Raises:
        Problem: something cannot be read, or `out` is taken.
    """
    before = locate(base) if base else None
    hand = policy.prompts(corpus).hand("defender") if corpus else None
    folder = packed.plain(model)
    disk.refuse_taken(out)
    with resumable(out) as aside, spent.counted(aside / f"spent-{shards.rank()}.json") as count:
        defense.harden(before, folder, out, hand, Journal(name, say, aside), drive)
    return count.cost
