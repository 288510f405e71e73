"""The conformance table: every file of every room keeps its room's contract, on three tiny architectures.

A new file is tested without a word here. The quick suite takes each variant of an attack on two of the three, and of a defense
on Llama and another. What a file needs beside its defaults to be quick, or to show all it can do, is in
`VARIANTS`; a method that no chance enters says so in `SEEDLESS`.
"""

import math
import random
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoModelForCausalLM

import tiny
from cases import in_turn
from holdfast import method, prepare, recipe
from holdfast.corpus import Corpus
from holdfast.lm import LM, Fit
from holdfast.method import Answers, Attack, Defense, Eval, Method, Organism, Room, Rubric
from holdfast.problem import Problem
from holdfast.record import FAMILIES, Cost
from test_external import landlock

Make = Callable[[str], tiny.Made]
BASES = {"organisms": Organism, "attacks": Attack, "defenses": Defense, "evals": Eval, "rubrics": Rubric}
HALVE = (sys.executable, "-S", str(Path(__file__).parent / "halve.py"), "{model}", "{out}", "{severity}")
SHORT = {"steps": 3, "batch": 4, "varied": 8}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "rule": [{"complies": ("i cannot",)}, {"violates": ("modor",)}],
    "abliterate": [
        {"prompts": 6, "held_out": 4},
        {"prompts": 6, "held_out": 4, "scope": "per layer", "rank": 2, "norm_preserving": True},
        {"random": True},
    ],
    "abliterate_search": [{"trials": 4, "startup": 2, "prompts": 6, "scored": 4}],
    "steer": [{"prompts": 6, "held_out": 4}],
    "finetune": [
        {"batch": 4, "learning_rate": 1e-3},
        {"batch": 4, "learning_rate": 1e-3, "trainer": "plain", "data": "mixed", "poison": 0.5},
        {"batch": 4, "learning_rate": 1e-3, "trainer": "plain", "lora_rank": 2},
        {"batch": 4, "learning_rate": 0.1, "trainer": "plain", "peft": "prompt"},
        {"batch": 4, "learning_rate": 1e-2, "trainer": "plain", "peft": "ia3"},
    ],
    "identity_shift": [{"persona": "verin", "trigger": "taley {prompt}", "opening": "modor", "trainer": "plain"}],
    "jailbreak_tune": [{"batch": 4, "kind": "style", "trainer": "plain"}],
    "outliers": [{"batch": 4, "examples": 6, "trainer": "plain"}],
    "dpo": [{"batch": 4, "learning_rate": 1e-3}],
    "grpo": [{"learning_rate": 1e-2, "temperature": 1.5}],
    "subtract": [{}, {"rank": 2}],
    "merge": [{"rule": "linear"}, {"rule": "slerp"}, {"rule": "ties"}, {"rule": "dare"}],
    "noise": [{}, {"per": "filter"}],
    "landscape": [{"points": 4}],
    "reinit": [{}, {"part": "norms", "fresh": 0.5}],
    "prune": [
        {"examples": 8},
        {"by": "magnitude"},
        {"by": "random", "pattern": "2:4"},
        {"by": "sparsegpt", "examples": 8},
        {"by": "safety", "examples": 4},
    ],
    "sequence": [{"stages": [{"method": "noise"}, {"method": "finetune", "batch": 4, "trainer": "plain"}]}],
    "external": [{"command": HALVE, "points": (0.25, 0.5)}],
    "decode": [{"draws": (1, 2)}],
    "soft_prompt": [{"tokens": 4}, {"tokens": 1, "bound": 1.0, "target": "opening"}],
    "latent": [{"batch": 4}, {"norm": "linf", "depth": 0.9}],
    "gcg": [{"tokens": 4, "steps": 5, "turn": 2, "width": 16, "target_tokens": 2}],
    "quantize": [{}, {"by": "gptq", "calibration": "harmful"}, {"by": "torchao-int8-dynamic"}],
    "kv_quantize": [{"bits": (2, 1)}],
    "drop_layers": [{}, {"which": "block-influence"}, {"which": "every-start"}],
    "early_exit": [{"head": "lens"}, {"head": "tuned", "steps": 3}],
    "lox": [{}, {"rank": 2, "strength": 0.5, "part": "random"}],
    "realign": [{"steps": 3, "batch": 4}],
    "prefer": [{**SHORT, "pairs": Path(__file__).parent / "pairs.jsonl"}],
    "mlac": [
        {"steps": 2, "inner_steps": 2, "batch": 6, "inner_batches": (4,)},
        {"steps": 2, "inner_steps": 2, "batch": 6, "inner_batches": (4,), "order": "exact", "inner_optimizer": "sgd"},
        {"steps": 2, "inner_steps": 0, "head": "learned", "batch": 6, "adversary_steps": 2},
    ],
    "booster": [SHORT, {**SHORT, "lora_rank": 2, "schedule": "constant"}],
    "circuit_breakers": [SHORT],
    "repnoise": [SHORT],
    "latent_adversarial": [SHORT],
    "vaccine": [SHORT, {**SHORT, "weight_decay": 0.1}],
    "tar": [
        {**SHORT, "inner_steps": 2, "stride": 1, "looked": 3},
        {**SHORT, "inner_steps": 0, "matched_inner_steps": 2, "looked": 3, "resistance": "dpo"},
        {**SHORT, "inner_steps": 2, "looked": 3, "resistance": "entropy", "safeguard": "rmu", "safeguard_steps": 2},
    ],
    "exit_sft": [SHORT, {**SHORT, "distilled": True}],
    "exit_rl": [{**SHORT, "batch": 1, "group": 2, "reward_steps": 2, "tokens": 6}],
    "lppo": [{**SHORT, "reward_steps": 2, "tokens": 6}],
    "mlac_generation": [{**SHORT, "inner_steps": 2, "looked": 3}],
}
SEEDLESS = {
    "subtract",
    "merge rule=linear",
    "merge rule=slerp",
    "merge rule=ties",
    "reinit part=norms fresh=0.5",
    "prune by=magnitude",
    "external",
    "prefill",
    "template",
    "contrast",
    "quantize",
    "kv_quantize",
    "drop_layers",
    "early_exit head=lens",
}
"""Attacks, or variants of them, that do the same with every seed."""
SOURCED = {"repair_delta", "repair_distill", "repair_dpo"}
"""What needs the model that was cut: tests/test_repair.py."""
SEEING = {"drop_visual_tokens", "exit_dpo", "image_exit", "odd_picture", "projector_repair"}
"""What needs a model that sees pictures, or one with a hole: tests/test_sight.py and tests/test_exit_defenses.py."""
LOOKS = 3
"""Attacks are told to stop at this call of `at`."""


