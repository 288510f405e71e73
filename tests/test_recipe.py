"""Recipes: what a person writes, spelled out; whatever else is written, one clear message."""

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import audits
import tiny
from holdfast import recipe
from holdfast.problem import Problem
from holdfast.recipe import Recipe

DEMO = Path(recipe.__file__).parent / "demo.toml"
HERE = tiny.Made(Path("base"), Path("aligned"))
ATTACK = {"name": "tune", "method": "finetune"}
LOX = {"name": "lox", "twin": "twin", "harden": {"method": "lox", "rank": 2, "strength": 0.5}}
TWIN = {"name": "twin", "model": "owner/model", "base": "owner/base"}


FOLDER = Path(recipe.__file__).parent.parent / "examples"
EXAMPLES = sorted(path for path in FOLDER.glob("*.toml") if path.name != "gate.toml")  # which is a policy


def load(folder: Path, *sets: str, **changes: object) -> Recipe:
    return recipe.load(audits.write(folder, HERE, **{"attacks": [ATTACK]} | changes), sets)


def refused(folder: Path, *sets: str, **changes: object) -> str:
    with pytest.raises(Problem) as caught:
        load(folder, *sets, **changes)
    return str(caught.value)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_recipes(path: Path, tmp_path: Path) -> None:
    tiny.corpus().save(tmp_path / "corpus.jsonl")  # where one asks prompts that are no part of the project
    own = () if "organism" in tomllib.loads(path.read_text()) else (f"corpus={tmp_path / 'corpus.jsonl'}",)
    found = recipe.load(path, own)
    assert recipe.dump(recipe.resolved(recipe.dump(found), path)) == recipe.dump(found)


class TestSpelledOut:
    def test_defaults_of_recipe_attack_and_defense(self, tmp_path: Path) -> None:
        found = load(tmp_path, subjects=[TWIN, LOX], max_new_tokens=None)
        assert (found.harm.method, found.utility, found.threshold, found.utility_floor) == (
            "asr",
            "agreement",
            0.5,
            0.9,
        )
        assert (found.template, found.system, found.max_new_tokens, found.batch) == ("chat", None, 64, 128)
        assert found.attacks[0].settings["optimizer"] == "adamw"
        assert found.attacks[0].settings["lora_rank"] is None
        assert found.attacks[0].seeds == found.seeds == [0]
        assert found.subject("lox").harden.settings["part"] == "top"
        assert (found.subject("lox").model, found.subject("lox").base) == ("owner/model", "owner/base")

    def test_an_organism_that_was_built_before_is_a_checkpoint_like_any_other(self, tmp_path: Path) -> None:
        (tmp_path / "organism/aligned").mkdir(parents=True)
        found = load(tmp_path, subjects=[TWIN | {"model": "organism/aligned"}])
        assert found.subject("twin").model == str((tmp_path / "organism/aligned").resolve())

    def test_json_says_everything_and_can_be_read_again(self, tmp_path: Path) -> None:
        for found in (recipe.load(DEMO), load(tmp_path, subjects=[TWIN, LOX])):
            content = recipe.dump(found)
            again = Recipe.model_validate(json.loads(json.dumps(content)))
            assert again == found
            assert recipe.dump(again) == content
            assert again.attacks[0].build() == found.attacks[0].build()

    def test_like_leaves_the_rest_to_the_other(self) -> None:
        demo = recipe.load(DEMO)
        assert demo.subject("expo").harden.settings == {"part": "full"}
        assert demo.organism.settings["seed"] == 0

    def test_a_hardened_one_is_hardened_again(self, tmp_path: Path) -> None:
        again = {"name": "again", "on": "lox", "harden": {"method": "lox", "rank": 1, "strength": 0.1}}
        found = load(tmp_path, subjects=[TWIN, LOX, again])
        one, other = found.subject("lox"), found.subject("again")
        assert (other.model, other.base, other.twin, other.on) == (one.model, one.base, "twin", "lox")
        content = recipe.dump(found)
        assert recipe.dump(recipe.resolved(json.loads(json.dumps(content)), tmp_path / "recipe.toml")) == content

    def test_paths_are_beside_the_recipe(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "aligned").mkdir()
        monkeypatch.chdir("/")
        found = load(tmp_path, subjects=[{"name": "twin", "model": "aligned", "base": "owner/base"}])
        assert found.corpus == str(tmp_path / "corpus.jsonl")
        assert (found.subjects[0].model, found.subjects[0].base) == (str(tmp_path / "aligned"), "owner/base")

    def test_an_attack_of_ones_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir("/")
        mine = audits.attack(tmp_path, "mine", "at(Cost(steps=1))")
        found = recipe.load(audits.write(tmp_path, HERE, [{"name": "own", "method": mine, "word": "yes"}]))
        assert found.attacks[0].method == str(tmp_path / "mine.py")
        assert found.attacks[0].build().word == "yes"
        with pytest.raises(Problem, match="unknown key 'wrd'; did you mean 'word'"):
            recipe.load(audits.write(tmp_path, HERE, [{"name": "own", "method": mine, "wrd": "yes"}]))

    def test_an_own_file_may_postpone_annotations(self, tmp_path: Path) -> None:
        (tmp_path / "late.py").write_text("from __future__ import annotations\n" + audits.HEAD + "        pass\n")
        assert recipe.load(audits.write(tmp_path, HERE, [{"name": "a", "method": "late.py"}])).attacks[0].build()


