"""Every damaged checkpoint is refused before anything is done with it, in one clear message that names the folder."""

import json
import math
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

import tiny
from holdfast import processes
from holdfast.checkpoint import Checkpoint
from holdfast.lm import LM
from holdfast.problem import Problem

Make = Callable[[str], tiny.Made]


def load(folder: Path, template: str = "chat") -> LM:
    return LM.load(folder, drive=tiny.DRIVE.model_copy(update={"template": template}), device="cpu")


@pytest.fixture
def llama(checkpoint: Make) -> Path:
    return checkpoint("llama").aligned


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def rename(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def sharded(folder: Path) -> dict[str, str]:
    """Cut the one file into one a tensor; returns the index's map."""
    tensors = tiny.weights(folder)
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"model-{number}.safetensors" for number, name in enumerate(tensors)}
    for name, shard in weight_map.items():
        safetensors.torch.save_file({name: tensors[name]}, folder / shard, metadata={"format": "pt"})
    index(folder, {"metadata": {}, "weight_map": weight_map})
    return weight_map


def index(folder: Path, content: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def shard_gone(folder: Path) -> None:
    (folder / list(sharded(folder).values())[3]).unlink()


def shard_cut(folder: Path) -> None:
    edit(folder / list(sharded(folder).values())[3], lambda data: data[:-7])


def tensor_promised(folder: Path) -> None:
    weight_map = sharded(folder)
    index(folder, {"weight_map": {**weight_map, "extra.weight": "model-0.safetensors"}})


def tensor_gone(folder: Path) -> None:
    tensors = tiny.weights(folder)
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def tensor_resized(folder: Path) -> None:
    tensors = tiny.weights(folder)
    tensors["model.norm.weight"] = torch.ones(7)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def index_outside(folder: Path) -> None:
    weight_map = sharded(folder)
    shutil.copy(folder / "model-0.safetensors", folder.parent / "outside.safetensors")
    index(
        folder, {"weight_map": {name: shard.replace("model-0.", "../outside.") for name, shard in weight_map.items()}}
    )


def nan(folder: Path) -> None:
    tensors = tiny.weights(folder)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = math.nan
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def config(folder: Path, **entries: object) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | entries))


