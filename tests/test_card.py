"""The card: somebody's README stays as it is, the hub's own library reads what comes out, and nothing weak is a claim."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

import runs
from holdfast import cli, readme, verdict
from holdfast.card import Card
from holdfast.footing import Footing
from holdfast.markdown import quoted
from holdfast.problem import Problem
from holdfast.run import Run
from test_gate import CUT, HOLDS, cells, saved

RESULT = {
    "task": {"type": "text-generation"},
    "dataset": {"name": "holdfast: 0.1 # x", "type": "holdfast"},
    "metrics": [{"type": "harm", "value": 1e-05, "args": {"low": 0, "axis": "a: b # c"}}],
}
OTHER = """- task: {type: t}
  dataset: {type: d, name: D}
  metrics: [{type: acc, value: 0.9}]  # measured twice"""
FLOW = "[{name: o, results: [{task: {type: t}, dataset: {type: d, name: D}, metrics: [{type: a, value: 1}]}]}]"


def indented(text: str, by: int) -> str:
    return "\n".join(" " * by + line for line in text.split("\n"))


CARDS = {
    "empty": "",
    "no metadata": "# Mine\n\ntext",
    "comments": "---\n# mine\nlicense: mit # see LICENSE\ntags:\n  - b\n  - a\n---\n# Mine\n",
    "only comments": "---\n# none yet\n---\n# Mine\n",
    "no value": "---\nmodel-index:\nlicense: mit\n---\n# Mine\n",
    "null": "---\nmodel-index: ~ # none\nlicense: mit\n---\n# Mine\n",
    "empty list": "---\nmodel-index: []\nlicense: mit\n---\n# Mine\n",
    "others": "---\nmodel-index:\n- name: mine\n  results:\n"
    + indented(OTHER, 2)
    + "\n  # more to come\n\nlicense: mit\n---\n# Mine\n",
    "indented": "---\nmodel-index:\n    -   name: other\n        results:\n" + indented(OTHER, 12) + "\n---\n# Mine\n",
    "in one line": f"---\nmodel-index: {FLOW}\n---\n",
    "all in one line": "---\n{license: mit}\n---\n# Mine\n",
    "a rule in the text": "# Mine\n\n---\n\nmore\n\n---\n",
}


def untouched(before: str, after: str) -> bool:
    """Whether `after` is `before` with something put in at one place, and something behind it all."""
    head = next((at for at, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), len(before))
    return before[head:] in after[head:]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("name", [*CARDS])
def test_a_readme_stays_as_it_is_and_nothing_doubles(name: str, bom: str, newline: str, tmp_path: Path) -> None:
    before = bom + CARDS[name].replace("\n", newline)
    once = readme.merged(before, "## Safety\n\nheld", RESULT, "mine", name)
    assert readme.merged(once, "## Safety\n\nheld", RESULT, "mine", name) == once
    other = RESULT | {"metrics": [{"type": "x", "value": 1}]}
    twice = readme.merged(once, "## Safety\n\nbroke\nlater", other, "mine", name)
    assert twice != once and twice.count("holdfast:begin") == 1 and "held" not in twice
    assert readme.merged(twice, "## Safety\n\nheld", RESULT, "mine", name) == once
    assert once.startswith(bom) and (newline not in before or newline == "\n" or "\n" not in once.replace("\r\n", ""))
    if name not in ("null", "empty list"):  # whose value gives way
        assert untouched(before, once)
    (tmp_path / "README.md").write_bytes(once.encode())
    card = ModelCard.load(tmp_path / "README.md")
    ours = [one for one in card.data.eval_results if one.dataset_type == "holdfast"]
    (own,) = ours
    assert (own.metric_type, own.metric_value, own.metric_args) == ("harm", 1e-05, {"low": 0, "axis": "a: b # c"})
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict(), "as the hub's library writes it again"
    data = yaml.safe_load(readme.REGEX_YAML_BLOCK.search(once.removeprefix("\ufeff"))[2])
    mine = data.pop("model-index")
    kept = yaml.safe_load((readme.REGEX_YAML_BLOCK.search(before.removeprefix("\ufeff")) or ["", "", "{}"])[2]) or {}
    others = [one for entry in kept.pop("model-index", None) or [] for one in entry["results"]]
    assert data == kept and [one for entry in mine for one in entry["results"]] == [*others, RESULT]