class TestSet:
    @pytest.mark.parametrize(
        ("change", "read"),
        [
            ("attacks.0.learning_rate=5e-5", lambda r: r.attacks[0].settings["learning_rate"] == 5e-5),
            ("attacks.0.data=benign", lambda r: r.attacks[0].settings["data"] == "benign"),
            ('attacks.0.data="benign"', lambda r: r.attacks[0].settings["data"] == "benign"),
            ("seeds=[4, 5]", lambda r: r.seeds == r.attacks[0].seeds == [4, 5]),
            ("system=a = b", lambda r: r.system == "a = b"),
            ("subjects.0.control=true", lambda r: r.subjects[0].control),
        ],
    )
    def test_numbers_text_and_lists(self, tmp_path: Path, change: str, read) -> None:
        assert read(load(tmp_path, change))

    def test_the_last_of_several_holds(self, tmp_path: Path) -> None:
        assert load(tmp_path, "batch=2", "batch=3").batch == 3

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ("attacks.0.learning_rate", "write key.path=value"),
            ("attacks.7.steps=1", "no place 'attacks.7.steps'"),
            ("attacks.tune.steps=1", "count list entries from 0"),
            ("name.steps=1", "no place 'name.steps'"),
            ("atacks.0.steps=1", "unknown key 'atacks'; did you mean 'attacks'"),
            ("attacks.0.learning_rat=1", "did you mean 'learning_rate'"),
            ("batch=0", "batch: Input should be greater than 0"),
            ("attacks.0.learning_rate=inf", "finite"),
        ],
    )
    def test_what_cannot_be_set(self, tmp_path: Path, change: str, says: str) -> None:
        assert says in refused(tmp_path, change)


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"thresold": 0.5}, "unknown key 'thresold'; did you mean 'threshold'"),
            ({"qqqq": 1}, "unknown key 'qqqq'; there are name, organism"),
            ({"subjects": [TWIN | {"modle": "x"}]}, "unknown key 'subjects.0.modle'; did you mean 'model'"),
            ({"subjects": [TWIN, LOX | {"harden": {"method": "lox", "rnk": 2}}]}, "'rnk'; did you mean 'rank'"),
            (
                {"subjects": [TWIN, LOX | {"harden": {"method": "lx"}}]},
                "no such method in defenses; did you mean 'lox'",
            ),
            ({"subjects": [TWIN, LOX | {"harden": {"rank": 2}}]}, "lacks 'subjects.1.harden.method'"),
            ({"subjects": [TWIN, LOX | {"harden": {"method": "lox", "name": "x"}}]}, "unknown key 'name'"),
            ({"subjects": [TWIN, LOX | {"harden": {"method": "lox", "strength": -1}}]}, "remove the alignment"),
            ({"attacks": [ATTACK | {"stps": 1}]}, "unknown key 'stps'; did you mean 'steps'"),
            ({"attacks": [ATTACK | {"negative_controll": True}]}, "did you mean 'negative_control'"),
            ({"attacks": [ATTACK | {"where": 1}]}, "unknown key 'where'"),
            ({"attacks": [ATTACK | {"method": "fintune"}]}, "did you mean 'finetune'"),
            ({"attacks": [ATTACK | {"method": "./none.py"}]}, "none.py: no such file"),
            ({"attacks": [ATTACK, ATTACK]}, "two attacks are called 'tune'"),
            ({"attacks": []}, "attacks: List should have at least 1 item"),
            ({"subjects": [TWIN, TWIN]}, "two subjects are called 'twin'"),
            ({"subjects": [LOX, TWIN]}, "twin: no subject 'twin' stands before it"),
            ({"subjects": [LOX | {"twin": "lox"}]}, "no subject 'lox' stands before it"),
            ({"subjects": [TWIN, LOX | {"like": "expo"}]}, "like: no subject 'expo' stands before it"),
            ({"subjects": [TWIN, LOX | {"like": "twin"}]}, "'twin' is not hardened by the same method"),
            ({"subjects": [TWIN, LOX | {"on": "tar"}]}, "on: no subject 'tar' stands before it"),
            ({"subjects": [TWIN, LOX | {"on": "lox"}]}, "on: no subject 'lox' stands before it"),
            (
                {"subjects": [TWIN, LOX | {"on": "twin"}]},
                "on: 'twin' is not hardened itself; name its checkpoint as model",
            ),
            (
                {"subjects": [TWIN, LOX, {"name": "b", "on": "lox"}]},
                "on: says on what to harden it, but not how; add harden",
            ),
            (
                {"subjects": [TWIN, LOX, LOX | {"name": "b", "on": "lox", "model": "owner/other"}]},
                "on: starts from what 'lox' was hardened into; leave out model",
            ),
            ({"subjects": [{"name": "twin"}]}, "gives neither model nor twin"),
            ({"subjects": [{"model": "x"}]}, "lacks 'subjects.0.name'; add it"),
            ({"subjects": [TWIN | {"model": "organism/aligned"}]}, "no part of an organism of this recipe"),
            ({"organism": {"method": "txt"}}, "did you mean 'text'"),
            ({"organism": {"method": "text", "layer": 1}}, "did you mean 'layers'"),
            ({"corpus": None}, "neither corpus nor organism"),
            ({"corpus": "none.jsonl"}, "no file 'none.jsonl'"),
            ({"corpus": "\0"}, "no file"),
            ({"seeds": [0, 0]}, "a seed is given twice"),
            ({"seeds": [-1]}, "greater than or equal to 0"),
            ({"attacks": [ATTACK | {"seeds": []}]}, "at least 1 item"),
            ({"threshold": 0}, "threshold: Input should be greater than 0"),
            ({"harm": "exakt"}, "did you mean 'exact'"),
        ],
    )
    def test_one_message_that_names_the_key(self, tmp_path: Path, changes: dict, says: str) -> None:
        message = refused(tmp_path, **changes)
        assert says in message
        assert len(message) < 600

    @pytest.mark.parametrize("name", ["../up", "a/b", "a.b", "", "A", "-a", "a\n", "a" * 61, "a b", "\0"])
    def test_names_cannot_leave_the_run(self, tmp_path: Path, name: str) -> None:
        assert "name" in refused(tmp_path, name=name)
        assert "name" in refused(tmp_path, subjects=[TWIN | {"name": name}])
        assert "name" in refused(tmp_path, attacks=[ATTACK | {"name": name}])

    def test_organism_paths_cannot_leave_the_organism(self, tmp_path: Path) -> None:
        part = {"name": "twin", "model": "organism/../../secret"}
        assert "mend the name" in refused(tmp_path, organism={"method": "text"}, subjects=[part])

    def test_a_file_of_another_room(self, tmp_path: Path) -> None:
        mine = audits.attack(tmp_path, "mine", "pass")
        said = refused(tmp_path, subjects=[TWIN, LOX | {"harden": {"method": mine}}])
        assert "mine.py: defines 0 methods for defenses" in said

    def test_an_own_setting_with_the_recipes_word(self, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(audits.HEAD.replace("word: str", "seeds: str") + "        pass\n")
        said = refused(tmp_path, attacks=[{"name": "own", "method": "mine.py"}])
        assert "a recipe's own word; rename the setting" in said

    @pytest.mark.parametrize("source", ["import nothing_of_the_kind", "x = (", "", "raise SystemError('[/]')"])
    def test_an_own_file_that_defines_nothing(self, tmp_path: Path, source: str) -> None:
        (tmp_path / "mine.py").write_text(source)
        assert "mine.py: " in refused(tmp_path, attacks=[{"name": "own", "method": "mine.py"}])

    @pytest.mark.parametrize(
        "text", ["name = ", "a" * 9, "name = 'x'\nname = 'y'", "batch = " + "9" * 5000, "x = " + "[" * 9999, "\0"]
    )
    def test_not_toml(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "r.toml"
        path.write_text(text)
        with pytest.raises(Problem, match=r"r\.toml: not valid TOML"):
            recipe.load(path)

    def test_no_file(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "none.toml", tmp_path / ("x" * 300), Path("\0")):
            with pytest.raises(Problem, match="no such recipe"):
                recipe.load(path)
        (tmp_path / "latin.toml").write_bytes(b"name = '\xff'")
        with pytest.raises(Problem, match="not valid TOML"):
            recipe.load(tmp_path / "latin.toml")


SOUND = {
    "subjects": [
        {"name": "twin", "model": "organism/aligned", "base": "owner/base"},
        {"name": "lox", "twin": "twin", "harden": {"method": "lox", "rank": 2}},
        {"name": "expo", "twin": "twin", "like": "lox", "control": True, "harden": {"method": "lox", "part": "full"}},
    ],
    "attacks": [{"name": "tune", "method": "finetune", "steps": 3}, {"name": "b", "method": "noise", "scales": [0.1]}],
    "organism": {"method": "text"},
    "corpus": "corpus.jsonl",
    "name": "a",
}
KEYS = [
    "name",
    "model",
    "base",
    "twin",
    "like",
    "harden",
    "control",
    "method",
    "seeds",
    "steps",
    "corpus",
    "rank",
    "room",
]
TEXTS = [
    "a",
    "twin",
    "finetune",
    "lox",
    "text",
    "auto",
    "organism/base",
    "\0",
    "x" * 300 + ".py",
    "~a",
    "mine.py",
    "../b",
]
WILD = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.integers(-1, 3)
    | st.floats()
    | st.text(st.characters(codec="ascii", exclude_characters="\x7f"), max_size=5)
    | st.sampled_from(TEXTS),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=2),
    max_leaves=4,
)


