"""Files and folders that appear whole or not at all, for their owner only."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from holdfast import disk
from holdfast.problem import Problem


def test_files_and_folders_are_the_owner_s_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        disk.write(tmp_path / "a" / "b" / "note.txt", "one")
        with disk.whole(tmp_path / "a" / "c" / "made") as aside:
            (aside / "inner").mkdir()
            (aside / "inner" / "file").write_text("x")
    finally:
        os.umask(before)
    assert tiny.modes(tmp_path / "a") == {"dir": {0o700}, "file": {0o600}}
    disk.write(tmp_path / "a" / "b" / "note.txt", b"two")
    assert (tmp_path / "a" / "b" / "note.txt").read_text() == "two"
    assert sorted(path.name for path in (tmp_path / "a").rglob("*")) == ["b", "c", "file", "inner", "made", "note.txt"]


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write(tmp_path / "note", "old")
    monkeypatch.setattr(os, "fsync", tiny.full_disk)
    with pytest.raises(Problem, match=f"{tmp_path}.*disk is full"):
        disk.write(tmp_path / "note", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("note", "old")]


def in_a_file(root: Path) -> None:
    disk.write(root / "file" / "note", "x")


def below_a_file(root: Path) -> None:
    disk.private(root / "file" / "a" / "b")


def as_a_folder(root: Path) -> None:
    disk.private(root / "file")


def over_a_folder(root: Path) -> None:
    disk.write(root / "folder", "x")


def whole_in_a_file(root: Path) -> None:
    with disk.whole(root / "file" / "out"):
        pass


def whole_over_a_file(root: Path) -> None:
    with disk.whole(root / "file"):
        pass


def too_long(root: Path) -> None:
    disk.write(root / ("x" * 300), "x")


@pytest.mark.parametrize(
    "act", [in_a_file, below_a_file, as_a_folder, over_a_folder, whole_in_a_file, whole_over_a_file, too_long]
)
def test_places_that_cannot_be_written(tmp_path: Path, act: Callable[[Path], None]) -> None:
    (tmp_path / "file").write_text("theirs")
    (tmp_path / "folder").mkdir()
    with pytest.raises(Problem, match=r"choose|delete"):
        act(tmp_path)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "file", tmp_path / "folder"]
    assert (tmp_path / "file").read_text() == "theirs"


@pytest.mark.parametrize(("number", "words"), [(errno.EACCES, "no permission"), (errno.EROFS, "read-only")])
def test_folders_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    """Simulated, because the tests may run as root."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path))

    monkeypatch.setattr("tempfile.mkdtemp", refused)
    monkeypatch.setattr("tempfile.mkstemp", refused)
    with pytest.raises(Problem, match=f"{tmp_path}.*{words}"):
        disk.write(tmp_path / "note", "x")
    with pytest.raises(Problem, match=f"{tmp_path}.*{words}"), disk.whole(tmp_path / "out"):
        pass


def test_other_errors_are_not_dressed_up(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="something else"), disk.explained(tmp_path):
        raise OSError(errno.EIO, "something else")
    with pytest.raises(ValueError, match="theirs"), disk.whole(tmp_path / "out"):
        raise ValueError("theirs")
    assert list(tmp_path.iterdir()) == []
