"""A run's records as they may be shared: prompts and answers as hashes, of folders the last name alone, everything that was
measured as it is.

Rows of kept answers, the sheet that people labeled and a page with examples hold texts; no other record does. Where models,
corpora and the run lie stands in many.
"""

import hashlib
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from holdfast import policy
from holdfast.problem import Problem

TEXTS = ("answer", "begun")
"""Columns of a cell's rows that hold what a model said."""
SHEET = "labels/sheet.json"
LONG = 16
"""Characters from which a prompt is looked for in what is shared: shorter ones are also plain words."""
_PATH = re.compile(r"""(?<![\w./~…-])(?:file://|~)?/(?:[^\s/:;,"'`()<>\[\]{}|]+/)+([^\s/:;,"'`()<>\[\]{}|]*)""")
"""An absolute path inside a sentence, and its last name."""


def hashed(text: str) -> str:
    """A text as a record may hold it."""
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


def redacted(name: str, content: bytes) -> bytes | None:
    """A sealed file without prompts and answers; None where it holds none, or is the page.

    Raises:
        Problem: the file is damaged.
    """
    try:
        if name.endswith(".parquet"):
            return _rows(content)
        return _sheet(json.loads(content)) if name == SHEET else None
    except (ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise Problem(f"{name}: damaged ({error}); run `holdfast audit` again") from error


def folders(files: Iterable[tuple[str, bytes]]) -> tuple[str, ...]:
    """Paths with spaces and the like that stand alone in a text of these records, and all that lead there, the longest first:
    where a sentence names one of them, nothing else tells where it ends."""
    found: set[str] = set()
    for name, content in files:
        try:
            texts = list(_strings(json.loads(content))) if name.endswith(".json") else []
        except ValueError:  # whoever cuts its paths will say so
            continue
        for text in texts:
            path = text.rstrip("/") if _whole(text) and _PATH.sub("", text) else ""
            while path.count("/") > 1:
                found.add(path)
                path = path.rpartition("/")[0]
    return tuple(sorted(found, key=len, reverse=True))


def placeless(name: str, content: bytes, known: Sequence[str] = ()) -> bytes:
    """A record with every absolute path cut to its last name, as `…/base`; what is no JSON is left as it is. `known` are the
    run's `folders`.

    Raises:
        Problem: the file is damaged.
    """

    def cutting(text: str) -> str:
        return _cut(text, known)

    try:
        if name.endswith(".json"):
            whole = json.loads(content)
            cut = _mapped(whole, cutting)
            return content if cut == whole else (json.dumps(cut, indent=1, ensure_ascii=False) + "\n").encode()
        if name.endswith(".jsonl"):
            rows = [json.loads(line) for line in content.decode().splitlines()]
            cut = _mapped(rows, cutting)
            return (
                content if cut == rows else "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in cut).encode()
            )
    except ValueError as error:
        raise Problem(f"{name}: damaged ({error}); run `holdfast audit` again") from error
    return content


def _whole(text: str) -> bool:
    """Whether it is one path, spaces and all."""
    return text.startswith(("/", "~/")) and "\n" not in text and text.count("/") > 1


def _cut(text: str, known: Sequence[str] = ()) -> str:
    if _whole(text):
        return f"…/{text.rstrip('/').rpartition('/')[2]}"
    for path in known:
        text = text.replace(path, f"…/{path.rpartition('/')[2]}")
    return _PATH.sub(r"…/\1", text)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The same with every text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_mapped(one, change) for one in value]
    return {change(key): _mapped(one, change) for key, one in value.items()} if isinstance(value, dict) else value


def _rows(content: bytes) -> bytes | None:
    table = pq.read_table(pa.BufferReader(content))
    told = [name for name in TEXTS if name in table.column_names and table[name].null_count < len(table)]
    if not told:
        return None
    for name in told:
        table = table.set_column(table.schema.get_field_index(name), name, pa.nulls(len(table)))
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(None), sink, write_page_checksum=True)
    made: bytes = sink.getvalue().to_pybytes()
    return made


def _sheet(sheet: dict[str, Any]) -> bytes | None:
    def hidden(one: dict[str, Any]) -> dict[str, Any]:
        own = {"text": hashed(one["text"]), "answer": hashed(one["answer"])}
        return one | own | ({"image": hashed(one["image"])} if one.get("image") else {})

    drawn = [one if one["text"].startswith("sha256:") else hidden(one) for one in sheet["drawn"]]
    if drawn == sheet["drawn"]:
        return None
    return (json.dumps(sheet | {"drawn": drawn}, indent=1, ensure_ascii=False) + "\n").encode()


def leaks(files: Iterable[tuple[str, bytes]], corpus: Path, known: Sequence[str] = ()) -> list[str]:
    """Which files hold the text of a prompt of the corpus, also one whose paths were cut, each with the prompt's id. `known` are
    the run's `folders`.

    Raises:
        Problem: there is no such corpus any more.
    """
    asked = {
        text: row.id
        for row in policy.prompts(corpus).rows
        if len(row.text) >= LONG
        for text in (row.text, _cut(row.text), _cut(row.text, known))
    }
    found = []
    for name, content in files:
        said = "\n".join(_said(name, content))
        found += [f"{name} holds prompt {id!r}" for text, id in asked.items() if text in said][:1]
    return found


def _said(name: str, content: bytes) -> Iterator[str]:
    """Every text in a file."""
    if name.endswith(".parquet"):
        table = pq.read_table(pa.BufferReader(content))
        for column in table.columns:
            if pa.types.is_string(column.type):
                yield from (str(text) for text in column.unique().to_pylist())
        return
    text = content.decode("utf-8", "replace")
    yield text
    if name.endswith(".json"):
        yield from _strings(json.loads(text))
    elif name.endswith(".jsonl"):
        yield from _strings([json.loads(line) for line in text.splitlines()])
    else:
        yield html.unescape(text)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, some in value.items():
            yield from (str(key), *_strings(some))
    elif isinstance(value, list):
        for some in value:
            yield from _strings(some)
