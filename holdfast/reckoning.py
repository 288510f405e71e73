"""What a reproduction at a paper's scale will take: models, disk, memory and operations, reckoned before anything is fetched.

Arithmetic from numbers of parameters and from the recipe, no measurement: cells compute in fp32 and hold the subject, its twin
and the judge at once. Activations, caches and what the libraries waste come on top. Runs nothing, and fetches a config at most.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from holdfast import train
from holdfast.checkpoint import Checkpoint
from holdfast.footprint import CARDS, REACHED, REMEMBERED, Card
from holdfast.method import Attack, Defense, make
from holdfast.paper import MODELS, Model, Setup
from holdfast.plan import looks
from holdfast.problem import Problem
from holdfast.recipe import AttackRecipe
from holdfast.relearning import Relearning

FP32 = 67e12
"""Operations a second in fp32 of an H100 or H200, by the maker's sheet."""
PROMPT = 64
"""Tokens of a prompt: a guess."""
JUDGED = 256
"""Tokens that a judge reads of an exchange: a guess."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def parameters(model: Model) -> float:
    """Of a folder of one's own by its files, else as published."""
    if model.place is None:
        return model.parameters
    with Checkpoint(Path(model.place).expanduser()) as checkpoint:
        return float(sum(math.prod(checkpoint.shape(name)) for name in checkpoint))


def told(setup: Setup, card: Card) -> Iterator[str]:
    """Lines to print. Raises `Problem` if a folder of one's own is no checkpoint, or a method takes no such settings."""
    sizes = {name: parameters(model) for name, model in setup.used.items()}
    for name, model in setup.used.items():
        yield f"model {name}: {model.name}, {sizes[name] / 1e9:.3g} B parameters"
    for name, source in setup.data.items():
        lies = source.place or (source.hub and f"{source.hub} on the hub") or f"to be fetched from {source.page}"
        yield f"data {name}: {source.file}, {lies}"
    wanted = sum(sizes[name] * model.bytes for name, model in setup.used.items() if model.place is None)
    yield f"disk: {wanted / 1e9:.3g} GB to fetch, {_made(setup, sizes) / 1e9:.3g} GB of hardened checkpoints at most"
    yield from _relearned(setup, sizes) if setup.recipe is None else _audited(setup, sizes, card)


def _audited(setup: Setup, sizes: dict[str, float], card: Card) -> Iterator[str]:
    assert setup.recipe
    recipe, size = setup.recipe, max(_size(one, sizes) for one in setup.recipe["subjects"])
    attacks = [AttackRecipe(**one) for one in recipe["attacks"]]
    cells = [(one, len(one.seeds or recipe["seeds"]) * len(recipe["subjects"])) for one in attacks]
    training = max((_trained(one.build()) for one in attacks), default=0.0)
    judge = recipe.get("harm")
    judge = judge if isinstance(judge, dict) else {}
    judging = sizes.get(str(judge.get("model", "")).removeprefix(MODELS), 0.0)
    parts = {"the subject": 4 * size, "its training": training * size, "its twin": 4 * size}
    parts["the judge"] = judging * BYTES[judge.get("dtype", "float32")]
    whole, room = sum(parts.values()), CARDS[card][0]
    said = ", ".join(f"{name} {part / 1e9:.3g}" for name, part in parts.items() if part)
    fits = "which fits" if whole <= room else "which does not fit"
    yield f"memory of a cell: {whole / 1e9:.3g} GB ({said}), {fits} one {card} of {room / 1e9:.0f} GB"
    if whole > room:
        yield "a cell uses one GPU: take a larger card, or an adapter (--set recipe.attacks.0.peft=lora), and say so"
    answers = 2 * size * (PROMPT + recipe.get("max_new_tokens", 64)) + 2 * judging * JUDGED
    answered = sum(count * looks(one) for one, count in cells)
    trained = sum(count * _rows(one.build()) * setup.tokens * 6 * size for one, count in cells)
    yield f"cells: {sum(count for _, count in cells)} on {len(recipe['subjects'])} subjects"
    hardened = sum(_hardened(setup, one, sizes) for one in recipe["subjects"] if "harden" in one)
    yield _hours(answered * setup.asked * answers + trained + hardened)
    yield from _planned(setup, card)


