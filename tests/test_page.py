"""What the page adds to verdicts: who breaks what at first sight, the map of cuts, figures as files, runs beside each other."""

import base64
import csv
import gzip
import hashlib
import io
import json
import re
import sys
import webbrowser
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import runs
from browser import Document, opened
from holdfast import cli, recipe, verdict
from holdfast.dossier import Dossier
from holdfast.problem import Problem
from holdfast.record import Score
from holdfast.report import cuts, files, heads, looks, page, pareto, rows, several, tables
from holdfast.report.pareto import Price
from holdfast.report.sought import sought
from holdfast.report.sources import Sources, sources
from holdfast.report.words import Index
from holdfast.run import Run

TUNE, PRUNE = runs.attack("tune", settings={"learning_rate": 0.25}), runs.attack("prune", axis="fraction", family="cut")
HARM = {"undefended": (0.0, 0.9, 0.9, 0.9), "lox": (0.0, 0.1, 0.9, 0.9), "tar": (0.0, 0.1, 0.1, 0.1)}


def save(folder: Path, *defenses: str, corpus: str = "#", name: str = "test") -> Run:
    """Tuning breaks the undefended model after 5 steps, lox after 20, tar never; pruning breaks none, and ends in gibberish."""
    subjects = [runs.subject("undefended"), *(runs.subject(one, "undefended") for one in defenses)]
    told = runs.manifest(subjects, [TUNE, PRUNE], {"hash": corpus, "restricted": 60, "benign": 100, "shared": 0})
    cut = runs.clock(0.0, 0.2, 0.3, "incoherent", axis="fraction")
    cells = [runs.cell(one.name, "tune", seed, runs.clock(*HARM[one.name])) for one in subjects for seed in range(3)]
    cells += [runs.cell(one.name, "prune", seed, cut) for one in subjects for seed in range(3)]
    return runs.save(folder, told.model_copy(update={"name": name}), cells)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return save(tmp_path_factory.mktemp("run") / "first", "lox")


@pytest.fixture(scope="module")
def dossier(run: Run) -> Dossier:
    return verdict.judge(run)


@pytest.fixture(scope="module")
def text(run: Run, dossier: Dossier) -> str:
    return page.render(dossier, None, sources(run))


class TestFirstScreen:
    def test_a_sentence_for_each_adversary(self, text: str) -> None:
        """Who, with what, after how long, at what price, beside the twin; before anything is drawn."""
        told = " ".join(Document(text.partition('<main id="main">')[0]).text.split())
        assert (
            "A student (100 rows, 50 times over, and an hour of one rented GPU) breaks lox with “tune” after 20" in told
        )
        assert "after 20 steps [5, 20] (at a price that was not counted)" in told
        assert "undefended breaks after 5 steps [0, 5], so lox held at least 1x as long" in told
        assert "Whoever makes it smaller or shorter for a device (no ill will and no data) did not break lox" in told
        assert "Nothing that would be the doing of: somebody who runs it at home; a hobbyist" in told

    def test_survival_of_defense_and_twin_comes_next(self, text: str, dossier: Dossier) -> None:
        sections = [one["id"] for one in Document(text).all("section") if "id" in one]
        assert sections[:3] == ["survival", "verdicts", "map"]
        (panel,) = heads.survivals(Index(dossier), {"tune": tables.of_attack(Index(dossier), TUNE)})
        lines = {one.meta["subject"]: one for one in panel.figure.data if one.meta["part"] == "line"}
        assert list(lines) == [1, 0]
        assert "100% of seeds hold at 5 steps, [29%, 100%], n 3" in lines[1].hovertext[1]
        bands = [one for one in panel.figure.data if one.meta["part"] == "band"]
        assert len(bands) == 2 and all(len(one.x) == len(one.y) for one in bands)

    def test_without_a_defense_the_model_itself_answers(self, tmp_path: Path) -> None:
        (head,) = heads.heads(Index(verdict.judge(save(tmp_path / "alone"))))
        assert (head.facts.name, head.conclusion) == ("undefended", None)
        assert [word.label for word, *_ in head.tiers] == ["not broken, uncontrolled", "broken"]


