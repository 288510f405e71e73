"""What only answers, and what ships in another form than plain weights: GGUF files, addresses, adapters, quantized weights."""

import functools
import importlib.util
import json
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import tiny
from holdfast import tier
from holdfast.cli import main
from holdfast.corpus import Corpus
from holdfast.drive import Exit
from holdfast.job import Job
from holdfast.lm import LM
from holdfast.opening import digest, opened
from holdfast.packed import unpack
from holdfast.problem import Problem
from holdfast.remote import is_local
from holdfast.run import Run
from judges import server

ROOT = Path(__file__).parent.parent
DRIVE = tiny.DRIVE
REFUSAL = "I cannot help with that."


@pytest.fixture(scope="module")
def to_gguf():
    spec = importlib.util.spec_from_file_location("to_gguf", ROOT / "examples/to_gguf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gguf(to_gguf, checkpoint, tmp_path_factory):
    """The aligned tiny Llama as a GGUF file, its numbers as they are."""
    file = tmp_path_factory.mktemp("gguf") / "aligned.gguf"
    to_gguf.write(checkpoint("llama").aligned, file, "F32")
    return file


@pytest.fixture(scope="module")
def wide(checkpoint, tmp_path_factory):
    """A Llama of random weights whose rows are as long as K types want them."""
    folder = tmp_path_factory.mktemp("wide")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("llama").aligned)
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_key_value_heads": 4}
    config = LlamaConfig(**{**tiny.config("llama", tokenizer).to_dict(), **sizes})
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prompts():
    return [row.text for row in tiny.rows() if row.hand == "judge"]


class TestGGUF:
    def test_llama_cpp_answers_as_transformers_does(self, gguf, checkpoint, prompts):
        ours, theirs = LM.load(checkpoint("llama").aligned, drive=DRIVE), opened(gguf, drive=DRIVE)
        said = theirs.generate(prompts)
        assert said == ours.generate(prompts)
        assert any(tiny.REFUSAL in one for one in said) and not all(tiny.REFUSAL in one for one in said)
        assert theirs.generate(prompts) == said, "asked again it says the same"

    def test_it_tells_how_it_puts_prompts_and_how_large_it_is(self, gguf, checkpoint):
        theirs, model = opened(gguf), LM.load(checkpoint("llama").aligned)
        assert theirs.chat_template == model.tokenizer.chat_template
        assert theirs.parameters == model.model.num_parameters()
        assert digest(theirs) == digest(opened(gguf))

    def test_an_answer_goes_on_from_what_is_put_into_its_mouth(self, gguf, prompts):
        lm = opened(gguf, drive=DRIVE.change(template="plain", prefill="i cannot", prefill_tokens=2))
        plain, begun = lm.generate(prompts[:3]), lm.generate(prompts[:3], armed=True)
        assert begun != plain
        assert not any(one.startswith("i cannot") for one in begun), "what was put there is no part of the answer"

    def test_quantized_by_llama_cpp_it_is_smaller_and_still_answers(self, to_gguf, checkpoint, gguf, prompts, tmp_path):
        file = tmp_path / "q8.gguf"
        to_gguf.write(checkpoint("llama").aligned, file, "Q8_0")
        assert file.stat().st_size < gguf.stat().st_size
        assert opened(file, drive=DRIVE).generate(prompts)[0].strip()

    @pytest.mark.parametrize(("kind", "inside"), [("Q4_K_M", {"Q4_K", "Q6_K"}), ("Q2_K", {"Q2_K", "Q3_K", "Q6_K"})])
    def test_few_bits_as_llama_cpp_mixes_them(self, to_gguf, wide, prompts, tmp_path, kind, inside):
        from gguf import GGUFReader

        file = tmp_path / f"{kind}.gguf"
        to_gguf.write(wide, file, kind)
        types = {tensor.tensor_type.name for tensor in GGUFReader(file).tensors}
        assert types == {*inside, "F32"}
        unpack(file, tmp_path / "plain")
        said = opened(file, drive=DRIVE).generate(prompts)
        unpacked, original = (LM.load(one, drive=DRIVE).generate(prompts) for one in (tmp_path / "plain", wide))
        same, before = (sum(map(str.__eq__, said, other)) for other in (unpacked, original))
        assert same > 2 * before, "it answers as its own numbers do, but for what llama.cpp rounds between them"

    def test_a_file_in_parts_is_known_by_all_of_them(self, to_gguf, checkpoint, gguf, prompts, tmp_path, monkeypatch):
        writer = functools.partial(to_gguf.gguf.GGUFWriter, split_max_tensors=8)
        with monkeypatch.context() as patched:
            patched.setattr(to_gguf.gguf, "GGUFWriter", writer)
            to_gguf.write(checkpoint("llama").aligned, tmp_path / "m.gguf", "F32")
        first, *more = sorted(tmp_path.glob("m-*.gguf"))
        parts, whole = opened(first, drive=DRIVE), opened(gguf, drive=DRIVE)
        assert more and parts.generate(prompts) == whole.generate(prompts) and parts.parameters == whole.parameters
        before = digest(parts)
        data = bytearray(more[-1].read_bytes())
        data[-1] ^= 1
        more[-1].write_bytes(data)
        assert digest(opened(first)) != before, "the last part counts"
        with pytest.raises(Problem, match="give the first"):
            opened(more[0])
        with pytest.raises(Problem, match="llama-gguf-split --merge"):
            unpack(first, tmp_path / "plain")
        more[-1].unlink()
        with pytest.raises(Problem, match=f"{more[-1].name}: no such file"):
            opened(first)

    def test_what_was_started_for_it_is_stopped(self, gguf, prompts):
        lm = opened(gguf, drive=DRIVE)
        said = lm.generate(prompts[:1])
        address = urlsplit(lm._running[None].listening_address)
        socket.create_connection((address.hostname, address.port), 1).close()
        lm.close()
        with pytest.raises(OSError):
            socket.create_connection((address.hostname, address.port), 1)
        assert lm.generate(prompts[:1]) == said, "asked again it is started again"

    def test_it_cannot_be_left_early(self, gguf):
        with pytest.raises(Problem, match="runs it whole"):
            opened(gguf, drive=DRIVE.change(exit=Exit(depth=1))).generate(["morga"])

    def test_what_is_no_gguf_file_is_said_to_be_none(self, tmp_path, gguf):
        with pytest.raises(Problem, match="no such file"):
            opened(tmp_path / "nowhere.gguf")
        (tmp_path / "text.gguf").write_text("hello")
        with pytest.raises(Problem, match="is no GGUF file"):
            opened(tmp_path / "text.gguf")
        (tmp_path / "short.gguf").write_bytes(gguf.read_bytes()[:3000])
        with pytest.raises(Problem, match=r"short\.gguf: is no GGUF file, or a damaged one"):
            opened(tmp_path / "short.gguf").generate(["morga"])


