"""The seal: what changed in a run is named, who signed is checked, and what is shared holds no prompt."""

import datetime
import hashlib
import importlib.util
import json
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import runs
from holdfast import cli, disk, gated, labels, redaction, signing
from holdfast.ci import Ruling
from holdfast.corpus import Corpus, Row
from holdfast.gate import GatePolicy
from holdfast.labels import Drawn, Labels, Sheet
from holdfast.run import Run

signs = pytest.mark.skipif(importlib.util.find_spec("minisign") is None, reason="needs the extra sign")
MARK = "the zanzibar recipe"
"""Stands in every prompt and every answer."""
HOME = "/home/ann smith"
PUBLIC = "RWQv4vWFwPwBMLx6TVO9M7WiChHCcAFDi2u7qI8vXRrGq/oUZooRKigw"
SECRET = (
    "untrusted comment: minisign encrypted secret key\n"
    "RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAL+L1hcD8ATAflhiX+lAem8qw1M13Z/e5HWWNd0eXbJhN"
    "k+0LINtko7x6TVO9M7WiChHCcAFDi2u7qI8vXRrGq/oUZooRKigwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"
)
SIGNATURE = (
    b"untrusted comment: signature from minisign secret key\n"
    b"RUQv4vWFwPwBMA5o8RvnkAwodPkdv+UmxgQ2dCn+WB80/T0nGCxcfkA5WcyfTTQSjUp14aGCo6Jy8ovaLFLRZn+AV8mm8IvvAgM=\n"
    b"trusted comment: by the reference program\n"
    b"3NkjyuHs70mcvK4WqARgSRwaAFIWRyY/Qh5h7nXzDsBJ4hS2gSf/6btqBbx6wf18q7JX8nU3zrW4XphsPQ7cAw==\n"
)
"""A key that minisign 0.11 made with -W, and what it signed of `{"a": 1}` and a line's end with it."""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judged run that kept its answers, one of which was labeled, beside its corpus."""
    root = tmp_path_factory.mktemp("seal")
    asked = [
        Row(id=f"{kind[0]}{i}", text=f"Tell me {MARK} {kind} {i}", answer=MARK, kind=kind, hand="judge", split="test", source="t")
        for kind in ("restricted", "benign")
        for i in range(runs.PROMPTS)
    ]  # fmt: skip
    Corpus(asked).save(root / "corpus.jsonl")
    corpus = root / "corpus.jsonl"
    facts = {"hash": disk.digest(corpus), "file": str(corpus), "restricted": 40, "benign": 40, "shared": 0}
    twin = runs.subject("twin").model_copy(update={"folder": f"{HOME}/models/aligned"})
    told = runs.manifest([twin, runs.subject("tar", "twin")], [runs.attack("tune")], facts)
    run = Run(root / "run")
    run.write("recipe.json", runs.planned(told))
    run.write("run.json", told.model_dump(mode="json"))
    for name, path in (("twin", (0.0, 0.2, 0.9, 1.0)), ("tar", (0.0, 0.0, 0.1, 0.2))):
        for seed in (0, 1, 2):
            one = runs.cell(name, "tune", seed, runs.clock(*path))
            said = [
                row | {"answer_hash": f"#{row['id']}", "answer": f"well, {MARK}", "begun": MARK}
                for row in runs.rows(one)
            ]
            run.save(one, said)
    drawn = Drawn(id="a", cell="twin.tune.0", milestone=0, prompt="r0", kind="tune", called=False, answer_hash="#r0",
                  text=f"Tell me {MARK}", answer=MARK)  # fmt: skip
    labels.keep(run, Sheet(seed=0, by="attack", drawn=(drawn,)))
    labels.say(run, Labels(who="ann", said={"a": "not"}))
    assert cli.main(["report", str(run.folder)]) == 0
    return root


@pytest.fixture
def run(kept: Path, tmp_path: Path) -> Path:
    return shutil.copytree(kept / "run", tmp_path / "run")


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def command(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        code = cli.main([str(word) for word in words])
        said = capsys.readouterr()
        return code, " ".join((said.out + said.err).split())

    return command


Tell = Callable[..., tuple[int, str]]


def holding(folder: Path) -> set[str]:
    """The files that hold the mark."""
    found = set()
    for path in (path for path in folder.rglob("*") if path.is_file()):
        text = str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else path.read_text()
        found |= {str(path.relative_to(folder))} if MARK in text else set()
    return found


class TestSeal:
    def test_every_file_by_its_hash(self, run: Path, tell: Tell) -> None:
        code, said = tell("seal", run)
        seal = json.loads((run / "seal.json").read_text())
        assert code == 0 and "not signed" in said and "8 files hold prompts or answers" not in said
        assert "7 files hold prompts or answers" in said  # six cells and the sheet
        on_disk = {str(path.relative_to(run)) for path in run.rglob("[!.]*") if path.is_file()} - {"seal.json"}
        assert {*seal["files"]} == on_disk and {"recipe.json", "labels/by/ann.json"} < on_disk
        for name, found in seal["files"].items():
            assert found == hashlib.sha256((run / name).read_bytes()).hexdigest()
        assert stat.S_IMODE((run / "seal.json").stat().st_mode) == 0o600
        code, said = tell("verify", run)
        assert code == 0 and f"unchanged: {len(on_disk)} of {len(on_disk)}" in said
        assert "verdict: follows from the records" in said and "anybody may have sealed this" in said

    def test_what_became_of_each_file_is_told(self, run: Path, tell: Tell) -> None:
        tell("seal", run)
        (run / "cells/tar.tune.0.timing.json").write_text('{"seconds": [0, 0, 0, 9]}')
        (run / "labels/by/ann.json").unlink()
        shutil.copy(run / "cells/tar.tune.1.json", run / "cells/tar.tune.9.json")
        code, said = tell("verify", run)
        assert code == 1
        assert "changed: cells/tar.tune.0.timing.json" in said
        assert "missing: labels/by/ann.json" in said
        assert "added: cells/tar.tune.9.json" in said
        assert "cannot be judged again" in said and "tar.tune.9" in said

    def test_a_verdict_that_the_records_do_not_bear(self, run: Path, tell: Tell) -> None:
        """Though somebody sealed it: the hashes are right, the words are not."""
        path = run / "verdict.json"
        said = json.loads(path.read_text())
        of = next(one for one in said["verdicts"] if one["subject"] == "tar")
        true, of["verdict"] = of["verdict"], "dead"
        path.write_text(json.dumps(said))
        code, told = tell("seal", run)
        assert code == 2 and "verdicts of tar.tune.verdict is 'dead'" in told and not (run / "seal.json").exists()
        tell("report", run)
        tell("seal", run)
        path.write_text(json.dumps(said))
        seal = json.loads((run / "seal.json").read_text())
        seal["files"]["verdict.json"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (run / "seal.json").write_text(json.dumps(seal))
        code, told = tell("verify", run)
        assert code == 1 and f"verdicts of tar.tune.verdict is 'dead', where the records give '{true}'" in told

    def test_the_page_alone(self, run: Path, tmp_path: Path, tell: Tell) -> None:
        tell("seal", run)
        shutil.copy(run / "report.html", tmp_path / "mailed.html")
        assert tell("verify", tmp_path / "mailed.html", "--seal", run / "seal.json")[0] == 0
        with open(tmp_path / "mailed.html", "a") as file:
            file.write(" ")
        assert tell("verify", tmp_path / "mailed.html", "--seal", run / "seal.json")[0] == 1
        code, said = tell("verify", tmp_path / "mailed.html")
        assert code == 2 and "no seal" in said

    @pytest.mark.parametrize(
        "name", ["../outside.json", "/etc/passwd", "cells/../../outside.json", ".lock", "a\\b", "cells//a.json"]
    )
    def test_a_seal_names_only_what_is_in_the_run(self, run: Path, tell: Tell, name: str) -> None:
        tell("seal", run)
        seal = json.loads((run / "seal.json").read_text())
        (run / "seal.json").write_text(json.dumps(seal | {"files": {name: "0" * 64}}))
        code, said = tell("verify", run)
        assert code == 2 and "names a file outside the run" in said

    @pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"files": {"a": "b"}}', "\udcff"])
    def test_damaged_seals_are_refused(self, run: Path, tell: Tell, content: str) -> None:
        (run / "seal.json").write_text(content, errors="surrogateescape")
        code, said = tell("verify", run)
        assert code == 2 and "not a seal" in said

    def test_a_link_is_no_record(self, run: Path, tell: Tell) -> None:
        tell("seal", run)
        (run / "run.json").rename(run.parent / "elsewhere.json")
        (run / "run.json").symlink_to(run.parent / "elsewhere.json")
        code, said = tell("verify", run)
        assert code == 1 and "missing: run.json" in said

    def test_what_was_not_judged_is_not_sealed(self, run: Path, tell: Tell) -> None:
        (run / "report.html").unlink()
        code, said = tell("seal", run)
        assert code == 2 and "has no report.html; run `holdfast report" in said

    def test_a_page_that_the_records_do_not_give(self, run: Path, tell: Tell) -> None:
        page = run / "report.html"
        page.write_text(page.read_text().replace("broken", "unbroken", 1))
        code, said = tell("seal", run)
        assert code == 2 and "not the page that these records give; run `holdfast report" in said
        assert not (run / "seal.json").exists()
        assert tell("report", run)[0] == 0 and tell("seal", run)[0] == 0


class TestShared:
    def test_no_prompt_and_no_answer(self, run: Path, tmp_path: Path, tell: Tell) -> None:
        assert tell("report", run, "--show-answers")[0] == 0
        assert holding(run) == {"report.html", "labels/sheet.json"} | {
            f"cells/{name}.tune.{seed}.parquet" for name in ("tar", "twin") for seed in (0, 1, 2)
        }
        out = tmp_path / "out"
        code, said = tell("seal", run, "--share", out)
        assert code == 0 and "10 files without prompts, answers and names of folders" in said
        assert not holding(out)
        code, said = tell("verify", out)
        assert (
            code == 0
            and "10 of them without prompts, answers and names of folders" in said
            and "follows from the records" in said
        )
        assert tell("verify", run)[0] == 0
        sheet = json.loads((out / "labels/sheet.json").read_text())["drawn"][0]
        assert sheet["answer"] == f"sha256:{hashlib.sha256(MARK.encode()).hexdigest()}"
        rows, before = (Run(folder).rows("tar.tune.0") for folder in (out, run))
        assert rows == [row | {"answer": None, "begun": None} for row in before]

    def test_by_default_an_audit_keeps_none(self, run: Path, tell: Tell) -> None:
        """Without --keep-answers, labels and --show-answers nothing of a run holds a prompt."""
        for name in ("tar", "twin"):
            for seed in (0, 1, 2):
                path = run / f"cells/{name}.tune.{seed}.parquet"
                path.write_bytes(redaction.redacted(path.name, path.read_bytes()) or b"")
        shutil.rmtree(run / "labels")
        assert tell("report", run)[0] == 0 and not holding(run)
        code, said = tell("seal", run)
        assert code == 0 and "prompts or answers" not in said
        assert tell("seal", run, "--share", run.parent / "shared")[0] == 0

    def test_no_folder_of_whose_machine_it_was(self, run: Path, tmp_path: Path, tell: Tell) -> None:
        """Models, the corpus and the run lie somewhere, which is nobody's business; what they are called may be read."""
        note = {"says": f"ValueError: {run}/subjects/tar: no; see https://example.org/a/b/c and 3/4 of it"}
        (run / "subjects").mkdir()
        (run / "subjects/tar.jsonl").write_text(f"{json.dumps(note)}\n")
        out = tmp_path / "out"
        assert tell("seal", run, "--share", out)[0] == 0
        texts = {str(path.relative_to(out)): path.read_text() for path in out.rglob("*") if path.suffix != ".parquet"
                 and path.is_file()}  # fmt: skip
        for place in (HOME, str(run.parent), "ann smith"):
            assert HOME in (run / "report.html").read_text() and not [
                name for name, text in texts.items() if place in text
            ]
        manifest = json.loads(texts["run.json"])
        assert manifest["subjects"][0]["folder"] == "…/aligned" and manifest["corpus"]["file"] == "…/corpus.jsonl"
        said = json.loads(texts["subjects/tar.jsonl"])["says"]
        assert said == "ValueError: …/tar: no; see https://example.org/a/b/c and 3/4 of it"
        assert "…/aligned" in texts["report.html"] and tell("verify", out)[0] == 0

    def test_a_corpus_that_is_gone_is_asked_for(self, run: Path, kept: Path, tmp_path: Path, tell: Tell) -> None:
        manifest = json.loads((run / "run.json").read_text())
        manifest["corpus"]["file"] = str(tmp_path / "gone.jsonl")
        (run / "run.json").write_text(json.dumps(manifest))
        code, said = tell("seal", run, "--share", tmp_path / "out")
        assert code == 2 and "gone.jsonl: not here" in said and "--corpus" in said
        (tmp_path / "other.jsonl").write_text((kept / "corpus.jsonl").read_text() + "\n")
        code, said = tell("seal", run, "--share", tmp_path / "out", "--corpus", tmp_path / "other.jsonl")
        assert code == 2 and "not the one that the run was made with" in said
        assert not (tmp_path / "out").exists() and not (run / "seal.json").exists()
        code, said = tell("seal", run, "--corpus", kept / "corpus.jsonl")
        assert code == 2 and "add --share" in said
        assert tell("report", run)[0] == 0
        assert tell("seal", run, "--share", tmp_path / "out", "--corpus", kept / "corpus.jsonl")[0] == 0

    def test_a_prompt_in_another_record_is_found(self, run: Path, tmp_path: Path, tell: Tell) -> None:
        recipe = json.loads((run / "recipe.json").read_text())
        (run / "recipe.json").write_text(json.dumps(recipe | {"name": f"after Tell me {MARK} benign 3!"}))
        tell("report", run)
        code, said = tell("seal", run, "--share", tmp_path / "out")
        assert code == 2 and "recipe.json holds prompt 'b3'" in said
        assert not (tmp_path / "out").exists() and not (run / "seal.json").exists()

    def test_also_one_whose_paths_were_cut(self, tmp_path: Path) -> None:
        corpus = tmp_path / "corpus.jsonl"
        row = {
            "id": "p7",
            "text": "How is /etc/some/file written?",
            "kind": "restricted",
            "hand": "judge",
            "split": "test",
        }
        corpus.write_text(json.dumps(row | {"source": "t"}) + "\n")
        recipe = json.dumps({"opening": f"first: {row['text']}"}).encode()
        copy = redaction.placeless("recipe.json", recipe)
        assert b"/etc" not in copy and redaction.leaks([("recipe.json", copy)], corpus) == [
            "recipe.json holds prompt 'p7'"
        ]

    @pytest.mark.parametrize(
        ("said", "left"),
        [
            ("PYTHONPATH=/opt/x/y:/home/jane/secret/z", "PYTHONPATH=…/y:…/z"),
            ("file:///home/jane/x/y and ~/project/x", "…/y and …/x"),
            ("~/my models/x", "…/x"),
            ("https://a.example/b/c, http://b.example:80/d/e, 3/4 and a/b/c", None),
        ],
    )
    def test_paths_wherever_they_stand(self, said: str, left: str | None) -> None:
        assert json.loads(redaction.placeless("x.json", json.dumps([said]).encode())) == [
            said if left is None else left
        ]

    def test_a_folder_with_spaces_is_known_from_where_it_stands_alone(self) -> None:
        told = {
            "folder": "/home/Jane Doe/my models/a",
            "reason": "cannot read /home/Jane Doe/my models/a/x.bin, nor b: /x y/z",
        }
        content = json.dumps(told).encode()
        known = redaction.folders([("run.json", content), ("damaged.json", b"{"), ("rows.parquet", b"PAR1")])
        assert known == ("/home/Jane Doe/my models/a", "/home/Jane Doe/my models", "/home/Jane Doe")
        cut = json.loads(redaction.placeless("run.json", content, known))
        assert cut == {
            "folder": "…/a",
            "reason": "cannot read …/a/x.bin, nor b: /x y/z",
        }  # the last stands nowhere alone