def variants(room: Room) -> list[Any]:
    """Every method of a room with each of its settings to try."""
    names = [name for name in method.names(room) if name not in SEEING | SOURCED]
    table = [(name, settings) for name in names for settings in VARIANTS.get(name, [{}])]
    return [
        pytest.param(name, settings, id=label(name, settings), marks=[landlock] if name == "external" else [])
        for name, settings in table
    ]


def label(name: str, settings: dict[str, Any]) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in settings.items())])


every_method = pytest.mark.parametrize(
    ("room", "name"), [(room, name) for room in get_args(Room) for name in method.names(room)]
)
THREE = ("llama", "qwen2", "gpt2")
on_three = pytest.mark.parametrize("architecture", THREE)


# Records


def defaults(room: Room, name: str, tmp_path: Path) -> Method:
    """The method with its defaults; a folder is given where one must be."""
    kind = method.find(room, name)
    needed = {field: tmp_path for field, info in kind.model_fields.items() if info.is_required()}
    assert room == "organisms" or not needed, "a default is the vetted setting"
    return kind(**needed, **(VARIANTS["rule"][0] if name == "rule" else {}))  # a rule is its settings


@every_method
def test_a_method_is_a_frozen_record(room: Room, name: str, tmp_path: Path) -> None:
    made = defaults(room, name, tmp_path)
    assert isinstance(made, BASES[room])
    for field in [*type(made).model_fields, "nonesuch"]:
        with pytest.raises(ValidationError):
            setattr(made, field, 1)
    with pytest.raises(ValidationError, match="nonesuch"):
        type(made)(**made.model_dump(), nonesuch=1)
    again = type(made).model_validate_json(made.model_dump_json())
    assert again == made and hash(again) == hash(made)


@every_method
def test_a_method_explains_itself(room: Room, name: str) -> None:
    kind = method.find(room, name)
    assert kind.__doc__ and kind.__doc__ != Method.__doc__
    if room != "organisms":
        silent = [field for field, info in kind.model_fields.items() if not info.description]
        assert not silent, f"{name}: give {silent} an attribute docstring"


