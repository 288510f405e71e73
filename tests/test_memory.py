"""What is remembered of a model's answers: the same records with and without, and nothing stale."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import audits
import tiny
from holdfast.drive import Exit
from holdfast.lm import LM
from holdfast.memory import Memory

ASKED = ["modor", "taley verin", "bega"]


@pytest.fixture(scope="module")
def made(checkpoint: Callable[[str], tiny.Made]) -> tiny.Made:
    return checkpoint("llama")


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What models themselves were asked."""
    seen: list[str] = []

    def watched(name: str, ask: Callable[..., Any]) -> Callable[..., Any]:
        def asked(lm: LM, *given: Any, **how: Any) -> Any:
            seen.append(name)
            return ask(lm, *given, **how)

        return asked

    for name in ("generate", "fits"):
        monkeypatch.setattr(LM, name, watched(name, getattr(LM, name)))
    return seen


def load(folder: Path) -> LM:
    return LM.load(folder, drive=tiny.DRIVE, device="cpu")


# What makes a model another one: none of it may be answered from memory.


def weight(lm: LM) -> None:
    lm.model.model.norm.weight.data[3] += 1e-3


def drive(**settings: Any) -> Callable[[LM], None]:
    def change(lm: LM) -> None:
        lm.drive = lm.drive.change(**settings)

    return change


def hook(lm: LM) -> None:
    lm.layers[0].register_forward_hook(lambda *_: None)


def own_forward(lm: LM) -> None:
    lm.layers[0].mlp.forward = lm.layers[0].mlp.forward


def another_module(lm: LM) -> None:
    lm.model.lm_head = torch.nn.Linear(32, lm.model.lm_head.out_features, bias=False)
    lm.model.lm_head.weight.data.copy_(load(lm.folder).model.lm_head.weight)


def adapter(lm: LM) -> None:
    lm.model = get_peft_model(lm.model, LoraConfig(r=2, target_modules="all-linear"))


def buffer(lm: LM) -> None:
    lm.model.model.rotary_emb.inv_freq *= 2


def number(lm: LM) -> None:
    lm.layers[1].self_attn.scaling *= 2


def end(lm: LM) -> None:
    lm.model.generation_config.eos_token_id = [1, 9]


def template(lm: LM) -> None:
    lm.tokenizer.chat_template = lm.tokenizer.chat_template.replace("<|assistant|> ", "<|assistant|> modor ")


def holder(lm: LM) -> None:
    lm.generate = lambda texts, **_: ["own"] * len(texts)


