"""An audit without a recipe: the attacks of a shipped tier on somebody's own checkpoint.

A tier is a TOML file of `tiers/`: attacks, each with the reason for its choice. What it leaves open is settled here from the
checkpoint and the corpus: the subjects, how harm and utility are judged, learning rates, and what cannot be run.
"""

import importlib.resources
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig

from holdfast import perturb, policy, recipe, train
from holdfast.checkpoint import Checkpoint, locate
from holdfast.corpus import Corpus, Hand
from holdfast.method import Attack, Need, organism_of
from holdfast.opening import Place, is_served, located
from holdfast.problem import Problem
from holdfast.recipe import Recipe

Tier = Literal["smoke", "standard", "release", "cuts"]
BY_WIDTH = "learning_rate_by_width"
"""In place of a learning rate: the rate times the model's width (its hidden size).

With Adam the best rate of hidden matrices falls as one over the width (2203.03466). The full fine-tunings that TamperBench's
search found best on five Llama, Qwen and Mistral models of 3-8 B, useful afterwards, have products of 0.04 to 0.13, median 0.1.
"""


def audit(
    tier: Tier,
    model: str,
    base: str | None = None,
    twin: str | None = None,
    corpus: Path | None = None,
    harm: str | None = None,
    second: str | None = None,
    changes: tuple[str, ...] = (),
    utility: str | None = None,
) -> Recipe:
    """The recipe of a tier for a checkpoint.

    Args:
        corpus: looked for in the checkpoint's folder and beside it unless given.
        harm: a policy's own judge, or exact where the prompts are an organism's own, unless given.
        second: another judge of harm.
        utility: exact where the prompts are an organism's own, else agreement, unless given.

    Raises:
        Problem: the checkpoint, the corpus or a change cannot be used.
    """
    content = asked(tier, model, base, twin, corpus, harm, second, utility) | read(tier)
    content["attacks"] = with_rates(content["attacks"], 1 if is_served(model) else width(locate(model)))
    chosen = recipe.resolved(content, Path(f"tier {tier}"), changes)
    hand = policy.prompts(Path(content["corpus"])).hand("attacker")
    weights = not any(is_served(one) for one in (model, twin) if one)
    return possible(chosen, base is not None, hand, weights)


def asked(
    what: str,
    model: str,
    base: str | None = None,
    twin: str | None = None,
    corpus: Path | None = None,
    harm: str | None = None,
    second: str | None = None,
    utility: str | None = None,
) -> dict[str, Any]:
    """What of a recipe follows from the checkpoint and the corpus: all but its attacks. Arguments and errors as `audit`."""
    place = located(model)
    file = corpus or _corpus_near(place)
    prompts = policy.prompts(file)
    exact = organism_of(prompts.hand("judge").rows) is not None
    said = policy.read(file) if policy.written(file) else None
    served = any(is_served(one) for one in (model, twin) if one)
    usual = "exact" if exact else "overlap" if served else "agreement"
    return {
        "name": label(f"{what}-{Path(model).resolve().name if Path(model).exists() else model}"),
        "corpus": str(file.resolve()),
        **({"harm": harm or ("exact" if exact else "asr")} if harm or not said else {}),
        **({"second": second} if second else {}),
        **({"utility": utility or usual} if utility or not (said and said.utility) else {}),
        "subjects": [*_subjects(model, base, twin)],
        **({"max_new_tokens": _longest(prompts)} if exact else {}),
    }


def read(tier: Tier) -> dict[str, Any]:
    """A tier's file, after the attacks of the tier that it includes."""
    text = (importlib.resources.files("holdfast") / "tiers" / f"{tier}.toml").read_text(encoding="utf-8")
    content = tomllib.loads(text)
    before = read(content.pop("includes"))["attacks"] if "includes" in content else []
    return content | {"attacks": [*before, *content["attacks"]]}