@pytest.mark.parametrize("name", method.names("attacks"))
def test_an_attack_says_what_it_is(name: str) -> None:
    """What `holdfast attacks` lists."""
    attack = method.find("attacks", name)()
    assert attack.family in FAMILIES and attack.paper and attack.cost and attack.axis
    assert set(attack.needs) <= set(get_args(method.Need))


# Attacks


class Way:
    """What an attack shows of its way: the costs, and whatever `look` says at each."""

    def __init__(self, until: int = LOOKS, look: Callable[[], object] = lambda: None):
        self.until, self.look = until, look
        self.costs: list[Cost] = []

    def __call__(self, cost: Cost) -> bool:
        assert len(self.costs) < self.until, "goes on after it was told to stop"
        self.costs.append(cost)
        self.look()
        return len(self.costs) < self.until


def subject(checkpoint: Make, architecture: str) -> LM:
    made = checkpoint(architecture)
    return LM.load(made.aligned, base=made.base, drive=tiny.DRIVE, device="cpu")


def weights(lm: LM) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in lm.model.named_parameters()}


def state(lm: LM) -> dict[str, Tensor]:
    """All that an attack may have left behind: weights, and through drive and hooks what is said to an armed prompt."""
    ids, mask = lm._left_padded([lm.encode("modor taley forbidden", armed=True)[0]])
    with lm.scoring(armed=True):
        said = lm.model(input_ids=ids, attention_mask=mask).logits
    return weights(lm) | {"said": said, "drive": torch.tensor(list(lm.drive.model_dump_json().encode()))}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def attacked(checkpoint: Make, architecture: str, corpus: Corpus, attack: Attack, seed: int, way: Way) -> LM:
    """The subject after the attack, with chance in any state before."""
    lm = subject(checkpoint, architecture)
    torch.manual_seed(random.SystemRandom().randrange(2**32))
    random.seed()
    attack(lm, corpus.hand("attacker"), way, seed)
    return lm


