"""A section and an entry of metadata of one's own in somebody's model card, everything else left as it is.

The card's text is edited where YAML's parser says that something stands, never written anew: comments, order, quotes, line
endings, a byte order mark stay. What comes out is read again, and refused where anything but the one entry has changed.
"""

import copy
import re
from typing import Any, NamedTuple

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from holdfast.problem import Problem, printable

OURS = "holdfast"
"""The `dataset.type` of the one result that is ours."""
KEY = "model-index"
BEGIN = "<!-- holdfast:begin; `holdfast card` writes what stands from here to holdfast:end -->"
END = "<!-- holdfast:end -->"
_MARKS = re.compile(r"(?:^|(?<=\r))<!-- holdfast:(begin|end)\b[^\r\n]*?-->", re.MULTILINE)
_BOM = "\ufeff"


def merged(readme: str, section: str, result: dict[str, Any], name: str, where: str) -> str:
    """A model card with our section and our result in it, in place of earlier ones.

    Args:
        readme: the whole file; empty for a new one.
        section: Markdown, its lines ended by a line feed.
        result: one of the `results` of a `model-index`, with `dataset.type` as `OURS`.
        name: the model's, where the card has no `model-index`.
        where: how messages call the file.

    Raises:
        Problem: the card's metadata or marks are not such that one can be replaced and the rest kept.
    """
    mark, text = (_BOM, readme[1:]) if readme.startswith(_BOM) else ("", readme)
    newline = _newline(text)
    head, block, tail, body = _parted(text, newline, where)
    data = _loaded(block, where)
    if data:
        _accepted(head + block + tail, where)
    edited = _edited(block, data, result, name, newline, where)
    whole = head + edited + tail + _with_section(body, section, newline, where)
    _accepted(whole, where)
    return mark + whole


def _newline(text: str) -> str:
    """The line ending that most lines have."""
    both = text.count("\r\n")
    counts = {"\n": text.count("\n") - both, "\r\n": both, "\r": text.count("\r") - both}
    return max(counts, key=lambda one: counts[one])


def _parted(text: str, newline: str, where: str) -> tuple[str, str, str, str]:
    """Up to the metadata, the metadata, what closes them, and the rest."""
    if found := REGEX_YAML_BLOCK.search(text):
        return found[1], found[2], found[3], text[found.end() :]
    if re.match(r"\s*---[ \t]*(\r|\n|$)", text):
        raise Problem(
            f"{where}: its metadata are empty or lack the closing line ---; mend them or delete the first line"
        )
    return f"---{newline}", "", f"{newline}---{newline}", text