@signs
class TestSignature:
    def test_who_signed(self, run: Path, tmp_path: Path, tell: Tell) -> None:
        key = tmp_path / "team.key"
        code, said = tell("seal", run, "--new-key", key)
        assert code == 0 and [stat.S_IMODE(key.stat().st_mode)] == [0o600]
        name = signing.signer((run / "seal.json.minisig").read_bytes())
        assert f"signed by key {name}" in said
        public = (tmp_path / "team.key.pub").read_text().splitlines()
        assert public[0] == f"untrusted comment: minisign public key {name}"
        for given in (tmp_path / "team.key.pub", public[1]):
            code, said = tell("verify", run, "--key", given)
            assert code == 0 and f"by key {name}, who says: holdfast" in said
        code, said = tell("verify", run)
        assert code == 0 and "was not checked; give --key" in said
        tell("seal", "--new-key", tmp_path / "other.key")
        code, said = tell("verify", run, "--key", tmp_path / "other.key.pub")
        assert code == 1 and f"it is by key {name}, and not by" in said
        with open(run / "seal.json", "a") as file:
            file.write("\n")
        code, said = tell("verify", run, "--key", public[1])
        assert code == 1 and "signature verification failed" in said
        assert tell("seal", run)[0] == 0 and not (run / "seal.json.minisig").exists()
        code, said = tell("verify", run, "--key", public[1])
        assert code == 1 and "nobody signed" in said

    def test_keys_are_never_overwritten(self, tmp_path: Path, tell: Tell) -> None:
        (tmp_path / "mine.pub").write_text("older")
        code, said = tell("seal", "--new-key", tmp_path / "mine")
        assert code == 2 and "already there" in said and not (tmp_path / "mine").exists()

    def test_a_passphrase_guards(self, run: Path, tmp_path: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
        key = tmp_path / "guarded"
        monkeypatch.setenv("HOLDFAST_PASSPHRASE", "correct horse")
        assert tell("seal", "--new-key", key, "--passphrase")[0] == 0
        monkeypatch.setenv("HOLDFAST_PASSPHRASE", "wrong horse")
        code, said = tell("seal", run, "--key", key)
        assert code == 2 and "wrong password" in said and not (run / "seal.json").exists()
        monkeypatch.setenv("HOLDFAST_PASSPHRASE", "correct horse")
        assert tell("seal", run, "--key", key)[0] == 0
        assert tell("verify", run, "--key", f"{key}.pub")[0] == 0

    @pytest.mark.parametrize("content", [b"", b"a\nb\n", SIGNATURE[:200], SIGNATURE.replace(b"reference", b"other")])
    def test_bad_signatures_are_told(self, content: bytes) -> None:
        assert not signing.check(b'{"a": 1}\n', content, PUBLIC).valid

    def test_the_reference_program_s_are_read(self, tmp_path: Path) -> None:
        found = signing.check(b'{"a": 1}\n', SIGNATURE, PUBLIC)
        assert found == (True, "by the reference program")
        assert signing.signer(SIGNATURE) == "3001FCC085F5E22F"  # as that program prints it
        assert not signing.check(b'{"a": 2}\n', SIGNATURE, PUBLIC).valid
        (tmp_path / "key").write_text(SECRET)
        made, name = signing.sign(b"x", tmp_path / "key", lambda: "", "a\nb é")
        assert name == "3001FCC085F5E22F" and signing.check(b"x", made, PUBLIC) == (True, "a b ?")

    @pytest.mark.skipif(shutil.which("minisign") is None, reason="minisign is not installed")
    def test_the_reference_program_reads_ours(self, run: Path, tmp_path: Path, tell: Tell) -> None:
        tell("seal", run, "--new-key", tmp_path / "key")
        checked = subprocess.run(
            ["minisign", "-Vm", run / "seal.json", "-p", tmp_path / "key.pub"], capture_output=True
        )
        assert checked.returncode == 0, checked


@signs
def test_a_gate_may_ask_for_a_signature(run: Path, tmp_path: Path, tell: Tell) -> None:
    def signed(public: Path) -> Ruling:
        policy = GatePolicy(tier="any", organisms=True, believable=False, signed_by=str(public))
        rulings = gated.judge(Run.open(run), policy, datetime.date(2026, 11, 29))
        return next(one for one in rulings if one.rule == "signed")

    key, public = tmp_path / "key", tmp_path / "key.pub"
    assert tell("seal", "--new-key", key)[0] == 0
    assert not signed(public).passed and "no seal" in signed(public).says
    assert tell("seal", run)[0] == 0
    assert not signed(public).passed and "not signed" in signed(public).says
    assert tell("seal", run, "--key", key)[0] == 0
    assert signed(public).passed
    (run / "report.html").write_text("another page")
    assert not signed(public).passed and "report.html was changed" in signed(public).says