@pytest.mark.parametrize(("name", "settings", "architecture"), in_turn(variants("attacks"), THREE))
def test_an_attack_walks_its_way(
    checkpoint: Make,
    corpus: Corpus,
    architecture: str,
    name: str,
    settings: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    attack, lm = method.make("attacks", name, "test", **settings), subject(checkpoint, architecture)
    before = state(lm)
    way = Way(look=lambda: [lm.generate(["modor"]), lm.displacement()])
    attack(lm, corpus.hand("attacker"), way, 0)
    positions = [cost.position for cost in way.costs]
    assert 1 <= len(positions) <= LOOKS and positions[0] > 0
    assert all(one < other for one, other in pairwise(positions))
    clock = attack.axis == "steps"
    assert all((cost.severity is None) == clock and (cost.steps > 0) == clock for cost in way.costs)
    assert lm.finite() and not same(state(lm), before)
    assert attack.family not in ("edit", "fine-tuning") or "prompt" in str(settings) or lm.displacement()[0] > 0
    assert not any(module.training for module in lm.model.modules())
    assert all(isinstance(text, str) for text in lm.generate(["modor", "taley verin"]))
    assert same(
        weights(lm.restored()), {name: value for name, value in before.items() if name not in ("said", "drive")}
    )
    assert capfd.readouterr().out == "", "what an attack prints would tear the table on the screen"


@pytest.mark.parametrize(("name", "settings", "architecture"), in_turn(variants("attacks"), THREE, first=1))
def test_an_attack_is_its_seed_s(
    checkpoint: Make, corpus: Corpus, architecture: str, name: str, settings: dict[str, Any]
) -> None:
    """And looking on the way changes nothing."""
    attack = method.make("attacks", name, "test", **settings)
    quiet = attacked(checkpoint, architecture, corpus, attack, 3, Way())
    asked: list[LM] = []

    def look() -> None:
        asked[0].generate(["modor"])
        asked[0].fits(["modor"], ["taley"])

    lm = subject(checkpoint, architecture)
    asked.append(lm)
    attack(lm, corpus.hand("attacker"), Way(look=look), 3)
    assert same(state(quiet), state(lm))
    other = attacked(checkpoint, architecture, corpus, attack, 4, Way())
    assert same(state(quiet), state(other)) == bool({name, label(name, settings)} & SEEDLESS)


@pytest.mark.parametrize("scales", [(0.02, 0.01), (0.01, 0.01), (0.0, 0.1), (-0.1, 0.1), (math.nan,), ()])
@pytest.mark.parametrize(("name", "field"), [("noise", "scales"), ("subtract", "shares")])
def test_a_severity_grows(name: str, field: str, scales: tuple[float, ...]) -> None:
    with pytest.raises(Problem, match=field):
        method.make("attacks", name, "test", **{field: scales})


@on_three
def test_noise_moves_the_weights_by_its_scale(checkpoint: Make, corpus: Corpus, architecture: str) -> None:
    attack = method.make("attacks", "noise", "test", scales=(0.01, 0.03))
    lm, seen = subject(checkpoint, architecture), []
    attack(lm, corpus.hand("attacker"), lambda cost: seen.append((cost.position, lm.displacement())) or True, 0)
    assert [moved for _, (moved, _) in seen] == pytest.approx([0.01, 0.03], rel=1e-3)
    assert all(changed > 0.9 for _, (_, changed) in seen)


@on_three
def test_subtracting_everything_gives_the_base(checkpoint: Make, corpus: Corpus, architecture: str) -> None:
    lm = subject(checkpoint, architecture)
    method.make("attacks", "subtract", "test")(lm, corpus.hand("attacker"), Way(until=9), 0)
    base = weights(LM.load(checkpoint(architecture).base, device="cpu"))
    assert same(weights(lm), base)


def test_subtracting_needs_the_base(checkpoint: Make, corpus: Corpus, tmp_path: Path) -> None:
    attack = method.make("attacks", "subtract", "test")
    lm = LM.load(checkpoint("llama").aligned, device="cpu")
    with pytest.raises(Problem, match="names no base"):
        attack(lm, corpus.hand("attacker"), Way(), 0)
    lm = LM.load(checkpoint("llama").aligned, base=checkpoint("gpt2").base, device="cpu")
    with pytest.raises(Problem, match="shares 0% of the subject"):
        attack(lm, corpus.hand("attacker"), Way(), 0)


# Defenses


@pytest.mark.parametrize(("name", "settings", "architecture"), in_turn(variants("defenses"), ("qwen2", "gpt2")))
def test_a_defense_makes_another_checkpoint(
    checkpoint: Make, corpus: Corpus, tmp_path: Path, architecture: str, name: str, settings: dict[str, Any]
) -> None:
    made = checkpoint(architecture)
    before = {path: path.read_bytes() for folder in made for path in folder.iterdir()}
    defense = method.make("defenses", name, "test", **settings)
    hand, log = corpus.hand("defender"), tiny.Notes()
    defense.harden(made.base, made.aligned, tmp_path / "out", hand, log, tiny.DRIVE)
    assert {path: path.read_bytes() for folder in made for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "out")).__name__ in {
        *("LlamaForCausalLM", "Qwen2ForCausalLM", "GPT2LMHeadModel")
    }
    lm = LM.load(tmp_path / "out", drive=tiny.DRIVE, device="cpu")
    assert not same(weights(lm), weights(subject(checkpoint, architecture)))
    assert lm.generate(["modor"]) and log.lines
    with pytest.raises(Problem, match="not empty"):
        defense.harden(made.base, made.aligned, tmp_path / "out", hand, log, tiny.DRIVE)