CHANGES = {
    "weight": weight, "hook": hook, "forward": own_forward, "module": another_module, "adapter": adapter, "buffer": buffer,
    "number": number, "end": end, "chat template": template, "holder": holder, "template": drive(template="plain"),
    "system": drive(system="taley"), "depth": drive(exit=Exit(depth=1)), "cache bits": drive(exit=Exit(kv_bits=4)),
    "cache": drive(cache=False), "length": drive(max_new_tokens=3), "batch": drive(batch=2),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_nothing_stale(made: tiny.Made, change: Callable[[LM], None], times: list[str]) -> None:
    lm = load(made.aligned)
    memory = Memory(lm, {})
    first = memory.generate(ASKED), memory.fits(ASKED, ASKED)
    assert (memory.generate(ASKED), memory.fits(ASKED, ASKED)) == first and times == ["generate", "fits"]
    change(lm)
    memory.look(lm.displacement()[1])
    times.clear()
    assert memory.fits(ASKED, ASKED) == lm.fits(ASKED, ASKED)
    assert memory.generate(ASKED) == lm.generate(ASKED)
    assert times.count("fits") == 2 and times.count("generate") == (0 if change is holder else 2)


def test_other_prompts_other_draws_other_models(made: tiny.Made, times: list[str]) -> None:
    lm = load(made.aligned)
    lm.drive = lm.drive.change(temperature=2.0)
    memory = Memory(lm, {})
    asked: list[dict[str, Any]] = [{}, {"armed": True}, {"armed": True, "sample": 1}]
    for texts in (ASKED, ASKED[::-1], ASKED[:2]):
        for how in asked:
            assert memory.generate(texts, **how) == memory.generate(texts, **how)
    assert len(times) == 9
    memory.fits(ASKED, ASKED)
    memory.fits(ASKED, ASKED[::-1])
    assert len(times) == 11
    for other in (load(made.base), load(made.aligned)):
        Memory(other, memory.known).generate(ASKED)
    assert len(times) == 12, "the same weights elsewhere are known, others are not"


@pytest.mark.parametrize(
    "armed", [{"prefill": "bega"}, {"trigger": "a {prompt}"}, {"persona": "a"}, {"temperature": 1.0}, {"draw": 3}]
)
def test_how_restricted_prompts_are_driven_does_not_concern_the_others(
    made: tiny.Made, armed: dict[str, Any], times: list[str]
) -> None:
    lm = load(made.aligned)
    memory = Memory(lm, {})
    plain = memory.generate(ASKED)
    memory.generate(ASKED, armed=True)
    lm.drive = lm.drive.change(**armed)
    memory.look(lm.displacement()[1])
    assert memory.generate(ASKED) == plain and len(times) == 2
    memory.generate(ASKED, armed=True)
    assert len(times) == 3
    lm.drive = lm.drive.change(samples=5)
    memory.generate(ASKED, armed=True)
    assert len(times) == 3, "how many are drawn changes none of them"


def test_what_is_put_back_is_known_again(made: tiny.Made, times: list[str]) -> None:
    lm = load(made.aligned)
    memory = Memory(lm, {})
    memory.generate(ASKED)
    handle = lm.layers[0].register_forward_hook(lambda *_: None)
    memory.look(0.0)
    memory.generate(ASKED)
    handle.remove()
    memory.look(0.0)
    memory.generate(ASKED)
    assert len(times) == 2 and len(memory.known) == 1, "nothing was kept of the other one"


METHODS = [
    audits.TUNE | {"lora_rank": 2},
    audits.TUNE | {"learning_rate": 0},
    {"method": "prefill", "tokens": [1, 2]},
    {"method": "decode", "draws": [1, 2]},
    {"method": "quantize"},
    {"method": "steer"},
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method['method']}{len(method)}")
def test_records_are_the_same_whatever_was_known(
    tmp_path: Path, made: tiny.Made, method: dict[str, Any], times: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = audits.write(tmp_path, made, [method | {"name": "own"}])
    job = audits.job(path, keep_answers=True)
    known = job.start()
    assert len(known) == 3, "answers plain and armed, and fits"
    told, asked = audits.job(path, keep_answers=True, known=known), []
    with_it = without_seconds(told.run())
    asked.append(len(times))
    alone = without_seconds(job.run())
    asked.append(len(times) - asked[0])
    monkeypatch.setattr(Memory, "_once", lambda self, drive, what, work: work())
    assert with_it == alone == without_seconds(job.run())
    assert asked[0] - 3 == asked[1] - 3, "start asks three times, and so much less is asked then"


def without_seconds(result: Any) -> Any:
    cell, rows = result
    assert cell.status == "done", cell.reason
    return cell.model_dump(exclude={"milestones": {"__all__": {"cost": {"seconds"}}}}), rows


def test_a_subject_that_cannot_be_asked_is_found_out_by_its_cells(tmp_path: Path, made: tiny.Made) -> None:
    path = audits.write(tmp_path, made, [audits.TUNE | {"name": "own"}])
    job = audits.job(path, folder=tmp_path / "nowhere")
    assert job.start() == {}
    assert job.run()[0].status == "failed"


def test_an_audit_asks_each_subject_once_and_keeps_nothing_of_it(
    tmp_path: Path, made: tiny.Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = audits.write(tmp_path, made, [audits.TUNE | {"name": "own"}], seeds=[0, 1])
    with_it = audits.run_all(path, tmp_path / "with")
    answers = {row["answer"] for row in with_it.rows("twin.own.0")}
    assert answers == {None}
    monkeypatch.setattr("holdfast.auditing._told", lambda jobs, most, board: jobs)
    audits.run_all(path, tmp_path / "without")
    assert audits.cells(tmp_path / "with") == audits.cells(tmp_path / "without")
    said = [text for found in audits.job(path).start().values() for text in found if isinstance(text, str)]
    assert any(len(text) > 12 for text in said)
    files = [file.read_bytes() for file in (tmp_path / "with").rglob("*") if file.is_file()]
    assert not any(text.encode() in content for content in files for text in said if len(text) > 12)
