"""What a hub does not hand out is told before anything slow begins."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from holdfast import access, cli
from holdfast.problem import Problem


class Hub:
    """What stands in for the hub's client."""

    def __init__(self, error: Exception | None, files: list[str]) -> None:
        self.error, self.files = error, files

    def auth_check(self, name: str, *, repo_type: str) -> None:
        if self.error:
            raise self.error

    def list_repo_files(self, name: str, *, repo_type: str) -> list[str]:
        return self.files


def refused(kind: type[Exception]) -> Exception:
    """One of the hub's errors, without the response that it comes from."""
    error = kind.__new__(kind)
    Exception.__init__(error, "refused")
    return error


@pytest.mark.parametrize(
    ("error", "files", "says"),
    [
        (refused(GatedRepoError), [], "accept its license at https://huggingface.co/meta/llama and set HF_TOKEN"),
        (refused(RepositoryNotFoundError), [], "shows no model of that id"),
        (ConnectionError("no route"), [], "the hub cannot be asked (no route)"),
        (None, ["config.json", "pytorch_model.bin"], "pickled alone"),
    ],
)
def test_who_cannot_have_a_model_is_told_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception | None, files: list[str], says: str
) -> None:
    monkeypatch.setattr(access, "HfApi", lambda: Hub(error, files))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(Problem) as problem:
        access.check("meta/llama", "model", "--set models.base=FOLDER")
    said = str(problem.value)
    assert says in said and said.startswith("meta/llama: ") and "--set models.base=FOLDER" in said
    monkeypatch.setattr(access, "HfApi", lambda: Hub(None, ["model.safetensors"]))
    assert access.check("meta/llama", "model", "") == "can be fetched"


def test_nothing_is_begun_where_a_model_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(access, "HfApi", lambda: Hub(ConnectionError("no route"), []))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    words = ["reproduce", "tar", "--scale", "paper", "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--plan"]) == 0
    assert "memory of a cell: 187 GB" in capsys.readouterr().out
    assert cli.main(words) == 2
    assert "meta-llama/Meta-Llama-3-8B-Instruct: the hub cannot be asked" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert cli.main(["reproduce", "tar", "--set", "models.nonesuch=x"]) == 2
    assert cli.main(["reproduce", "icet", "--scale", "paper", "--set", "models.lava=x"]) == 2
    assert "did you mean 'llava'?" in capsys.readouterr().err
