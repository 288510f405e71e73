"""The files of somebody's data sets dealt to the three hands, as a table says: which column is the prompt, who gets what.

Reads CSV, JSON, JSON lines (gzipped too) and Parquet, from a folder or from a hub. Of a transcript in HH-RLHF's form, or a list
of messages, the first exchange is taken. A prompt that another hand holds already is left out, and told. Knows no data set.
"""

import gzip
import json
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import hf_hub_download
from pydantic import Field

from holdfast import corpus
from holdfast.corpus import HandName, Kind, Row, Split
from holdfast.problem import Problem, printable
from holdfast.settings import Settings

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


class Share(Settings):
    """So many rows for a place."""

    hand: HandName
    split: Split
    count: int | None = Field(None, gt=0)
    """All that are left unless given."""


class Source(Settings):
    """One file, and what becomes of its rows."""

    file: str
    """Where it lies in its folder, or in the hub's data set."""
    hub: str | None = None
    """Id of the data set on the hub; None where it is to be fetched by hand."""
    revision: str | None = None
    """Of the hub's data set."""
    page: str = ""
    """Where to fetch it by hand."""
    place: str | None = None
    """A folder of one's own that holds `file`."""
    text: str
    """Column of the prompt, or of the whole exchange."""
    more: str | None = None
    """Column of what the prompt is about, put behind it where it is not empty."""
    answer: str | None = None
    """Column of the answer."""
    only: dict[str, str] = Field({})
    """Take only rows that have these values in these columns."""
    replace: dict[str, str] = Field({})
    """Words of the prompt to replace, as `She` by `They`."""
    kind: Kind
    order: Literal["file", "chance"] = "file"
    """In which rows are dealt; by chance it is the same for every source that reads the same file."""
    deal: list[Share] = Field([])
    """Nobody gets a row unless given: a method then reads the file itself."""


def gathered(sources: Mapping[str, Source], seed: int) -> tuple[list[Row], list[str]]:
    """Every row of the corpus; and what is to be known of it, line by line.

    Raises:
        Problem: a file is not there, is another one than its table says, or holds too few rows.
    """
    rows: list[Row] = []
    holders: dict[str, HandName] = {}
    notes = []
    for name, source in sources.items():
        dropped = 0
        for number, (text, answer, share) in enumerate(_dealt(name, source, seed)):
            if holders.setdefault(corpus.plain(text), share.hand) != share.hand:
                dropped += 1
                continue
            place = {"kind": source.kind, "hand": share.hand, "split": share.split, "source": name}
            rows.append(Row(id=f"{name}-{number:06}", text=text, answer=answer, **place))
        if dropped:
            notes.append(f"{name}: {dropped} rows are left out, because another hand holds their prompts")
    return rows, notes


def located(name: str, source: Source) -> Path:
    """The file of a source, fetched where it lies on the hub."""
    if source.place is not None:
        return Path(source.place).expanduser() / source.file
    instead = f"give the folder that holds {source.file} by --set data.{name}=FOLDER"
    if source.hub is None:
        raise Problem(f"{name}: is on no hub; fetch it from {source.page}, and {instead}")
    try:
        found = hf_hub_download(source.hub, source.file, repo_type="dataset", revision=source.revision)
    except Exception as error:  # the hub's client raises a dozen kinds
        raise Problem(f"{source.hub}: gave no {source.file} ({type(error).__name__}); {instead}") from error
    return Path(found)


def _dealt(name: str, source: Source, seed: int) -> Iterator[tuple[str, str | None, Share]]:
    """Prompt and answer of each row that somebody gets, and who gets it."""
    if not source.deal:
        return
    path = located(name, source)
    items = [_item(source, row, f"{path}, row {number}") for number, row in enumerate(read(path), 1)]
    items = [item for item in items if item and item[0].strip()]
    if source.order == "chance":
        random.Random(f"{seed} {source.file}").shuffle(items)
    left = iter(items)
    for share in source.deal:
        held = 0
        while (share.count is None or held < share.count) and (item := next(left, None)):
            held += 1
            yield *item, share
        if held < (share.count or 1):
            wanted = f"{share.count or 'any'} of its rows are the {share.hand}'s ({share.split})"
            raise Problem(f"{path}: {wanted}, and {held} are left; is it the whole file? fetch it again")


def _item(source: Source, row: dict[str, Any], where: str) -> tuple[str, str | None] | None:
    """Prompt and answer; None of a row that is not to be taken."""
    wanted = (source.text, source.more, source.answer, *source.only)
    if lacking := [name for name in wanted if name is not None and name not in row]:
        has = ", ".join(sorted(row)[:8])
        raise Problem(f"{where}: has no column {lacking[0]!r} but {has}; is it the right file?")
    if any(str(row[name]) != value for name, value in source.only.items()):
        return None
    text, answer = row[source.text], None if source.answer is None else str(row[source.answer])
    if isinstance(text, list) or _TURN.match(str(text)):
        text, answer = exchange(text)
    if source.more and row[source.more]:
        text = f"{text}\n\n{row[source.more]}"
    if source.replace:
        words = "|".join(map(re.escape, source.replace))
        text = re.sub(rf"\b({words})\b", lambda found: source.replace[found[0]], str(text))
    return str(text), answer


def exchange(talk: str | list[dict[str, str]]) -> tuple[str, str]:
    """The first prompt of a dialogue and its answer; a transcript has `Human:` and `Assistant:` before the turns."""
    if isinstance(talk, str):
        _, *parts = _TURN.split(talk)
        turns = list(zip(parts[::2], parts[1::2], strict=True))
    else:
        turns = [({"user": "Human", "assistant": "Assistant"}.get(one["role"], ""), one["content"]) for one in talk]
    first = {role: said.strip() for role, said in reversed(turns)}
    return first.get("Human", ""), first.get("Assistant", "")


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, by column. A JSON row that is a list of messages becomes one column, `messages`.

    Raises:
        Problem: there is no such file, it cannot be read, or it holds no row.
    """
    if not path.is_file():
        raise Problem(f"{path}: no such file; give the folder that holds it")
    try:
        rows = _rows(path)
    except (ValueError, OSError, EOFError, pa.ArrowException) as error:
        raise Problem(f"{path}: cannot be read ({printable(error)[:120]}); fetch it again") from error
    if not rows:
        raise Problem(f"{path}: holds no row; the download is not complete, fetch it again")
    return [row if isinstance(row, dict) else {"messages": row} for row in rows]


def _rows(path: Path) -> list[Any]:
    if path.suffix == ".parquet":
        return list(pq.read_table(path).to_pylist())
    if path.suffix == ".csv":
        return corpus.csv_rows(path, path.name)
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text(encoding="utf-8-sig")
    if ".json" not in path.suffixes:
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    whole = json.loads(text)
    return whole if isinstance(whole, list) else [whole]