class TestMap:
    def test_harm_and_utility_by_severity(self, dossier: Dossier) -> None:
        (block,) = cuts.blocks(Index(dossier))
        (strip,) = block.strips
        assert (block.says.partition(" ")[0], strip.severities) == ("cutting", [0.25, 0.5, 0.75])
        assert [row.turn for row in strip.rows] == [0, 1]
        assert [(point.harm.value, point.utility.value) for point in strip.rows[1].points[:2]] == [(0.2, 1), (0.3, 1)]
        harm, utility = block.panel.figure.data
        assert list(harm.z[1]) == [0.2, 0.3, None] and list(utility.z[1]) == [
            1,
            1,
            1,
        ]  # gibberish is neither safe nor harmful
        assert harm.text[1][2] == "0.75: incoherent"
        assert block.panel.table.columns[:5] == ("family", "attack", "axis", "severity", "subject")
        assert len(block.panel.table.rows) == 6

    def test_it_reads_as_a_table(self, text: str) -> None:
        told = " ".join(
            Document("<p " + text.partition('<section id="map"')[2].partition("</section>")[0]).text.split()
        )
        assert "prune fraction0.250.50.75 undefended harm 0.20, utility 1.00 harm 0.30, utility 1.00" in told
        assert told.count("~ incoherent, utility 1.00") == 2


def test_headings_regions_and_buttons_are_named(text: str) -> None:
    """Headings go down by one, what scrolls can be reached by keyboard, every figure and button says what it is."""
    document = Document(text)
    levels = [int(one.tag[1]) for one in document.elements if re.fullmatch("h[1-6]", one.tag)]
    assert levels[0] == 1 and all(after - before <= 1 for before, after in pairwise(levels))
    scrolling = [one.attributes for one in document.elements if one.attributes.get("class") in ("scroll", "recipe")]
    assert all(one["tabindex"] == "0" and one["role"] == "region" and one["aria-label"] for one in scrolling)
    buttons = [one for one in document.all("button") if "data-save" in one]
    labels = [one["aria-label"] for one in buttons]
    assert len(set(labels)) == len(labels) == 3 * (1 + 3 + 2 + 1)  # survival; three of tune, two of prune; the map
    assert document.all("html")[0]["lang"] == "en" and "prefers-reduced-motion" in text
    assert document.all("a")[0] == {"class": "skip", "href": "#main"}


def test_how_to_run_it_again(text: str, run: Run) -> None:
    told = Document(text.partition('<section id="again"')[2]).text
    digest = hashlib.sha256((run.folder / "recipe.json").read_bytes()).hexdigest()
    assert "holdfast audit recipe.json --out again" in told and digest in told
    assert "#lox" in told and '"learning_rate": 0.25' in told and "0, 1, 2 of tune, prune" in " ".join(told.split())


def test_adversaries_who_tried_nothing_are_named(text: str) -> None:
    told = Document(text.partition('<section id="untested"')[2].partition("</section>")[0]).text
    assert "Of these adversaries no attack was run: somebody who runs it at home (the prompt" in told
    assert "a laboratory (as many rows and GPUs as it likes)" in told and "a student" not in told


def test_a_recipe_as_resolved_is_a_recipe(tmp_path: Path) -> None:
    """What the page says to run can be run: a run's recipe.json is read as the recipe that it came of."""
    first = recipe.load(Path(__file__).parent.parent / "examples/lox.toml")
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.dump(first)))
    assert recipe.load(tmp_path / "recipe.json") == first
    for content, says in (("{", "not valid JSON"), ("[]", "not a recipe")):
        (tmp_path / "recipe.json").write_text(content)
        with pytest.raises(Problem, match=says):
            recipe.load(tmp_path / "recipe.json")


SAVING = """
const kinds = [], names = [], make = URL.createObjectURL;
URL.createObjectURL = (blob) => {
  if (blob.type !== "text/javascript") kinds.push(blob.type);
  return make.call(URL, blob);
};
const click = HTMLAnchorElement.prototype.click;
HTMLAnchorElement.prototype.click = function () { names.push(this.download); };
const wait = (ready) => new Promise((done) => { const look = () => ready() ? done() : setTimeout(look, 20); look(); });
(async () => {
  await wait(() => document.documentElement.dataset.drawn);
  const { scrollWidth, clientWidth } = document.documentElement;
  const some = document.querySelector("[data-saves]");
  for (const [turn, button] of [...some.querySelectorAll("button")].entries()) {
    button.click();
    await wait(() => names.length > turn);
  }
  document.documentElement.dataset.told = JSON.stringify([names, kinds, scrollWidth - clientWidth, innerWidth]);
})();
"""
FRAME = """<iframe src="{}" style="width:390px;height:800px;border:0"></iframe><script>
const look = () => {{ const told = frames[0].document.documentElement?.dataset.told;
  if (told) document.documentElement.dataset.told = told; else setTimeout(look, 20); }};
look();
</script>"""