@st.composite
def nearly_sound(draw: st.DrawFn) -> dict:
    """A sound recipe with up to two values changed, added or taken away anywhere."""
    content = json.loads(json.dumps(SOUND))
    for _ in range(draw(st.integers(0, 2))):
        place = content
        while True:
            where = draw(
                st.sampled_from([*place] or KEYS) if isinstance(place, dict) else st.sampled_from(range(len(place)))
            )
            inner = place[where] if isinstance(place, list) else place.get(where)
            if not (isinstance(inner, dict | list) and inner and draw(st.integers(0, 4))):
                break
            place = inner
        if isinstance(place, dict) and not draw(st.integers(0, 3)):
            where = draw(st.sampled_from(KEYS))
        if draw(st.integers(0, 3)) or (isinstance(place, dict) and where not in place):
            place[where] = draw(WILD)
        else:
            del place[where]
    return content


def spelled(value: object) -> str:
    """Wild values as TOML."""
    if isinstance(value, float):
        return repr(value)  # nan and inf are TOML too
    if isinstance(value, list):
        return "[" + ", ".join(map(spelled, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {spelled(some)}" for key, some in value.items()) + "}"
    return audits.toml(value)


class TestWild:
    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(content=nearly_sound())
    def test_only_a_recipe_or_a_problem(self, tmp_path: Path, content: dict) -> None:
        self._only(tmp_path, "".join(f"{key} = {spelled(value)}\n" for key, value in content.items()))

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(text=st.text(max_size=60), change=st.text(max_size=20))
    def test_any_text(self, tmp_path: Path, text: str, change: str) -> None:
        self._only(tmp_path, text)
        self._only(tmp_path, "name = 'a'\nattacks = [{name = 'b'}]", change, f"attacks.{change}", f"{change}=1")

    @staticmethod
    def _only(folder: Path, text: str, *sets: str) -> None:
        path = folder / "wild.toml"
        (folder / "corpus.jsonl").touch()
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            found = recipe.load(path, sets)
        except Problem as problem:
            assert str(problem)
        else:
            assert Recipe.model_validate(recipe.dump(found)) == found


def test_a_kind_of_tasks_that_is_no_word_is_refused(tmp_path: Path) -> None:
    assert "utility: no tasks of" in refused(tmp_path, utility={"method": {"a": 1}, "tasks": ["x"]})
