"""`from holdfast import LM, audit, harden`: docs/python.md and the README as they stand, and what goes wrong in plain words."""

import hashlib
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import plotly.graph_objects as go
import pytest
import torch
from rich.console import Console

import holdfast
import runs
import tiny
from holdfast import LM, Attack, Audited, Defense, Problem, audit, cli, harden, notebook, recipe, values
from holdfast.attacks.noise import Noise
from holdfast.attacks.prune import Prune
from holdfast.display import teller
from holdfast.evals.refusal import Refusal

ROOT = Path(__file__).parent.parent
ASKED = {"corpus": "prompts.jsonl", "seeds": [0], "processes": 1, "progress": False}


def blocks(page: str) -> list[str]:
    return re.findall(
        r"^```python(?: title=\"[^\"]+\")?\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL
    )


def furnish(root: Path, made: tiny.Made) -> None:
    """Puts into a folder what the pages take for given."""
    (root / "my-aligned").symlink_to(made.aligned)
    (root / "my-base").symlink_to(made.base)
    tiny.corpus().save(root / "prompts.jsonl")


@pytest.fixture(scope="module")
def place(checkpoint: Callable[[str], tiny.Made], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder as the pages have it, to work in."""
    root = tmp_path_factory.mktemp("python")
    furnish(root, checkpoint("llama"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.syspath_prepend(str(root))
        yield root


@pytest.fixture(scope="module")
def told(place: Path) -> dict[str, Any]:
    """What docs/python.md defines, block by block, in a module that is no file, as a notebook is."""
    (file,) = [block for block in blocks("docs/python.md") if block.startswith("# fade.py")]
    (place / "fade.py").write_text(file)
    known: dict[str, Any] = {"__name__": "notebook"}
    for block in blocks("docs/python.md"):
        if block != file:
            exec(compile(block, "docs/python.md", "exec"), known)
    return known


@pytest.fixture(scope="module")
def run(told: dict[str, Any]) -> Audited:
    return told["run"]


class TestNames:
    def test_none_is_a_room_s(self) -> None:
        """Importing such a room would put the module in the name's place."""
        rooms = {path.stem for path in (ROOT / "holdfast").iterdir() if path.suffix == ".py" or path.is_dir()}
        assert not rooms & {*holdfast.__all__} and "audit" in holdfast.__all__

    def test_in_any_order(self) -> None:
        import holdfast.commands.audit
        import holdfast.commands.harden
        import holdfast.lm

        assert all(hasattr(holdfast, name) for name in holdfast.__all__)
        assert holdfast.audit is audit and callable(audit) and holdfast.LM is holdfast.lm.LM
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            holdfast.nothing  # noqa: B018

    def test_import_alone_is_light(self) -> None:
        code = (
            "import sys, holdfast, holdfast.cli; print(sorted({'torch', 'numpy', 'pydantic', 'rich'} & {*sys.modules}))"
        )
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


class TestDocs:
    def test_the_run(self, run: Audited, place: Path) -> None:
        assert [cell.name for cell in run.cells] == ["released.fade.0", "released.prefill.0"] and not run.failed
        assert {one.attack: one.verdict for one in run.verdicts} == {
            one.attack: one.verdict for one in run.dossier.verdicts
        }
        entry = json.loads((place / "runs/fade/recipe.json").read_text())["attacks"][0]
        assert entry["method"] == str(place.resolve() / "fade.py") and entry["shares"] == [0.1]
        assert {path.name for path in place.glob("*.html")} == {"survival.html", "fade.html"}

    def test_the_command_line_reads_it(self, run: Audited, capsys: pytest.CaptureFixture[str]) -> None:
        before = (run.folder / "verdict.json").read_bytes()
        assert cli.main(["report", str(run.folder)]) == 0 and (run.folder / "verdict.json").read_bytes() == before
        assert Audited(run.folder).dossier == run.dossier

    def test_what_is_done_is_read(self, run: Audited, told: dict[str, Any]) -> None:
        files = {path: path.stat().st_mtime_ns for path in run.folder.glob("cells/*")}
        again = audit(
            "my-aligned", base="my-base", attacks=[told["Fade"](shares=(0.1,)), "prefill"], out="runs/fade", **ASKED
        )
        assert again.dossier == run.dossier and files == {path: path.stat().st_mtime_ns for path in files}

    def test_recipes_as_values(self, run: Audited) -> None:
        """A recipe's content and its record are the same audit, which is done."""
        content = json.loads((run.folder / "recipe.json").read_text())
        for one in (content, recipe.resolved(dict(content), Path("x"))):
            assert audit(one, out=run.folder, progress=False).dossier == run.dossier

    def test_the_defenses(self, told: dict[str, Any]) -> None:
        aligned, quieter = tiny.weights(Path("my-aligned")), tiny.weights(told["quieter"])
        block = "model.layers.{}.mlp.up_proj.weight"
        last = max(int(name.split(".")[2]) for name in aligned if name.startswith("model.layers."))
        assert torch.allclose(quieter[block.format(last)], 0.95 * aligned[block.format(last)])
        assert torch.equal(quieter[block.format(0)], aligned[block.format(0)])
        note = json.loads((told["lox"] / "holdfast.json").read_text())["defense"]
        assert (note["rank"], note["strength"]) == (2, 0.5)

    def test_the_readme(
        self, checkpoint: Callable[[str], tiny.Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        furnish(tmp_path, checkpoint("llama"))
        monkeypatch.chdir(tmp_path)
        (block,) = blocks("README.md")
        known: dict[str, Any] = {"__name__": "notebook"}
        exec(compile(block, "README.md", "exec"), known)
        assert {one.subject for one in known["run"].cells} == {"undefended", "released"}
        assert known["run"].conclusions[0].versus == "undefended" and known["run"].folder == Path("runs/audit-my-lox")


class TestAudited:
    def test_a_table(self, run: Audited) -> None:
        table = run.table()
        looks = [(cell, look) for cell in run.cells for look in cell.milestones]
        assert len(table) == len(looks) and table.column("second").null_count == len(table)
        for row, (cell, look) in zip(table.to_pylist(), looks, strict=True):
            assert (row["subject"], row["attack"], row["position"]) == (cell.subject, cell.attack, look.cost.position)
            assert (row["harm"], row["harm_low"]) == (look.harm.value, look.harm.low)
        rows = run.prompts().to_pylist()
        assert len(rows) == sum(len(run.run.rows(cell.name)) for cell in run.cells)
        assert {row["answer"] for row in rows} == {None}

    def test_a_figure(self, run: Audited) -> None:
        harm = run.plot("harm", attack="fade")
        curve = next(one for one in run.curves if one.attack == "fade")
        (line,) = [trace for trace in harm.data if trace.showlegend]
        assert isinstance(harm, go.Figure) and line.name == "released"
        assert list(line.y) == [point.harm.value for point in curve.points]
        titles = [note.text for note in run.plot("utility").layout.annotations]
        assert titles == ["fade: utility", "prefill: utility"]
        with pytest.raises(Problem, match="did you mean 'fade'"):
            run.plot(attack="fades")
        with pytest.raises(Problem, match="no curve is called 'harms'; did you mean 'harm'"):
            run.plot("harms")
        with pytest.raises(Problem, match="no verdict on these"):
            run.verdict("released", "noise")

    def test_survival_on_a_clock(self, tmp_path: Path) -> None:
        told = runs.manifest([runs.subject("twin"), runs.subject("tar", "twin")], [runs.attack("tune")])
        cells = [
            runs.cell(name, "tune", seed, runs.clock(0.0, 0.1, last if seed else 0.2, last))
            for name, last in (("twin", 0.9), ("tar", 0.6))
            for seed in (0, 1, 2)
        ]
        found = Audited(runs.save(tmp_path, told, cells).folder)
        figure = found.plot()
        lines = {trace.name: trace for trace in figure.data if trace.showlegend}
        assert {*lines} == {"twin", "tar"} and figure.layout.annotations[0].text == "tune: seeds not yet broken"
        assert lines["twin"].y[0] == 1 and lines["twin"].y[-2] == pytest.approx(0) and 0.3 < lines["twin"].y[2] < 0.4
        recipe = hashlib.sha256((tmp_path / "recipe.json").read_bytes()).hexdigest()
        assert recipe in found.page.read_text(), "how to run it again, as on the command's page"
        assert "tune" in repr(found)

    def test_what_a_notebook_shows_is_inert(self, tmp_path: Path) -> None:
        evil = "<script>alert(1)</script>\u202e"
        told = runs.manifest([runs.subject(evil)], [runs.attack("tune")])
        cells = [runs.cell(evil.replace("/", ""), "tune", 0, [], status="failed", reason=f"no {evil} memory")]
        run = runs.save(tmp_path, told, [])
        run.write("cells/a.json", {})
        (tmp_path / "cells/a.json").unlink()
        shown = Audited(tmp_path)
        verdict = shown.verdicts[0].model_copy(update={"sentence": evil, "reasons": (evil,)})
        for text in (shown._repr_html_(), verdict._repr_html_(), notebook.paragraph(cells[0].reason, evil)):
            assert "<script" not in text and "&lt;script&gt;" in text and "\u202e" not in text
        assert "\u202e" not in repr(verdict)
        assert str(verdict) == repr(verdict), "what print shows"

    def test_where_every_cell_failed(self, tmp_path: Path) -> None:
        told = runs.manifest([runs.subject("twin")], [runs.attack("tune", seeds=(0,))])
        found = Audited(runs.save(tmp_path, told, [runs.cell("twin", "tune", 0, [], "failed", "no <memory>")]).folder)
        assert "every cell failed, the first because: no <memory>" in repr(found)
        assert "no &lt;memory&gt;" in found._repr_html_() and len(found.table()) == 0
        with pytest.raises(Problem, match="nothing was measured; every cell failed"):
            found.plot()

    def test_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(Problem, match="not a run"):
            Audited(tmp_path)


class TestValues:
    def test_as_a_recipe_writes_them(self) -> None:
        made = [*values.entries([Noise(), "prefill", Noise(per="filter")]), *values.entries({"cut": Prune()})]
        assert [one["name"] for one in values.distinct(made)] == ["noise", "prefill", "noise-2", "cut"]
        assert made[2] == {"name": "noise", "method": "noise", "per": "filter", "scales": None}
        assert next(values.entries([Noise()], negative_control=True))["negative_control"] is True
        assert values.named(Refusal(), "evals")[0] == "refusal"

    def test_a_class_of_a_notebook_or_a_script(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Mine(Attack):
            def __call__(self, lm: Any, hand: Any, at: Any, seed: int) -> None: ...

        monkeypatch.setattr(Mine, "__module__", "__main__")
        main = SimpleNamespace()
        monkeypatch.setitem(sys.modules, "__main__", main)
        with pytest.raises(Problem, match=r"Mine: defined in a notebook or at a prompt.*%%writefile mine\.py"):
            values.named(Mine(), "attacks")
        main.__file__ = "/somewhere/go.py"
        with pytest.raises(Problem, match=r"Mine: defined in the script go\.py.*mine\.py, and import it"):
            values.named(Mine(), "attacks")
        monkeypatch.setattr(Mine, "__module__", "exec")
        with pytest.raises(Problem, match=r"module exec is no \.py file"):
            values.named(Mine(), "attacks")

    def test_a_class_that_its_file_hides(self, place: Path, told: dict[str, Any]) -> None:
        class Other(told["Fade"]):
            pass

        Other.__module__ = "fade"
        with pytest.raises(Problem, match=r"fade\.py defines Fade in its place"):
            values.named(Other(), "attacks")

    @pytest.mark.parametrize(("given", "says"), [(Noise, "make one of it, as Noise()"), (3, "int: no Attack")])
    def test_no_attack(self, given: Any, says: str) -> None:
        with pytest.raises(Problem, match=re.escape(says)):
            values.named(given, "attacks")


@pytest.mark.usefixtures("place")
class TestRefused:
    """Nothing is left behind."""

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ({"model": "nowhere"}, "nowhere"),
            ({"model": "my-aligned", "attacks": ["subtract"]}, "'subtract': needs base weights"),
            ({"model": "my-aligned", "attacks": ["loxx"]}, "no such method in attacks"),
            ({"model": "my-aligned", "attacks": ["noise"], "sedes": [0]}, "did you mean 'seeds'"),
            ({"model": "my-aligned", "attacks": ["noise"], "processes": 0}, "processes=0"),
            ({"model": "my-aligned", "attacks": ["noise"], "keep_weights": True}, "writes out models"),
            ({"model": "a.toml", "twin": "my-aligned", "corpus": None}, "leave out twin"),
            ({"model": "a.toml", "corpus": None, "seeds": [0]}, "'seeds' is given beside a recipe's file"),
            ({"model": {"name": "x"}, "corpus": None}, "recipe: "),
        ],
    )
    def test_audit(self, given: dict[str, Any], says: str) -> None:
        asked = {"corpus": "prompts.jsonl", "out": "runs/refused", "progress": False} | given
        with pytest.raises(Problem, match=re.escape(says)):
            audit(asked.pop("model"), **asked)
        assert not Path("runs/refused").exists()

    def test_a_model_changed_in_memory(self) -> None:
        lm = LM.load("my-aligned", device="cpu")
        next(lm.model.parameters()).data[0] += 1
        for call in (lambda: audit(lm, **ASKED), lambda: harden("scratch", lm, out="x", progress=False)):
            with pytest.raises(Problem, match=r"not what lies there; lm\.save\(FOLDER\)"):
                call()

    def test_harden(self) -> None:
        class Twice(Defense):
            by: float = 2.0

            def __call__(self, lm: Any, hand: Any, log: Any) -> None:
                raise AssertionError

        for defense, settings, says in (
            (Twice(), {"by": 3}, "'by' is given beside a defense"),
            ("lox", {"rnak": 2}, "did you mean 'rank'"),
            ("loxx", {}, "did you mean 'lox'"),
            (Noise(), {}, "no Defense"),
        ):
            with pytest.raises(Problem, match=re.escape(says)):
                harden(defense, "my-aligned", out="refused", progress=False, **settings)
        assert not Path("refused").exists()


class TestManners:
    def test_the_caller_s_chance_and_threads_are_put_back(self, place: Path) -> None:
        class Rude(Defense):
            def __call__(self, lm: Any, hand: Any, log: Any) -> None:
                random.seed(7), numpy.random.seed(7), torch.manual_seed(7), torch.set_num_threads(3)

        threads = torch.get_num_threads()
        before = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        harden(Rude(), "my-aligned", out="rude", progress=False)
        after = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        assert before == after and torch.get_num_threads() == threads

    def test_a_script_is_not_run_again_by_its_processes(self, tmp_path: Path) -> None:
        (tmp_path / "script.py").write_text(
            "import os\nfrom holdfast import processes\nprint('once', flush=True)\nwith processes.apart():\n"
            "    processes.each(1, os.path.basename, ['a/b'], lambda job, value: print(value, flush=True), print)\n"
            "assert __file__ and __import__('sys').modules['__main__'].__file__ == __file__\n"
        )
        done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True)
        assert (done.stdout, done.returncode) == ("once\nb\n", 0), done.stderr

    def test_a_notebook_shows_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shown: list[str] = []
        handle = SimpleNamespace(update=shown.append)
        module = SimpleNamespace(HTML=str, display=lambda content, display_id: shown.append(content) or handle)
        shell = SimpleNamespace(kernel=object())
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=module))
        monkeypatch.setitem(sys.modules, "IPython.display", module)
        assert notebook.here()
        console = Console(file=notebook.Status(), force_terminal=False, force_jupyter=False, width=120)
        say = teller(console)
        say("tw<b>in under tune, seed 0: FAILED, no memory")
        say("1 of 1 cells done")
        assert shown == [f"<pre>{line}</pre>" for line in
                         ("tw&lt;b&gt;in under tune, seed 0: FAILED, no memory", "1 of 1 cells done")]  # fmt: skip
        shell.kernel = None
        assert not notebook.here()