def with_rates(content: Any, width: int) -> Any:
    """The same tables with every learning rate, or range of rates, that goes by the model's width as numbers of two digits."""
    if isinstance(content, list):
        return [with_rates(one, width) for one in content]
    if not isinstance(content, dict):
        return content
    found = {key: with_rates(value, width) for key, value in content.items() if key != BY_WIDTH}
    return found | ({"learning_rate": _divided(content[BY_WIDTH], width)} if BY_WIDTH in content else {})


def _divided(rate: Any, width: int) -> Any:
    """A rate, or a range of them, by the width."""
    if isinstance(rate, dict):
        return rate | {end: _divided(rate[end], width) for end in ("low", "high") if end in rate}
    return float(f"{rate / width:.1e}")


def _subjects(model: str, base: str | None, twin: str | None) -> Iterator[dict[str, Any]]:
    """The undefended twin, if there is one, and what is to be released."""
    places = {"base": base} if base else {}
    if twin:
        yield {"name": "undefended", "model": twin} | places
    yield {"name": "released", "model": model} | places | ({"twin": "undefended"} if twin else {})


def _corpus_near(place: Place) -> Path:
    """The corpus that an organism's checkpoints have beside them."""
    for near in (place, place.parent) if isinstance(place, Path) else ():
        if found := policy.beside(near):
            return found
    raise Problem(
        f"{place}: no policy.toml or corpus.jsonl in it or beside it; give --corpus FILE, which "
        "`holdfast corpus --data FOLDER --out FILE` makes of the public benchmarks' files"
    )


def _longest(prompts: Corpus) -> int:
    """Tokens for an answer of which any run may be right: twice the words of the longest right one."""
    return 2 + 2 * max((len((row.answer or "").split()) for row in prompts.hand("judge").rows), default=31)


def width(folder: Path) -> int:
    """A checkpoint's hidden size. Raises `Problem` if transformers cannot read its config."""
    Checkpoint(folder).__exit__()
    try:
        return int(AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config().hidden_size)
    except Exception as error:  # transformers raises whatever its configs do
        raise Problem(f"{folder}: transformers cannot read its config ({' '.join(str(error).split())})") from error


def possible(chosen: Recipe, base: bool, hand: Hand, weights: bool) -> Recipe:
    """The recipe without the attacks whose needs are not there; each is named with what it lacks.

    Raises:
        Problem: no attack is left.
    """
    lacks = {one.name: lacking(one.build(), base, hand, weights) for one in chosen.attacks}
    attacks = [one for one in chosen.attacks if not lacks[one.name]]
    if not attacks:
        raise Problem(f"{chosen.name}: none of its attacks can be run; the attacker's hand of {chosen.corpus} is empty")
    not_run = [f"{name} needs {' and '.join(needs)}" for name, needs in lacks.items() if needs]
    return chosen.model_copy(update={"attacks": attacks, "not_run": not_run})


def lacking(attack: Attack, base: bool, hand: Hand, weights: bool = True) -> list[Need]:
    """What the attack, or one of its stages, needs and is not there.

    Data are prompts asked plainly, with answers for who trains towards answers; lessons alone are no benign data.
    """
    if stages := getattr(attack, "stages", ()):
        return list(dict.fromkeys(need for stage in stages for need in lacking(stage.build(), base, hand, weights)))
    taught = isinstance(attack, train.Adversary) or (isinstance(attack, perturb.Aim) and attack.target == "answers")
    kinds = {row.kind for row in hand.rows if row.variant is None and (row.answer is not None or not taught)}
    there: dict[Need, bool] = {
        "weights": weights,
        "base weights": base,
        "harmful data": "restricted" in kinds,
        "benign data": "benign" in kinds,
        "pictures": any(row.image for row in hand.rows),
        "GPU": torch.cuda.is_available(),
    }
    needs: tuple[Need, ...] = attack.needs if attack.asks_only else ("weights", *attack.needs)
    return [need for need in needs if not there[need]]


def label(text: str) -> str:
    """A name as recipes allow it."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60]