def _planned(setup: Setup, card: Card) -> Iterator[str]:
    """What hardenings that rehearse attacks say of themselves, by the config of the first subject's model."""
    assert setup.recipe
    first, *others = setup.recipe["subjects"]
    model = setup.models[first["model"].removeprefix(MODELS)].name
    for subject in others:
        harden = dict(subject["harden"])
        defense = make("defenses", harden.pop("method"), "papers", **harden)
        if type(defense).planned is Defense.planned:
            continue
        try:
            lines = [*defense.planned(model, setup.tokens, setup.tokens // 2, 1, card)]
        except Problem as problem:
            lines = [f"not foretold: {problem}"]
        yield from (f"hardening {subject['name']}: {line}" for line in lines)


def _relearned(setup: Setup, sizes: dict[str, float]) -> Iterator[str]:
    wanted = Relearning(**setup.relearning or {})
    attacker = wanted.attacker
    size = max(sizes[one.model.removeprefix(MODELS)] for one in wanted.starts)
    steps, batch = max(attacker.steps), max(attacker.batches)
    trials = attacker.probes + attacker.trials + attacker.again
    one = steps * batch * setup.tokens * 6 * size + steps / attacker.every * setup.asked * setup.tokens * 2 * size
    count = len(wanted.starts) * len(wanted.seeds)
    hardened = sum(
        len(wanted.seeds) * _steps(dict(one.harden.settings)) * setup.tokens * 6 * size
        for one in wanted.starts
        if one.harden
    )
    yield f"memory: {16 * size / 1e9:.3g} GB for a model in training, beside its activations; a CPU will do"
    yield f"starts: {count}, each attacked with {', '.join(map(str, wanted.examples))} examples in {trials} ways at most"
    yield _hours(count * len(wanted.examples) * trials * one + hardened)


def _hours(operations: float) -> str:
    hours = operations / (FP32 * REACHED) / 3600
    guess = f"a guess: {REACHED:.0%} of the peak in fp32"
    return f"operations: {operations:.2g} at most; on one h200 about {hours:.2g} hours ({guess})"


def _size(subject: dict[str, Any], sizes: dict[str, float]) -> float:
    return sizes.get(str(subject.get("model", "")).removeprefix(MODELS), 0.0)


def _made(setup: Setup, sizes: dict[str, float]) -> float:
    """Bytes of hardened checkpoints, were they all in fp32."""
    if setup.recipe is None:
        wanted = Relearning(**setup.relearning or {})
        hardened = [one for one in wanted.starts if one.harden]
        return sum(4 * sizes[one.model.removeprefix(MODELS)] * len(wanted.seeds) for one in hardened)
    largest = max(_size(one, sizes) for one in setup.recipe["subjects"])
    return 4 * largest * sum("harden" in one for one in setup.recipe["subjects"])


def _trained(attack: Attack) -> float:
    """Bytes for each weight of gradients and optimizer, where all weights are trained."""
    if not isinstance(attack, train.Adversary) or attack.peft != "full":
        return 0.0
    return 4.0 * (1 + REMEMBERED[attack.optimizer])


def _rows(attack: Attack) -> int:
    """Training rows of an attack."""
    return attack.steps * attack.batch if isinstance(attack, train.Adversary) else 0


def _hardened(setup: Setup, subject: dict[str, Any], sizes: dict[str, float]) -> float:
    """Operations of a hardening that is plain training; 0 of others, which tell themselves or train nothing."""
    largest = max(_size(one, sizes) for one in (setup.recipe or {})["subjects"])
    return 6 * largest * setup.tokens * _steps(subject["harden"])


def _steps(harden: dict[str, Any]) -> float:
    """Rows that a hardening trains on, by the settings that are given."""
    if "epochs" in harden:
        return (
            2.5 * harden["epochs"] * harden.get("count", 0)
        )  # two answers a pair, and half a pass more for the reference
    return harden.get("steps", 0) * harden.get("batch", 16) * (1 + harden.get("inner_steps", 0))
