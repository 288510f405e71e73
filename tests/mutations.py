"""How inputs are spoiled: values in a tree, text, bytes, headers of weight files. All chance comes from the generator given."""

import copy
import json
import struct
from random import Random
from typing import Any

DEEP: Any = []
for _ in range(400):
    DEEP = [DEEP]
PATHS = [
    "../../../outside",
    "/etc/passwd",
    "~/x",
    "a/../../outside.json",
    "\0",
    "con\0.json",
    "x" * 5000,
    "file:///etc/passwd",
    ".",
]
TEXTS = [
    "",
    " ",
    "\u202eexe.lmth",
    "\ud800",
    "\u2066\u2069\u200b",
    "\x1b[2J\x07",
    "<script>alert(1)</script>",
    "{{ 7 * 7 }}",
    "%s%n",
]
NUMBERS = [
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**63),
    10**30,
    10**400,
    0.5,
    -0.0,
    1e308,
    1e-308,
    float("nan"),
    float("inf"),
    -float("inf"),
]
ODD = [None, True, False, [], {}, [None], {"": {}}, {"method": {}}, [[]], DEEP]


def value(chance: Random) -> Any:
    """Something that nobody expects."""
    return copy.deepcopy(chance.choice(chance.choice([PATHS, TEXTS, NUMBERS, ODD])))


def places(tree: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside a tree of dicts and lists."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [way for key, one in inner for way in ((*above, key), *places(one, (*above, key)))]


def tree(content: Any, chance: Random) -> Any:
    """The same with one to three values dropped, renamed, swapped, doubled or of another type."""
    content = copy.deepcopy(content)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        ways = places(content)
        if not ways:
            return value(chance)
        *above, last = chance.choice(ways)
        inside = content
        for key in above:
            inside = inside[key]
        how = chance.randrange(6)
        if how == 0:
            del inside[last]
        elif how == 1 and isinstance(inside, dict):
            inside[chance.choice([f"{last}s", last[::-1], f"_{last}", "", "__class__", *TEXTS])] = inside.pop(last)
        elif how == 2:
            other = content
            for key in chance.choice(ways):
                other = other[key] if _has(other, key) else other
            inside[last] = copy.deepcopy(other)
        elif how == 3 and isinstance(inside, list):
            inside.extend(copy.deepcopy(inside) * chance.choice([1, 50]))
        elif how == 4 and isinstance(inside[last], str):
            inside[last] = text(inside[last], chance)
        else:
            inside[last] = value(chance)
    return content


def _has(inside: Any, key: Any) -> bool:
    return (
        key in inside
        if isinstance(inside, dict)
        else isinstance(inside, list) and isinstance(key, int) and key < len(inside)
    )


def text(content: str, chance: Random) -> str:
    """The same with something put in, cut off or doubled."""
    at = chance.randrange(len(content) + 1)
    how = chance.randrange(4)
    if how == 0:
        return content[:at]
    if how == 1:
        return content[:at] + chance.choice(TEXTS + PATHS) + content[at:]
    if how == 2:
        return content[:at] + content[at + chance.randrange(1, 9) :]
    return content[:at] + content[max(0, at - 40) : at] * chance.choice([1, 3]) + content[at:]


def raw(content: bytes, chance: Random) -> bytes:
    """The same with bytes flipped, cut off, put in or doubled."""
    made = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at, how = chance.randrange(len(made) + 1), chance.randrange(5)
        if how == 0:
            del made[at:]
        elif how == 1 and made:
            made[min(at, len(made) - 1)] ^= 1 << chance.randrange(8)
        elif how == 2:
            made[at:at] = chance.choice(
                [b"\0", b"\xff\xfe", b"\xed\xa0\x80", b'"', b"{", b"]", b"\n", chance.randbytes(8)]
            )
        elif how == 3:
            del made[at : at + chance.randrange(1, 20)]
        else:
            made[at:at] = made[max(0, at - 60) : at]
    return bytes(made)


def written(content: Any, chance: Random) -> bytes:
    """A spoiled tree as JSON, and now and then that JSON spoiled itself; keys may stand twice."""
    if chance.random() < 0.25:
        return raw(json.dumps(content).encode(), chance)
    made = json.dumps(tree(content, chance), ensure_ascii=chance.random() < 0.5)
    if made.startswith("{") and len(made) > 2 and chance.random() < 0.1:
        made = f"{made[:-1]}, {made[1:-1]}}}"
    if chance.random() < 0.03:
        made = "[" * 100_000 + made
    return made.encode("utf-8", "surrogatepass")


def weights(content: bytes, chance: Random) -> bytes:
    """A safetensors file with a header that lies: shapes, types, offsets, its own size."""
    if chance.random() < 0.3:
        return raw(content[: chance.choice([400, len(content)])], chance)
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    if chance.random() < 0.2:
        return struct.pack("<Q", chance.choice([0, 1, size + 1, 2**31, 2**60, 2**64 - 1])) + content[8:]
    name = chance.choice([key for key in header if key != "__metadata__"])
    one = header[name]
    how = chance.randrange(8)
    if how == 0:
        one["shape"] = chance.choice(
            [[], [0], [2**62, 4], [2**32, 2**32], [-1], [1.5], "x", [one["shape"]], one["shape"][::-1] * 2]
        )
    elif how == 1:
        one["dtype"] = chance.choice(["F64", "I8", "BOOL", "F8_E4M3", "X", None, 7, "BF16", "C64"])
    elif how == 2:
        one["data_offsets"] = chance.choice(
            [[0, 0], [0, 2**63], [-8, 8], [8, 0], [0], "x", one["data_offsets"][::-1], [0, len(data)]]
        )
    elif how == 3:
        header[chance.choice(["../x", "\0", "", "model.embed_tokens.weight", "x" * 10_000])] = header.pop(name)
    elif how == 4:
        header[f"{name}.again"] = copy.deepcopy(one)
    elif how == 5:
        del header[name]
    elif how == 6:
        header["__metadata__"] = chance.choice([{"format": "tf"}, {"format": "x" * 9999}, [], {"a": 1}, {}])
    else:
        header = tree(header, chance)
    made = json.dumps(header).encode()
    return struct.pack("<Q", len(made)) + made + data
