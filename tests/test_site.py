"""The documentation as it is built: whole, a page for each method, nothing fetched from elsewhere, searched without a server."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlparse

import pytest

from browser import CHROMIUM, FLAGS, Document
from holdfast import cli, method

ROOT = Path(__file__).parent.parent
pytest.importorskip("material", reason="needs the extra `docs`; `make docs` installs it and runs these tests")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built anew; a link or an anchor that leads nowhere is an error."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert built.returncode == 0, built.stderr
    return out


def pages(site: Path) -> dict[str, Document]:
    return {str(path.relative_to(site)): Document(path.read_text()) for path in site.rglob("*.html")}


def test_each_method_has_a_page(site: Path) -> None:
    for room, headings in (
        ("attacks", {"Measured", "Settings", "In a recipe"}),
        ("defenses", {"When it helps", "When it does not", "Measured", "As the code says it", "Settings"}),
    ):
        for name in method.names(room):
            text = (site / room / f"{name}.html").read_text()
            assert headings <= {re.sub(r"<.*", "", found) for found in re.findall(r"<h2 [^>]*>(.*)", text)}, name
            assert f'href="{room}/{name}.html"' in (site / f"{room}.html").read_text(), (
                f"{room}.md does not list {name}"
            )


def test_each_command_is_in_the_reference(site: Path) -> None:
    said = Document((site / "reference/commands.html").read_text()).text
    for name in cli.COMMANDS:
        assert f"usage: holdfast {name}" in said


def test_nothing_comes_from_elsewhere(site: Path) -> None:
    for where, page in pages(site).items():
        asked = [one.attributes.get("src") for one in page.elements if one.tag in ("script", "img", "iframe")]
        asked += [one.get("href") for one in page.all("link") if one.get("rel") != "canonical"]
        assert not [one for one in asked if one and urlparse(one).scheme in ("http", "https")], where
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?https?:", sheet.read_text()), sheet


def test_links_that_lead_out_are_listed(site: Path) -> None:
    listed = (site / "outside.txt").read_text().split()
    assert "https://arxiv.org/abs/2506.15606" in listed and listed == sorted({*listed})


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_file_is_searched_without_a_server(site: Path, tmp_path: Path) -> None:
    assert CHROMIUM and len(json.loads((site / "search/search_index.json").read_text())["docs"]) > 100
    page = f"file://{site}/index.html?q=abliterate"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path}", "--dump-dom", page]
    shown = Document(subprocess.run(command, capture_output=True, text=True, timeout=120).stdout)
    found = {one.get("href") or "" for one in shown.all("a") if "md-search-result__link" in (one.get("class") or "")}
    assert any("attacks/abliterate.html" in one for one in found), found


def test_the_hook_is_no_page(site: Path) -> None:
    assert not [*site.rglob("hooks*")]