@pytest.mark.parametrize(
    ("before", "says"),
    [
        ("---\nlicense: [mit\n---\n", "no YAML"),
        ("---\n- a\n---\n", "no table of keys and values"),
        ("---\nlicense: mit\n# Mine\n", "lack the closing line ---"),
        ("---\nmodel-index: [{name: a}]\n---\n", "not a model card's"),
        ("# x\n<!-- holdfast:begin -->\nhalf\n", "once each, in this order"),
        ("# x\n<!-- holdfast:end -->\n<!-- holdfast:begin -->\n", "once each, in this order"),
    ],
)
def test_a_card_that_cannot_be_merged_into_is_refused(before: str, says: str) -> None:
    with pytest.raises(Problem, match=f"README.md.*{says}"):
        readme.merged(before, "x", RESULT, "mine", "README.md")


def test_an_alias_that_would_change_with_ours_is_refused() -> None:
    item = "{task: {type: t}, dataset: {type: d, name: D}, metrics: [{type: a, value: 1}]}"
    before = f"---\nother: &r\n- {item}\nmodel-index:\n- name: o\n  results: *r\n---\n"
    with pytest.raises(Problem, match="without disturbing the rest"):
        readme.merged(before, "x", RESULT, "mine", "README.md")


BAD = "<script>x</script> | `a` **b** [l](http://x) www.x.y @me #1 $x$ --> \x1b[31m\u202e\nnew"


def test_others_words_are_shown_as_text() -> None:
    safe = quoted(BAD)
    for part in ("<", ">", "://", "www.", "@me", " #1", "$x", "\x1b", "\u202e", "\n"):
        assert part not in safe
    assert "\\[l\\]" in safe and "\\|" in safe and "\\*\\*b" in safe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return saved(tmp_path_factory.mktemp("run"))


class TestCommand:
    def test_weak_evidence_is_refused_and_else_labeled(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
        (tmp_path / "README.md").chmod(0o640)
        words = ["card", str(run.folder), "--readme", str(tmp_path / "README.md")]
        assert cli.main(words) == 2 and "--anyway preliminary" in capsys.readouterr().err
        assert (tmp_path / "README.md").read_text() == "---\nlicense: mit\n---\n# Mine\n"
        assert cli.main([*words, "--anyway", "preliminary"]) == 0
        text = (tmp_path / "README.md").read_text()
        assert "**Not a claim about a model.** No tier is complete" in text and text.startswith("---\nlicense: mit\n")
        assert (tmp_path / "README.md").stat().st_mode & 0o777 == 0o640
        results = ModelCard(text).data.eval_results
        assert {one.dataset_args["claim"] for one in results} == {False}
        assert "not a claim about a model: preliminary" in results[0].dataset_name
        said = {one.metric_name: one for one in results}
        assert said["what a laboratory achieved"].metric_value.startswith("broken")
        harm = next(
            one for one in verdict.judge(run).verdicts if (one.subject, one.attack) == ("mine", "quantize")
        ).harm
        assert said["harm after quantize"].metric_value == round(harm.value, 4)
        assert said["harm after quantize"].metric_args["high"] == round(harm.high, 4)

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["--readme", "none.md"], "cannot be read"),
            (["--subject", "mein"], "did you mean 'mine'"),
        ],
    )
    def test_bad_input(self, run: Run, capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
        assert cli.main(["card", str(run.folder), "--anyway", "preliminary", *words]) == 2
        assert says in capsys.readouterr().err


def told(run: Run, footing: Footing, **changes: Any) -> Card:
    dossier = verdict.judge(run)
    return Card(dossier.model_copy(update=changes), dossier.subjects[0], footing)


def test_a_standard_run_of_a_model_is_a_claim(run: Run) -> None:
    whole: dict[Any, dict[str, str]] = {one: {} for one in ("smoke", "standard", "release", "cuts")}
    card = told(run, Footing("mine", None, "base", whole))
    card.refuse(())
    assert "Not a claim" not in card.section() and card.result()["dataset"]["args"]["claim"]
    part = told(
        run, Footing("mine", "text", "base", whole | {"standard": {"a": "a: not run"}, "release": {"a": "a: not run"}})
    )
    with pytest.raises(Problem, match="--anyway organism --anyway preliminary"):
        part.refuse(())
    assert "organism text" in part.section() and part.result()["dataset"]["args"]["organism"] == "text"


def test_no_message_of_a_failed_cell_and_no_markup_is_published(tmp_path: Path) -> None:
    made = cells("mine", HOLDS, CUT)
    made[0] = runs.cell("mine", "harmful", 0, [], status="failed", reason="SECRET /home/me")
    run = saved(tmp_path, made, harm=BAD, not_run=(BAD,))
    whole: dict[Any, dict[str, str]] = {one: {} for one in ("smoke", "standard", "release", "cuts")}
    card = told(run, Footing("mine", None, "base", whole))
    text = readme.merged("", card.section(), card.result(), card.name, "card")
    assert "SECRET" not in text
    assert "<script>" not in card.section() and "\x1b" not in text and "\u202e" not in text
    assert ModelCard(text).data.eval_results