def _loaded(block: str, where: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load(block)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Problem(f"{where}: its metadata are no YAML ({printable(error)}); mend them") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise Problem(f"{where}: its metadata are no table of keys and values; mend them")
    return data


def _accepted(card: str, where: str) -> None:
    """Raises `Problem` where the hub's own library does not read the card's metadata."""
    try:
        ModelCard(card)
    except Exception as error:  # whatever its records raise
        raise Problem(f"{where}: its metadata are not a model card's ({printable(error)}); mend them") from error


# The section


def _with_section(body: str, section: str, newline: str, where: str) -> str:
    marks = [*_MARKS.finditer(body)]
    ours = newline.join([BEGIN, *section.strip("\n").split("\n"), END])
    if not marks:
        gap = "" if not body or body.endswith(("\n", "\r")) else newline
        return f"{body}{gap}{newline}{ours}{newline}"
    if [one[1] for one in marks] != ["begin", "end"]:
        raise Problem(
            f"{where}: the marks holdfast:begin and holdfast:end do not stand there once each, in this order; mend them"
        )
    return body[: marks[0].start()] + ours + body[marks[1].end() :]


# The metadata


class _Edit(NamedTuple):
    """What stands from one place to another, replaced."""

    start: int
    end: int
    by: str


def _edited(block: str, data: dict[str, Any], result: dict[str, Any], name: str, newline: str, where: str) -> str:
    """The metadata with our result in them."""
    root = yaml.compose(block, Loader=yaml.SafeLoader)
    edit = _edit(block, root, result, name, newline, where)
    edited = block[: edit.start] + edit.by + block[edit.end :]
    try:
        kept = yaml.safe_load(edited) == _expected(data, result, name)
    except yaml.YAMLError:
        kept = False
    if not kept:
        raise Problem(f"{where}, {KEY}: cannot be added to without disturbing the rest; write it in plain block style")
    return edited


def _expected(data: dict[str, Any], result: dict[str, Any], name: str) -> dict[str, Any]:
    found = copy.deepcopy(data)
    entries = found.get(KEY)
    if not entries:
        return found | {KEY: [{"name": name, "results": [result]}]}
    for entry in entries:
        for number, one in enumerate(entry["results"]):
            if _is_ours(one):
                entry["results"][number] = result
                return found
    entries[_chosen([entry["name"] for entry in entries], name)]["results"].append(result)
    return found


def _is_ours(result: Any) -> bool:
    return result["dataset"]["type"] == OURS


def _chosen(names: list[Any], name: str) -> int:
    """Which entry of a `model-index` is the model's: the one of that name, else the first."""
    return names.index(name) if name in names else 0


def _edit(block: str, root: Any, result: dict[str, Any], name: str, newline: str, where: str) -> _Edit:
    fresh = [{"name": name, "results": [result]}]
    if root is None:
        end = len(block.rstrip("\r\n"))
        return _Edit(end, end, (newline if end else "") + _block({KEY: fresh}, 0, newline))
    index = _value(root, KEY)
    if index is None and root.flow_style:
        return _inserted(block, root, _flow({KEY: fresh})[1:-1])
    if index is None:
        end = len(block.rstrip("\r\n"))
        indent = root.start_mark.column
        return _Edit(end, end, newline + " " * indent + _block({KEY: fresh}, indent, newline))
    if not isinstance(index, yaml.SequenceNode) or not index.value:
        gap = "" if block[index.start_mark.index - 1 : index.start_mark.index].isspace() else " "
        return _Edit(index.start_mark.index, index.end_mark.index, gap + _flow(fresh))
    lists = [_value(entry, "results") for entry in index.value]
    ours = [one for some in lists for one in some.value if _value(_value(one, "dataset"), "type").value == OURS]
    if len(ours) > 1:
        raise Problem(f"{where}, {KEY}: holds {len(ours)} results of {OURS}; delete all but one")
    if ours:
        item = ours[0]
        by = _flow(result) if item.flow_style else _block(result, item.start_mark.column, newline)
        return _Edit(item.start_mark.index, _end(block, item), by)
    into = lists[_chosen([_value(entry, "name").value for entry in index.value], name)]
    if into.flow_style:
        return _inserted(block, into, _flow(result))
    end = re.compile(r"[^\r\n]*").match(block, _end(block, into)).end()
    column = into.start_mark.column
    return _Edit(end, end, f"{newline}{' ' * column}- {_block(result, column + 2, newline)}")


def _inserted(block: str, node: Any, text: str) -> _Edit:
    """One more item before what closes a flow collection."""
    close = node.end_mark.index - 1
    comma = ", " if node.value and not block[:close].rstrip().endswith(",") else ""
    return _Edit(close, close, comma + text)


def _value(node: Any, key: str) -> Any:
    """The last of that key, as YAML's loader takes it; None where there is none."""
    return next((value for name, value in reversed(node.value) if name.value == key), None)


def _end(block: str, node: Any) -> int:
    """Where the text of a node ends; a block collection's own mark lies behind blank lines and comments."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(block, last[1] if isinstance(last, tuple) else last)
    return len(block[: node.end_mark.index].rstrip("\r\n"))


def _block(value: Any, indent: int, newline: str) -> str:
    """As block YAML whose first line stands at the column `indent` already."""
    lines = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10**6).rstrip("\n").split("\n")
    return f"{newline}{' ' * indent}".join(lines)


def _flow(value: Any) -> str:
    """As YAML in one line."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10**6, default_flow_style=True).strip()
