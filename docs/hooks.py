"""What the documentation takes from the code when it is built, so that it cannot go stale: a page for each attack, the settings
of each defense, judges and organisms, and what each command's `--help` says.

mkdocs calls the functions named `on_...` (mkdocs.yml names this file).
"""

import contextlib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from holdfast import catalogue, cli, method
from holdfast.method import Room
from holdfast.record import FAMILIES

log = get_plugin_logger("holdfast")
ARXIV = re.compile(r"(?:arXiv )?\b(\d{4}\.\d{5})\b")
NAMED = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)
OUTSIDE = re.compile(r'<a\b[^>]*\bhref="(https?://[^"]+)"')
WIDTH = 84
outside: set[str] = set()


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages that are made of the code where the navigation says `attacks/*` or `defenses/*`."""
    os.environ |= {"COLUMNS": str(WIDTH), "NO_COLOR": "1"}
    config.nav = [_spread(entry) for entry in config.nav or []]
    return config


def _spread(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    ((title, inside),) = entry.items()
    if isinstance(inside, list):
        return {title: [_spread(one) for one in inside]}
    if inside == "attacks/*":
        return {title: [*_by_family()]}
    if inside == "defenses/*":
        return {title: [{name: f"defenses/{name}.md"} for name in method.names("defenses")]}
    return entry


def _by_family() -> Iterator[dict[str, Any]]:
    known = [catalogue.entry(name) for name in method.names("attacks")]
    for family in FAMILIES:
        yield {family: [{one.name: f"attacks/{one.name}.md"} for one in known if one.family == family]}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of the code alone."""
    made: dict[str, Callable[[], str]] = {f"attacks/{name}.md": _attack(name) for name in method.names("attacks")}
    made |= {"reference/commands.md": _commands, "reference/evals.md": _room("evals", "Judges and measures")}
    made |= {
        "reference/rubrics.md": _room("rubrics", "Rubrics"),
        "reference/organisms.md": _room("organisms", "Organisms"),
    }
    for place, text in made.items():
        files.append(File.generated(config, place, content=text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link the methods that a table names; end a defense's page with what the code says of it."""
    room, _, name = page.file.src_uri.removesuffix(".md").partition("/")
    if name and room == "defenses":
        return f"{markdown}\n\n## As the code says it\n\n{about('defenses', name)}\n\n## Settings\n\n{settings('defenses', name)}"
    if not name and room in ("attacks", "defenses"):
        return NAMED.sub(lambda found: _linked(room, found[1], files) or found[0], markdown)
    return markdown


def _linked(room: str, name: str, files: Files) -> str | None:
    page = f"{room}/{name}.md"
    return f"| [`{name}`]({page}) |" if files.get_file_from_path(page) else None


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    outside.update(OUTSIDE.findall(html))
    return html


def on_post_build(config: MkDocsConfig) -> None:
    """List the links that lead out of the site: they are not fetched, so nothing is known of them."""
    place = Path(config.site_dir) / "outside.txt"
    place.write_text("".join(f"{one}\n" for one in sorted(outside)))
    log.info(f"{len(outside)} links lead out of the site and were not followed: {place}")


def about(room: Room, name: str) -> str:
    """A method's module docstring, its papers as links and what it assumes in paragraphs of their own."""
    said = inspect.cleandoc(sys.modules[method.find(room, name).__module__].__doc__ or "")
    said = re.sub(r"\n(?=(Assumes|Does not \w+)\b)", "\n\n", said)
    said = re.sub(r"^(Assumes|Does not cover|Does not protect)\b", r"**\1**", said, flags=re.MULTILINE)
    return papers(said)


def papers(text: str) -> str:
    return ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def settings(room: Room, name: str) -> str:
    """A table of a method's fields, with defaults and help."""
    fields = method.find(room, name).model_fields
    if not fields:
        return "It has none."
    rows = [f"| `{field}` | {_default(info)} | {_cell(info.description or '')} |" for field, info in fields.items()]
    return "\n".join(["| setting | default | what it does |", "|---|---|---|", *rows])


def _default(info: Any) -> str:
    if info.is_required():
        return "needed"
    shown = info.get_default(call_default_factory=True)
    return "not set" if shown is None else f"`{_cell(str(shown)[:80])}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _attack(name: str) -> Callable[[], str]:
    def page() -> str:
        one = catalogue.entry(name)
        clock = (
            "a clock: its cost to break is reported"
            if one.axis == "steps"
            else "a severity: its mildest break is reported"
        )
        facts = {
            "family": one.family,
            "adversary needs": f"{one.having} (with the default settings)",
            "axis": f"{one.axis}, {clock}",
            "cost": one.cost or "not said",
            "paper": papers(one.origin) or "not said",
        }
        parts = [
            f"# {name}",
            about("attacks", name),
            "\n".join(["| | |", "|---|---|", *(f"| {key} | {_cell(says)} |" for key, says in facts.items())]),
            f"## Measured\n\n{_measured(name)}",
            f"## Settings\n\n{settings('attacks', name)}",
            f"## In a recipe\n\n```toml\n{catalogue.example(name)}\n```",
        ]
        return "\n\n".join(parts)

    return page


def _measured(name: str) -> str:
    """The rows of this method in the table of docs/attacks.md."""
    lines = (Path(__file__).parent / "attacks.md").read_text().partition("| attack | method |")
    table = (lines[1] + lines[2].partition("\n\n")[0]).splitlines()
    rows = [line for line in table[2:] if line.split("|")[2].strip() == name]
    if not rows:
        return "Not in the table of [the attacks measured on the text organism](../attacks.md#measured-on-the-text-organism)."
    where = "On the undefended text organism; [how it was measured](../attacks.md#measured-on-the-text-organism)."
    return "\n".join([where, "", *table[:2], *rows])


def _room(room: Room, title: str) -> Callable[[], str]:
    def page() -> str:
        parts = [f"# {title}", "Made of the code's own words."]
        for name in method.names(room):
            parts += [f"## {name}", about(room, name), settings(room, name)]
        return "\n\n".join(parts)

    return page


def _commands() -> str:
    """What every command's `--help` prints."""
    parts = ["# Commands", f"```text\n{cli.overview()}\n```"]
    for name, says in cli.COMMANDS.items():
        parts += [f"## holdfast {name}", f"{says[0].upper()}{says[1:]}.", f"```text\n{_help(name)}\n```"]
    return "\n\n".join(parts)


def _help(name: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        cli.main([name, "--help"])
    return said.getvalue().strip()