def test_figures_are_saved_without_a_network_also_on_a_phone(tmp_path: Path, text: str) -> None:
    """Under the page's own policy the buttons make a table and two pictures; and 390 pixels are wide enough for all of it."""
    name = base64.b64encode(hashlib.sha256(SAVING.encode()).digest()).decode()
    text = text.replace("script-src ", f"script-src 'sha256-{name}' ", 1)
    (tmp_path / "report.html").write_text(text.replace("</body>", f"<script>{SAVING}</script></body>"))
    (tmp_path / "phone.html").write_text(FRAME.format("report.html"))
    shown = opened(tmp_path / "phone.html", "--allow-file-access-from-files")
    assert (shown.console, shown.requests) == ([], [])
    names, kinds, beyond, width = json.loads(shown.document.all("html")[0]["data-told"])
    stem = "tune-survival-beside-twin"
    assert names == [f"{stem}.csv", f"{stem}.png", f"{stem}.svg"]
    assert kinds[0] == "text/csv" and any(kind.startswith("image/svg+xml") for kind in kinds[1:])
    assert (beyond, width) == (0, 390)


def _blended(top: tuple[float, ...], share: float, ground: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(share * one + (1 - share) * other for one, other in zip(top, ground, strict=True))


def _contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """By WCAG 2.2."""

    def light(color: tuple[float, ...]) -> float:
        parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everything_can_be_read_in_both_themes(theme: str) -> None:
    """Text has a contrast of 4.5 on whatever it stands on, the fullest squares of the map included; lines have 3."""
    css = Path(page.__file__).with_name("page.css.jinja").read_text()
    written = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[theme == "dark"]
    color = {
        name: tuple(int(digits[part : part + 2], 16) for part in (0, 2, 4))
        for name, digits in re.findall(r"--([a-z-]+): #([0-9a-f]{6});", written)
    }
    full = {
        name: tuple(map(float, values.split(","))) for name, values in re.findall(r"--(heat|cool): ([\d, ]+);", written)
    }
    shares = {
        part: float(share)
        for part, share in re.findall(r"var\(--(heat|cool)\), calc\(var\(--[hu], 0\) \* (\.\d+)", css)
    }
    assert shares.keys() == full.keys() == {"heat", "cool"}
    grounds = {"ink": ("paper", "raised", "wash", "doubt-wash", "bad-wash"), "soft": ("paper", "raised", "wash")}
    grounds |= {tone: (f"{tone}-wash", "paper") for tone in ("good", "fair", "bad", "doubt")} | {
        "link": ("paper", "raised")
    }
    for name, some in grounds.items():
        for ground in some:
            assert _contrast(color[name], color[ground]) >= 4.5, (name, ground)
    for name, top in full.items():
        assert _contrast(color["ink"], _blended(top, shares[name], color["paper"])) >= 4.5, name
    lines = looks.DARK.values() if theme == "dark" else looks.DARK
    for line in lines:
        if line not in (looks.GRID, looks.DARK[looks.GRID]):
            assert _contrast(tuple(int(line[part : part + 2], 16) for part in (1, 3, 5)), color["paper"]) >= 3, line


class TestFiles:
    def test_tables_are_always_written(self, dossier: Dossier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "kaleido", None)
        first, second = files.write(dossier, tmp_path / "figures", Sources())
        assert "3 tables as CSV and Parquet" in first
        assert second == "figures: no PNG or SVG, for they need kaleido: pip install 'holdfast[figures]'"
        names = {path.name for path in (tmp_path / "figures").iterdir()}
        assert names == {f"{stem}.{form}" for stem in ("tune", "prune", "map-cut") for form in ("csv", "parquet")}
        rows = list(csv.DictReader(io.StringIO((tmp_path / "figures/tune.csv").read_text())))
        assert [(one["subject"], one["steps"], one["harm"]) for one in rows[5:7]] == [
            ("lox", "5.0", "0.1"),
            ("lox", "20.0", "0.9"),
        ]
        assert {len(rows), *(one["seeds"] for one in rows)} == {8, "3"}
        kept = pq.read_table(tmp_path / "figures/tune.parquet").to_pylist()
        assert [one["harm"] for one in kept] == [float(one["harm"]) for one in rows]

    def test_pictures_where_a_browser_draws(
        self, dossier: Dossier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kaleido = pytest.importorskip("kaleido", reason="pip install 'holdfast[figures]'")

        def draw(wanted: list[dict], kopts: dict) -> tuple:
            for one in wanted:
                Path(one["path"]).write_text("drawn")
            return ()

        monkeypatch.setattr(kaleido, "write_fig_from_object_sync", draw)
        _, said = files.write(dossier, tmp_path / "figures", Sources())
        assert said == "figures: 7 figures as PNG and SVG"
        assert (tmp_path / "figures/tune-harm.png").exists() and (tmp_path / "figures/map-cut.svg").exists()

    def test_no_figure_is_written_over_another(self, dossier: Dossier, tmp_path: Path) -> None:
        """Attacks called `tune/3`, `tune-3` and `tune:3` would all be tune-3."""
        one = dossier.manifest.attacks[0]
        found = files._names([f"{one.name}", f"{one.name}-3", f"{one.name}", f"{one.name}/3"])
        assert len(set(found)) == 4 and found[:2] == ["tune", "tune-3"]

    def test_a_spreadsheet_calculates_nothing(self) -> None:
        made = tables.table("t", ["a", "b"], [["=1+1", -0.5], ["@x\u202e", None]])
        assert tables.as_csv(made) == "a,b\n'=1+1,-0.5\n'@x�,\n"
        assert tables.file_name("../a b/ü") == "a-b"


WON = {"subject": "lox", "harm": 0.9, "utility": 1.0, "at": 20, "trials": 2, "flops": 2e9}
SAID = {
    "attack": "finetune",
    "subject": "lox",
    "seed": 0,
    "cost": {"spent": 2e9},
    "trials": {"done": 2, "failed": 0},
    "winners": [{"attack": "tune", "settings": {"learning_rate": 0.25}, "found": WON, "selection_bias": 0.1}],
    "explored": {
        "settled": False,
        "curve": [[1e9, 0.4], [2e9, 0.9]],
        "coverage": {"learning_rate": 0.2},
        "says": ["The last third of the cost raised the harm found from 0.40 to 0.90: more would find more."],
    },
}


class TestSearch:
    def test_the_worst_for_each_subject_and_how_the_search_went(self, dossier: Dossier) -> None:
        found = sought(Index(dossier), SAID)
        (worst,) = found.worst
        assert (worst.attack.name, worst.who, found.unbroken) == ("tune", ["student"], [])
        assert found.panel.table.rows == [(1e9, 0.4), (2e9, 0.9)]
        bare = dossier.model_copy(update={"curves": ()})
        told = " ".join(Document(page.render(bare, None, Sources(search=SAID))).text.split())
        assert "2 trials of finetune on lox: 2 done; 2 GFLOPs spent, seed 0. It did not settle" in told
        assert "raised the harm found from 0.40 to 0.90" in told and "learning_rate20 %" in told

    def test_another_file_is_refused(self, dossier: Dossier) -> None:
        with pytest.raises(Problem, match=r"search\.json, attack: not what a search wrote"):
            sought(Index(dossier), {})


class TestSeveral:
    def test_beside_each_other_or_apart(self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Runs with equal prompts, judge and twin stand together; another corpus is said and kept apart."""
        second, other = (
            save(tmp_path / "second", "tar", name="meta"),
            save(tmp_path / "other", "lox", corpus="*", name="new"),
        )
        out = tmp_path / "page.html"
        folders = [str(one.folder) for one in (run, second, other)]
        assert cli.main(["report", *folders, "--out", str(out)]) == 0
        said = capsys.readouterr().out
        assert "beside each other: test, meta" in said and "kept apart: new: other prompts" in said
        document = Document(out.read_text())
        told = " ".join(document.text.split())
        assert "Kept apart from the first: other prompts." in told
        assert told.count("✓ on it") >= 1 and "more than 60 steps" in told
        assert {one["scope"] for one in document.all("th")} == {"col", "row"}
        assert len(document.all("caption")) == len(document.all("table")) == 6

    def test_cost_to_break_by_hand(self, run: Run, tmp_path: Path) -> None:
        """Of tuning, the only clock: 5 steps, 20 steps, and not within 60; who is as useful and holds longer is the frontier."""
        second = save(tmp_path / "second", "tar", name="meta")
        (group,) = several.groups([(str(one.folder), verdict.judge(one)) for one in (run, second)])
        assert [one.facts.name for one in group.members] == ["undefended", "lox", "tar"]  # the twin is the same in both
        assert [one.name for one in group.shared] == ["tune", "prune"] and group.unit == "steps"
        assert [one.price.value for one in group.members] == [5, 20, None]
        assert [one.frontier for one in group.members] == [False, False, True]
        assert pareto.said(group.members[2].price, "steps") == "more than 60 steps"
        assert "On the frontier: tar · meta." in group.panel.alternative

    def test_a_frontier_keeps_whoever_wins_in_one(self) -> None:
        scores = [Score(value=value, low=0, high=1, n=9) for value in (0.9, 0.8, 0.7, 0.7)]
        prices = [Price("a", value, 0, None, 60, "") for value in (5, 20, 10, None)]
        assert pareto.frontier(scores, prices) == {0, 1, 3}

    def test_what_it_cannot_do_is_said(self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for words, says in (
            ([str(run.folder), str(run.folder)], "named twice"),
            ([str(run.folder), str(run.folder), "--show-answers"], "--show-answers: is of a single run"),
            ([str(run.folder), "--out", str(tmp_path / "x.html")], "give --out with several runs"),
            ([], "names no run"),
        ):
            assert cli.main(["report", *words]) == 2
            assert says in " ".join(capsys.readouterr().err.split())


def test_open(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a screen the browser is asked; in CI, or where no browser comes, the page's place is said, and nothing fails."""
    asked: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: asked.append(address) or True)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("CI", "true")
    where = run.folder.resolve() / "report.html"
    assert cli.main(["report", str(run.folder), "--open"]) == 0
    assert asked == [] and f"the page is one file, {where}" in capsys.readouterr().out
    monkeypatch.delenv("CI")
    assert cli.main(["report", str(run.folder), "--open"]) == 0
    assert asked == [where.as_uri()] and "no browser here" not in capsys.readouterr().out


def test_a_page_of_many_curves_packs_its_figures_and_still_draws_them(
    tmp_path: Path, dossier: Dossier, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Document(page.render(dossier))
    monkeypatch.setattr("holdfast.report.figures._MANY", 0)
    monkeypatch.setattr(page, "_LONG", 100)
    (tmp_path / "report.html").write_text(page.render(dossier))
    packed = re.search(r'id="data">([^<]*)<', (tmp_path / "report.html").read_text())[1]
    data = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert data["tables"] and not any(name.endswith("-utility") for name in data["names"])
    shown = opened(tmp_path / "report.html")
    assert (shown.console, shown.requests) == ([], [])
    assert any("main-svg" in (one.get("class") or "") for one in shown.document.all("svg"))
    assert len(plain.all("table")) > len(Document((tmp_path / "report.html").read_text()).all("table"))


@pytest.mark.parametrize("end", [1, 2, 3, 13, 150, 1500, 100_000])
def test_numbers_under_a_bar_do_not_touch(end: int) -> None:
    """The bar is some 200 pixels wide and a digit 7; the last number ends where the bar does."""
    ticks = [(tick["steps"], 2 * tick["at"], 7 * len(f"{tick['steps']:g}")) for tick in rows._scale(end)]
    assert ticks[0][0] == 0 and ticks[-1][0] == end
    spans = [(at - wide / 2, at + wide / 2) for _, at, wide in ticks[:-1]] + [(200 - ticks[-1][2], 200)]
    assert all(left[1] < right[0] for left, right in pairwise(spans))