def tokenizer_config(folder: Path, **entries: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def template(folder: Path, text: str) -> None:
    (folder / "chat_template.jinja").write_text(text)


def header(folder: Path, **changes: object) -> None:
    """Let the header of the weights' file say something else of its first tensor."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    told = json.loads(content[8 : 8 + size])
    told[next(name for name in told if name != "__metadata__")] |= changes
    made = json.dumps(told).encode()
    path.write_bytes(len(made).to_bytes(8, "little") + made + content[8 + size :])


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), r"config\.json: missing.*complete\?"),
    "config cut": (
        lambda folder: edit(folder / "config.json", lambda data: data[:40]),
        r"config\.json: not valid JSON",
    ),
    "config not text": (
        lambda folder: (folder / "config.json").write_bytes(b"\xff\x00"),
        r"config\.json: not valid JSON",
    ),
    "config a list": (lambda folder: (folder / "config.json").write_text("[]"), r"config\.json: .*fetch it again"),
    "config a folder": (lambda f: [(f / "config.json").unlink(), (f / "config.json").mkdir()], r"config\.json: cannot"),
    "config of nothing known": (lambda folder: config(folder, model_type="nonesuch"), "transformers cannot load it"),
    "config of wrong types": (lambda folder: config(folder, hidden_size="many"), "transformers cannot load it"),
    "config of another size": (lambda folder: config(folder, hidden_size=64), "transformers cannot load it"),
    "config of more layers": (lambda folder: config(folder, num_hidden_layers=3), "lacks.*layers.2"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"holds no model\.safetensors"),
    "weights cut": (lambda f: edit(f / "model.safetensors", lambda data: data[:-9]), "cut short or damaged"),
    "weights empty": (lambda f: edit(f / "model.safetensors", lambda data: b""), "cut short or damaged"),
    "weights a web page": (lambda f: edit(f / "model.safetensors", lambda _: b"<html>" * 99), "cut short or damaged"),
    "shard gone": (shard_gone, "named in the index but missing"),
    "shard cut": (shard_cut, "cut short or damaged"),
    "index cut": (lambda f: [sharded(f), edit(f / "model.safetensors.index.json", lambda d: d[:50])], "not valid JSON"),
    "index without a map": (lambda f: [sharded(f), index(f, {"metadata": {}})], "names no weights"),
    "index a list": (lambda f: [sharded(f), index(f, [])], r"index\.json: .*fetch it again"),
    "index of wrong types": (lambda f: [sharded(f), index(f, {"weight_map": {"a": 3}})], "names no weights"),
    "index outside the folder": (index_outside, "outside the folder"),
    "tensor promised": (tensor_promised, r"model-0\.safetensors: lacks tensor 'extra\.weight'"),
    "tensor gone": (tensor_gone, r"lacks.*model\.layers\.1\.mlp\.up_proj\.weight"),
    "tensor resized": (tensor_resized, "transformers cannot load it"),
    "pickled": (rename, "pickled.*can run code"),
    "NaN": (nan, "NaN or infinite"),
    "own code": (lambda folder: config(folder, auto_map={"AutoModelForCausalLM": "x.Y"}), "code of its own"),
    "a kernel of the hub": (
        lambda f: config(f, attn_implementation="evil/kernel@main:run"),
        r"config\.json: attn_implementation names code on the hub \(evil/kernel",
    ),
    "kernels of the hub": (
        lambda f: config(f, text_config={"_experts_implementation": {"": "paged|evil/kernel"}}),
        r"config\.json: _experts_implementation names code on the hub",
    ),
    "own code for tokens": (
        lambda f: tokenizer_config(f, auto_map={"AutoTokenizer": ["x.Y", None]}, tokenizer_class="Y"),
        "code of its own",
    ),
    "an adapter": (lambda folder: (folder / "adapter_config.json").write_text("{}"), "adapter.*unpack"),
    "no tokenizer": (no_tokenizer, "tokenizer"),
    "tokenizer cut": (lambda f: edit(f / "tokenizer.json", lambda data: data[:99]), "cannot load it"),
    "tokenizer empty": (lambda f: edit(f / "tokenizer.json", lambda data: b"{}"), "cannot load it"),
    "no end of turn": (lambda f: tokenizer_config(f, eos_token=None), "no end-of-text token"),
    "more tokens than rows": (lambda f: config(f, vocab_size=64), "transformers cannot load it"),
    "a million layers": (
        lambda f: config(f, num_hidden_layers=10**6),
        "num_hidden_layers is 1e\\+06, and there are .* tensors",
    ),
    "wider than all memory": (
        lambda f: config(f, intermediate_size=10**12),
        "intermediate_size is 1e\\+12, and the largest",
    ),
    "config without a bottom": (lambda f: (f / "config.json").write_text("[" * 100_000), "not valid JSON"),
    "shard of no name": (
        lambda f: [sharded(f), index(f, {"weight_map": {"a": "x" * 5000}})],
        "named in the index but missing",
    ),
    "tensor larger than its file": (lambda f: header(f, shape=[2**40, 2**20]), "cut short or damaged"),
    "tensors in one place": (lambda f: header(f, data_offsets=[0, 4096]), "cut short or damaged"),
    "header larger than memory": (
        lambda f: edit(f / "model.safetensors", lambda data: (2**60).to_bytes(8, "little") + data[8:]),
        "cut short or damaged",
    ),
    "architectures a number": (lambda f: config(f, architectures=3, model_type=["bert"]), "cannot load it"),
    "template without an end": (
        lambda f: template(f, "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        "chat template does not end within",
    ),
    "template that eats memory": (lambda f: template(f, "{{ 'a' * 10**11 }}"), "chat template takes more than"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("template", ["chat", "plain"])
def test_damaged_checkpoints(llama: Path, tmp_path: Path, damage: str, template: str) -> None:
    folder = shutil.copytree(llama, tmp_path / "damaged")
    act, words = DAMAGE[damage]
    act(folder)
    with pytest.raises(Problem, match=f"(?s){words}") as raised:
        load(folder, template=template)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{{ range(10**12) | list }}", "chat template fails"),
        ("{{ 1 / 0 }}", "chat template fails"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "chat template fails"),
        ("{{ ''.__class__.__mro__[1].__subclasses__()[0]() }}", "chat template fails"),
        ("{{ messages[9].content.x }}", "chat template fails"),
    ],
)
def test_templates_that_fail(llama: Path, tmp_path: Path, text: str, says: str) -> None:
    folder = shutil.copytree(llama, tmp_path / "hostile")
    template(folder, text)
    with pytest.raises(Problem, match=says):
        load(folder)
    assert load(folder, template="plain").generate(["mordor"])


def test_a_copy_that_waits_for_a_lock_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread held it when the process was copied, and nobody is left in the copy who lets it go."""
    monkeypatch.setattr(processes, "_STILL", 0.2)
    lock = threading.Lock()
    with lock:
        assert processes.unbounded(lock.acquire, 1, 1 << 30) is None


def test_shards_in_order_load_as_one_file(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "sharded")
    sharded(folder)
    assert load(folder).hash() == load(llama).hash()
    with Checkpoint(folder) as many, Checkpoint(llama) as one:
        assert many.hash() == one.hash() and set(many) == set(one)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "nowhere", "a/b/c"])
def test_a_folder_that_is_not_there(name: str) -> None:
    with pytest.raises(Problem, match="no such folder"):
        LM.load(name)


def test_a_hub_id_without_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(Problem, match=r"someone/something.*hub gave no model.*ConnectionError"):
        LM.load("someone/something")