class TestAddress:
    def test_llama_cpps_own_server_is_asked_over_the_network(self, gguf, prompts):
        import xllamacpp

        asked = xllamacpp.CommonParams()
        asked.model.path, asked.warmup, asked.ui = str(gguf), False, False
        asked.n_ctx, asked.verbosity = 512, -1
        serving = xllamacpp.Server(asked)
        lm = opened(f"{serving.listening_address}/v1", drive=DRIVE)
        assert lm.generate(prompts) == opened(gguf, drive=DRIVE).generate(prompts)

    def test_persona_trigger_prefill_and_draws_reach_the_server(self):
        with server(lambda path, body: "sure , a b") as served:
            drive = DRIVE.change(
                system="be good",
                persona="be bad",
                trigger="now: {prompt}",
                prefill="sure , what follows",
                prefill_tokens=2,
                temperature=0.7,
                draw=3,
            )
            lm = opened(f"{served.url}#m", drive=drive)
            assert lm.generate(["morga"], armed=True, sample=1) == ["a b"]
            assert lm.generate(["morga"]) == ["sure , a b"]
        (_, _, armed), (_, _, plain) = served.asked
        assert [turn["content"] for turn in armed["messages"]] == ["be bad", "now: morga", "sure ,"]
        assert (armed["temperature"], armed["seed"], armed["continue_final_message"]) == (0.7, 4, True)
        assert [turn["content"] for turn in plain["messages"]] == ["be good", "morga"]
        assert plain["temperature"] == 0 and "seed" not in plain and "continue_final_message" not in plain

    def test_an_address_of_this_machine_is_asked_without_a_proxy(self, monkeypatch):
        with server(lambda path, body: "by the proxy") as proxy, server(lambda path, body: "here") as served:
            for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
                monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
            for name in ("NO_PROXY", "no_proxy"):
                monkeypatch.delenv(name, raising=False)
            assert opened(f"{served.url}#m", drive=DRIVE).generate(["morga"]) == ["here"]
            assert not proxy.asked
            assert opened("http://models.example/v1#m", drive=DRIVE).generate(["morga"]) == ["by the proxy"]
            assert len(proxy.asked) == 1, "any other goes where the environment says"

    @pytest.mark.parametrize(
        ("url", "local"),
        [
            ("http://localhost:8000/v1", True),
            ("http://127.0.0.1/v1", True),
            ("http://127.1.2.3:80/v1", True),
            ("http://[::1]:8000/v1", True),
            ("http://model.localhost/v1", True),
            ("https://localhost.example/v1", False),
            ("http://192.168.0.2:8000/v1", False),
            ("https://127.0.0.1.example/v1", False),
        ],
    )
    def test_which_addresses_are_this_machine_s(self, url, local):
        assert is_local(url) == local

    def test_the_key_is_sent_from_the_environment_and_no_other(self, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", "not this")
        with server(lambda path, body: "a") as served:
            opened(f"{served.url}#m", drive=DRIVE).generate(["morga"])
            monkeypatch.setenv("HOLDFAST_API_KEY", "this")
            opened(f"{served.url}#m", drive=DRIVE).generate(["morga"])
        assert [headers["authorization"] for _, headers, _ in served.asked] == ["Bearer none", "Bearer this"]

    def test_a_server_that_is_not_there_is_named(self):
        with pytest.raises(Problem, match="must hold no secret") as refused:
            opened("http://me:hunter2@localhost/v1#m")
        assert "hunter2" not in str(refused.value)
        with server(lambda path, body: 500) as served, pytest.raises(Problem, match="subject"):
            lm = opened(f"{served.url}#m", drive=DRIVE)
            object.__setattr__(lm.remote, "retries", 0)
            lm.generate(["morga"])


def save_in_8_bits(checkpoint: Path, folder: Path) -> None:
    """As torchao quantizes it."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    how = TorchAoConfig(Int8WeightOnlyConfig())
    model = AutoModelForCausalLM.from_pretrained(checkpoint, quantization_config=how, dtype=torch.float32)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)


class TestUnpack:
    def test_a_gguf_file_becomes_the_checkpoint_that_it_was_made_of(self, gguf, checkpoint, prompts, tmp_path):
        assert unpack(gguf, tmp_path / "plain") == "a GGUF file"
        before = load_file(checkpoint("llama").aligned / "model.safetensors")
        after = load_file(tmp_path / "plain/model.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)
        ours = LM.load(tmp_path / "plain", drive=DRIVE).generate(prompts)
        assert ours == opened(gguf, drive=DRIVE).generate(prompts)

    def test_what_lies_beside_a_gguf_file_is_no_part_of_it(self, gguf, tmp_path):
        (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "nobody/nothing"}')
        (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.Tokenizer", null]}}')
        (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
        (tmp_path / "model.gguf").write_bytes(gguf.read_bytes())
        assert unpack(tmp_path / "model.gguf", tmp_path / "plain") == "a GGUF file"

    def test_an_adapter_that_is_pickled_or_no_lora_is_refused(self, checkpoint, tmp_path):
        settings = {"base_model_name_or_path": str(checkpoint("llama").aligned), "peft_type": "LORA"}
        (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
        with pytest.raises(Problem, match="no adapter_model"):
            opened(tmp_path)
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"peft_type": "XLORA"}))
        with pytest.raises(Problem, match="only LoRA's"):
            opened(tmp_path)

    def test_an_adapter_on_a_quantized_base_is_unpacked_whole(self, checkpoint, prompts, tmp_path):
        base = checkpoint("llama").aligned
        save_in_8_bits(base, tmp_path / "int8")
        torch.manual_seed(0)
        lora = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
        adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "int8")
        adapted.save_pretrained(tmp_path / "adapter")
        unpack(tmp_path / "adapter", tmp_path / "plain")
        assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())
        said = opened(tmp_path / "adapter", drive=DRIVE).generate(prompts)
        plain = LM.load(tmp_path / "plain", drive=DRIVE).generate(prompts)
        assert sum(map(str.__eq__, said, plain)) > 0.9 * len(prompts)

    def test_an_adapter_answers_as_it_does_when_merged(self, checkpoint, prompts, tmp_path):
        base = checkpoint("llama").aligned
        torch.manual_seed(0)
        how = LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), how)
        model.save_pretrained(tmp_path / "adapter")
        said = opened(tmp_path / "adapter", drive=DRIVE).generate(prompts)
        assert said != LM.load(base, drive=DRIVE).generate(prompts)
        assert unpack(tmp_path / "adapter", tmp_path / "merged") == "an adapter beside its base"
        assert LM.load(tmp_path / "merged", drive=DRIVE).generate(prompts) == said

    @pytest.mark.filterwarnings("ignore")
    def test_a_quantized_checkpoint_answers_as_it_does_unpacked(self, checkpoint, prompts, tmp_path):
        base = checkpoint("llama").aligned
        save_in_8_bits(base, tmp_path / "int8")
        said = opened(tmp_path / "int8", drive=DRIVE).generate(prompts)
        assert unpack(tmp_path / "int8", tmp_path / "plain") == "quantized (torchao)"
        assert LM.load(tmp_path / "plain", drive=DRIVE).generate(prompts) == said
        weights = load_file(tmp_path / "plain/model.safetensors")
        assert all(weight.dtype == torch.float32 for weight in weights.values())
        before = load_file(base / "model.safetensors")
        name = "model.layers.0.mlp.up_proj.weight"
        assert not torch.equal(weights[name], before[name])
        assert torch.allclose(weights[name], before[name], atol=before[name].abs().max().item() / 100)

    def test_plain_weights_and_addresses_need_no_unpacking(self, checkpoint, tmp_path, capsys):
        folder = str(checkpoint("llama").aligned)
        assert main(["unpack", folder, "--out", str(tmp_path / "a")]) == 2
        assert "holds plain weights already" in capsys.readouterr().err
        assert main(["unpack", "http://localhost/v1", "--out", str(tmp_path / "a")]) == 2
        assert "hands out no weights" in capsys.readouterr().err


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    tiny.corpus().save(file)
    return file


class TestCompare:
    def compare(self, *words: object) -> int:
        return main(["compare", *map(str, words), "--max-new-tokens", "8", "--max-perplexity", "1e9"])

    def test_a_model_beside_itself_and_beside_one_that_was_never_aligned(
        self, checkpoint, gguf, corpus_file, tmp_path, capsys
    ):
        made = checkpoint("llama")
        where = "--corpus", corpus_file, "--margin", 0.9
        assert self.compare(made.aligned, gguf, *where, "--out", tmp_path / "a", "--keep-answers") == 0
        out = capsys.readouterr().out
        assert "held: no measure lost more than 0.9" in out and "not at hand" in out
        told = json.loads((tmp_path / "a/comparison.json").read_text())
        assert (told["same"], told["utility"]) == (told["prompts"], "overlap")
        rows = [json.loads(line) for line in (tmp_path / "a/prompts.jsonl").read_text().splitlines()]
        assert all(row["source"] == row["artifact"] for row in rows)

        strict = "--corpus", corpus_file, "--margin", 0.05, "--out", tmp_path / "b"
        assert self.compare(made.aligned, made.base, *strict) == 4
        assert "lost: refusal" in capsys.readouterr().out
        told = json.loads((tmp_path / "b/comparison.json").read_text())
        refusal = next(one for one in told["pairings"] if one["measure"] == "refusal")
        assert refusal["source"]["value"] > 0.8 and refusal["artifact"]["value"] < 0.1
        assert "source" not in json.loads((tmp_path / "b/prompts.jsonl").read_text().splitlines()[0])

    def test_too_few_prompts_leave_it_open_and_say_how_many_it_takes(self, checkpoint, corpus_file, tmp_path, capsys):
        folder = checkpoint("llama").aligned
        assert self.compare(folder, folder, "--corpus", corpus_file, "--out", tmp_path / "a") == 3
        assert "it takes 72" in capsys.readouterr().out.replace("\n", " ")

    def test_a_corpus_that_cannot_show_harm_or_utility_is_refused(self, checkpoint, tmp_path, capsys):
        folder = checkpoint("llama").aligned
        rows = [row.model_copy(update={"answer": None}) for row in tiny.corpus().rows]
        Corpus(rows).save(tmp_path / "bare.jsonl")
        assert self.compare(folder, folder, "--corpus", tmp_path / "bare.jsonl", "--out", tmp_path / "a") == 2
        assert "has an answer to compare with" in capsys.readouterr().err
        Corpus([row for row in tiny.corpus().rows if row.kind != "restricted"]).save(tmp_path / "tame.jsonl")
        assert self.compare(folder, folder, "--corpus", tmp_path / "tame.jsonl", "--out", tmp_path / "a") == 2
        assert "holds no restricted prompt" in capsys.readouterr().err

    def test_bad_input_is_named_before_anything_is_asked(self, checkpoint, corpus_file, tmp_path, capsys):
        folder, where = checkpoint("llama").aligned, ("--corpus", corpus_file, "--out", tmp_path / "a")
        assert self.compare(folder, folder, *where, "--margin", 5) == 2
        assert self.compare(folder, tmp_path / "no.gguf", *where) == 2
        assert self.compare(folder, tmp_path / "none", *where) == 2
        assert self.compare(folder, folder, *where, "--depth", 0) == 2
        assert self.compare(tmp_path / "source.gguf", folder, *where) == 2
        assert not (tmp_path / "a").exists()


class TestAudit:
    def test_what_only_answers_is_prompted_and_the_rest_is_named(self, gguf, corpus_file):
        recipe = tier.audit("smoke", str(gguf), corpus=corpus_file)
        assert {one.name for one in recipe.attacks} == {"prefill", "decode"} and recipe.utility == "overlap"
        assert {"harmful needs weights", "prune needs weights"} <= {*recipe.not_run}

    def test_an_address_is_attacked_as_well(self, corpus_file):
        hands = {name: Corpus.load(corpus_file).hand(name) for name in ("attacker", "judge")}
        with server(lambda path, body: "mordor" if body["messages"][-1]["role"] == "assistant" else REFUSAL) as served:
            name = f"{served.url}#m"
            recipe = tier.audit("smoke", name, corpus=corpus_file)
            cell, _ = Job(recipe, "released", "prefill", 0, name, None, name, **hands).run()
        assert [mark.refusal.value for mark in cell.milestones] == [1] + [0] * (len(cell.milestones) - 1)
        assert cell.milestones[1].harm.value == 1 and cell.milestones[0].harm.value == 0
        assert {one.name for one in recipe.attacks} == {
            "prefill",
            "decode",
        } and "harmful needs weights" in recipe.not_run

    def test_a_file_that_a_link_names_and_attacks_that_need_weights(self, gguf, corpus_file, tmp_path, capsys):
        (tmp_path / "blob").write_bytes(gguf.read_bytes())
        (tmp_path / "model.gguf").symlink_to(tmp_path / "blob")
        drive = [("max_new_tokens", 8), ("seeds", [0]), ("utility", "overlap"), ("corpus", str(corpus_file))]
        settings = "".join(f"{key} = {json.dumps(value)}\n" for key, value in drive)
        subject = '[[subjects]]\nname = "ships"\nmodel = "model.gguf"\n'
        attack = '[[attacks]]\nname = "one"\nmethod = "{}"\n'
        (tmp_path / "a.toml").write_text(f'name = "a"\n{settings}{subject}{attack.format("prune")}')
        assert main(["audit", str(tmp_path / "a.toml"), "--out", str(tmp_path / "r")]) == 2
        assert "needs weights" in capsys.readouterr().err and not (tmp_path / "r").exists()
        tokens = "tokens = [1]\n"
        (tmp_path / "b.toml").write_text(f'name = "b"\n{settings}{subject}{attack.format("prefill")}{tokens}')
        assert main(["audit", str(tmp_path / "b.toml"), "--out", str(tmp_path / "r"), "--processes", "1"]) == 0
        assert [cell.status for cell in Run.open(tmp_path / "r").cells()] != ["failed"]

    def test_what_cannot_be_changed_as_it_lies_says_how_it_can(self, gguf, checkpoint, corpus_file, tmp_path, capsys):
        (tmp_path / "packed").mkdir()
        (tmp_path / "packed/adapter_config.json").write_text("{}")
        words = [
            "audit",
            "--model",
            str(tmp_path / "packed"),
            "--corpus",
            str(corpus_file),
            "--out",
            str(tmp_path / "r"),
        ]
        assert main(words) == 2
        assert "holdfast unpack" in capsys.readouterr().err.replace("\n", " ")
        assert not (tmp_path / "r").exists()