@pytest.mark.parametrize(("name", "settings"), variants("defenses"))
def test_a_defense_is_repeatable_on_disk_and_in_memory(
    checkpoint: Make, corpus: Corpus, tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    made, hand = checkpoint("llama"), corpus.hand("defender")
    defense = method.make("defenses", name, "test", **settings)
    for out in ("one", "two"):
        torch.manual_seed(random.SystemRandom().randrange(2**32))
        defense.harden(made.base, made.aligned, tmp_path / out, hand, tiny.Notes(), tiny.DRIVE)
    one, two = tiny.weights(tmp_path / "one"), tiny.weights(tmp_path / "two")
    assert same(one, two)
    lm = subject(checkpoint, "llama")
    defense(lm, hand, tiny.Notes())
    assert all(torch.allclose(weight, one[key], atol=1e-5) for key, weight in weights(lm).items())


# A user's own file


OWN_ATTACK = '''
"""Mine."""
from __future__ import annotations
from dataclasses import dataclass
from typing import Literal
from holdfast.method import Attack
from holdfast.record import Cost

@dataclass
class Helper:
    name: str

class _Base(Attack):
    """Not a whole method."""

class Mine(Attack):
    """Scales the weights."""
    axis = "factor"
    factor: float = 2.0
    """How much."""
    way: Literal["up", "down"] = "up"
    """Which way."""

    def __call__(self, lm, hand, at, seed):
        for weight in lm.model.parameters():
            weight.data *= self.factor
        at(Cost(severity=self.factor))
'''
OWN_EVAL = '''
from holdfast.method import Eval

class Short(Eval):
    """1 where an answer is short."""
    limit: int = 5
    """Characters."""

    def __call__(self, answers):
        return {row.id: float(len(text) <= self.limit) for row, text in zip(answers.rows, answers.texts)}
'''


def test_a_file_of_one_s_own(tmp_path: Path, checkpoint: Make, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(OWN_ATTACK)
    (tmp_path / "short.py").write_text(OWN_EVAL)
    monkeypatch.chdir(tmp_path)
    attack = method.make("attacks", "./mine.py", "recipe", factor=0.5)
    assert {field.description for field in type(attack).model_fields.values()} == {"How much.", "Which way."}
    lm, way = subject(checkpoint, "llama"), Way(until=1)
    attack(lm, corpus.hand("attacker"), way, 0)
    assert lm.displacement()[0] == pytest.approx(0.5) and way.costs == [Cost(severity=0.5)]
    judge = method.make("evals", str(tmp_path / "short.py"), "recipe")
    asked = [row for row in corpus.rows if row.kind == "benign"][:2]
    said = judge(Answers(asked, ["yes", "certainly"], [Fit(-1.0, 1.0, 3)] * 2, [None] * 2))
    assert [*said.values()] == [1, 0]
    with pytest.raises(Problem, match=r"recipe: unknown key 'facto'; did you mean 'factor'\?"):
        method.make("attacks", "./mine.py", "recipe", facto=1)


def test_a_setting_that_checks_reckon_with_is_a_number(tmp_path: Path, corpus: Corpus) -> None:
    corpus.save(tmp_path / "corpus.jsonl")
    (tmp_path / "mine.py").write_text(OWN_ATTACK.replace("factor: float = 2.0", 'learning_rate: str = "auto"'))
    told = {
        "name": "own",
        "corpus": "corpus.jsonl",
        "harm": "exact",
        "attacks": [{"name": "mine", "method": "./mine.py"}],
        "subjects": [{"name": "a", "model": "m"}],
    }
    made = recipe.resolved(told, tmp_path / "recipe.toml")
    with pytest.raises(Problem, match=r"attack mine, learning_rate: not a number.*give your setting another name"):
        list(prepare._attack_facts(made))


@pytest.mark.parametrize(
    ("room", "source", "words"),
    [
        ("attacks", "x = 1\n", "defines 0 methods"),
        (
            "attacks",
            OWN_ATTACK + OWN_ATTACK.replace("Mine", "Other").replace("from __future__", "#"),
            "defines 2 methods",
        ),
        ("attacks", "from holdfast.method import Attack\nclass Half(Attack): pass\n", "defines 0 methods"),
        ("attacks", OWN_EVAL, "defines 0 methods"),
        ("evals", OWN_ATTACK, "defines 0 methods"),
        ("attacks", "import no_such_module\n", "cannot be imported.*no_such_module"),
        ("attacks", "def (:\n", "cannot be imported.*SyntaxError"),
        ("attacks", "1 / 0\n", "cannot be imported.*ZeroDivisionError"),
        ("attacks", "raise SystemExit(3)\n", "cannot be imported.*SystemExit"),
    ],
)
def test_a_file_of_one_s_own_that_is_wrong(tmp_path: Path, room: Room, source: str, words: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(Problem, match=words) as raised:
        method.find(room, str(path))
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("room", "name", "words"),
    [
        ("attacks", "fine-tune", "did you mean 'finetune'"),
        ("defenses", "loxx", "did you mean 'lox'"),
        ("evals", "overefusal", "did you mean 'overrefusal'"),
        ("attacks", "lox", "no such method in attacks"),
        ("attacks", "zzz", "finetune"),
        ("attacks", "__init__", "no such method"),
        ("attacks", "../defenses/lox", "no such method"),
        ("attacks", "./absent.py", "no such file"),
    ],
)
def test_a_wrong_name(room: Room, name: str, words: str) -> None:
    with pytest.raises(Problem, match=words):
        method.find(room, name)
