"""Others' words inside Markdown: shown as they are, whatever they hold."""

import html
import re

from holdfast.problem import printable

_PUNCTUATION = re.compile(r"[\\`*_\[\]|~]")
_ENTITIES = {"@": "&#64;", "#": "&#35;", "$": "&#36;", "://": "&#58;//", "www.": "www&#46;"}
"""What becomes a mention, a heading or number, a formula or a link where it stands bare."""


def quoted(text: object) -> str:
    """`text` in one line that a reader of Markdown or HTML shows as it is, in a table too."""
    safe = html.escape(_PUNCTUATION.sub(r"\\\g<0>", printable(text)), quote=False)
    return re.sub(r"(?<!&)[@#$]|://|www\.", lambda found: _ENTITIES[found[0].lower()], safe, flags=re.IGNORECASE)
