"""Image encoders left early, in every family: the exits are the deployer's, and their blocks are paid for once."""

import copy
import functools
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import pictures
from holdfast.problem import Problem
from holdfast.thinning import kept, thinned
from holdfast.vision import States, Tower, collated, truncated

every_family = pytest.mark.parametrize("family", pictures.FAMILIES)
as_deployed = pytest.mark.parametrize("family", [family for family in pictures.FAMILIES if family != "qwen3-vl"])
made = functools.cache(pictures.make)


@functools.cache
def recorded(family: str) -> list[States]:
    model, two = made(family)
    return [Tower.of(model).states(picture) for picture in two]


@torch.no_grad()
def logits(model: PreTrainedModel, batch: dict[str, Any], **more: Any) -> Tensor:
    """Of the last token of each row: it has seen the picture."""
    return model(**batch, **more).logits[:, -1]


@functools.cache
def asked(family: str) -> dict[str, Tensor]:
    return pictures.asked(*made(family))


def left(family: str, *exits: int) -> Tensor:
    """What the model says of its pictures, each left at one of the exits."""
    model, batch = made(family).model, asked(family)
    with Tower.of(model).leaving(recorded(family), exits):
        return logits(model, batch)


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-5, rtol=1e-5)


@every_family
def test_the_released_exit_is_the_model_itself(family: str) -> None:
    model = made(family).model
    released = Tower.of(model).released
    assert close(left(family, released, released), logits(model, asked(family)))


def test_the_released_exit_is_the_layer_that_the_configuration_names() -> None:
    exits = {family: Tower.of(made(family).model).released for family in pictures.FAMILIES}
    named = {"llava": 3, "llava-next": 3, "llava-several": 3, "vipllava": 3, "mllama": 5}
    assert exits == dict.fromkeys(pictures.FAMILIES, pictures.BLOCKS) | named


@as_deployed
def test_an_exit_is_the_encoder_without_the_blocks_behind_it(family: str) -> None:
    model, batch = made(family).model, asked(family)
    for exit in range(1, Tower.of(model).last + 1):
        undo = truncated(model, exit)
        try:
            assert len(Tower.of(model).blocks) == exit
            deployed = logits(model, batch)
        finally:
            undo()
        assert close(left(family, exit, exit), deployed), exit


@every_family
def test_a_truncated_model_is_one_of_its_family_and_is_put_back(family: str) -> None:
    model, batch = made(family).model, asked(family)
    config = model.config.to_dict()
    before = logits(model, batch)
    undo = truncated(model, 2)
    try:
        again = type(model)(copy.deepcopy(model.config)).eval()
        again.load_state_dict(model.state_dict())
        assert close(logits(again, batch), logits(model, batch))
        assert not close(logits(model, batch), before)
    finally:
        undo()
    assert torch.equal(logits(model, batch), before) and model.config.to_dict() == config


def test_exits_of_llava_are_the_layers_of_the_paper() -> None:
    model, batch = made("llava").model, asked("llava")
    inner = model.model
    for exit in range(1, pictures.BLOCKS + 1):
        assert close(left("llava", exit, exit), logits(model, batch, vision_feature_layer=exit))
    with torch.no_grad():
        layers = inner.vision_tower(batch["pixel_values"], output_hidden_states=True).hidden_states
        for exit, layer in enumerate(layers):
            with Tower.of(model).leaving(recorded("llava"), [exit, exit]):
                given = inner.get_image_features(batch["pixel_values"]).pooler_output
            assert close(torch.stack(list(given)), inner.multi_modal_projector(layer[:, 1:]))


@every_family
def test_each_picture_of_a_batch_leaves_at_its_own_exit(family: str) -> None:
    last = Tower.of(made(family).model).last
    mixed = left(family, 1, last)
    assert close(mixed[0], left(family, 1, 1)[0]) and close(mixed[1], left(family, last, last)[1])
    model, two = made(family)
    alone = pictures.asked(model, two[1:])
    alone["input_ids"][:, -1] = asked(family)["input_ids"][1, -1]  # the second question, of the second picture alone
    with Tower.of(model).leaving(recorded(family)[1:], [last]):
        assert close(mixed[1:], logits(model, alone))


@every_family
def test_every_exit_is_another(family: str) -> None:
    said = [left(family, exit, exit) for exit in range(Tower.of(made(family).model).last + 1)]
    assert all(said_.isfinite().all() for said_ in said)
    assert not [(a, b) for b in range(len(said)) for a in range(b) if torch.allclose(said[a], said[b], atol=1e-4)]


@as_deployed
def test_generating_goes_on_from_an_exit(family: str) -> None:
    model, batch = made(family).model, asked(family)
    settings = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [pictures.IMAGE]}
    with Tower.of(model).leaving(recorded(family), [1, 1]):
        answers = model.generate(**batch, **settings)
    undo = truncated(model, 1)
    try:
        assert torch.equal(answers, model.generate(**batch, **settings))
    finally:
        undo()


@every_family
def test_no_block_is_computed_and_everything_is_put_back(family: str) -> None:
    model, batch = made(family).model, asked(family)
    tower, states, computed = Tower.of(model), recorded(family), []
    inside = [next(m for m in block.modules() if isinstance(m, torch.nn.Linear)) for block in tower.blocks]
    hooks = [linear.register_forward_hook(lambda *_: computed.append(1)) for linear in inside]
    with pytest.raises(KeyboardInterrupt), tower.leaving(states, [1, 2]):
        logits(model, batch)
        assert not computed
        raise KeyboardInterrupt
    plain = logits(model, batch)
    for hook in hooks:
        hook.remove()
    assert len(computed) == len(tower.blocks)
    assert close(plain, left(family, tower.released, tower.released))


@every_family
def test_what_no_exit_reads_is_not_kept(family: str) -> None:
    model, two = made(family)
    tower = Tower.of(model)
    thrifty = [tower.states(picture, exits=[2]) for picture in two]
    assert set(thrifty[0].layers) == {2, *(layer for layer in tower.tapped if layer < 2)}
    with tower.leaving(thrifty, [2, 2]):
        thrift = logits(model, asked(family))
    assert torch.equal(thrift, left(family, 2, 2))


def test_features_tapped_from_skipped_blocks_are_the_exits_own() -> None:
    model, two = made("qwen3-vl")  # taps blocks 1 and 3
    tower, batch = Tower.of(model), collated(two)
    merge = tower.encoder.deepstack_merger_list
    undo = truncated(model, 2)
    try:
        dropped = model.get_image_features(**batch).deepstack_features
    finally:
        undo()
    with torch.no_grad(), tower.leaving(recorded("qwen3-vl"), [2, 2]):
        tapped = model.get_image_features(**batch).deepstack_features
        layers = [torch.cat([states.layers[layer] for states in recorded("qwen3-vl")]) for layer in (1, 2)]
        assert all(
            close(torch.cat(list(got)), merger(layer)) for got, merger, layer in zip(tapped, merge, layers, strict=True)
        )
    assert len(dropped) == 1


def test_a_choice_is_said_where_an_exit_is_not_plain() -> None:
    said = {family: Tower.of(made(family).model).choice for family in pictures.FAMILIES}
    assert {family for family in said if said[family]} == {"llava-several", "vipllava", "qwen3-vl", "mllama"}
    assert "blocks 1, 3" in said["qwen3-vl"] and "stacks of 3 and 2 blocks" in said["mllama"]


def test_a_model_with_an_adapter_has_the_same_encoder() -> None:
    model, two = pictures.make("llava")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=r".*language_model.*q_proj")).eval()
    tower = Tower.of(adapted)
    with tower.leaving([tower.states(picture) for picture in two], [2, 1]):
        assert close(logits(adapted, asked("llava")), left("llava", 2, 1))


def test_tiles_are_filled_up_with_nothing() -> None:
    batch = collated([{"pixel_values": torch.ones(1, 2, 3)}, {"pixel_values": torch.ones(1, 4, 3)}])
    assert batch["pixel_values"].shape == (2, 4, 3)
    assert batch["pixel_values"].sum((1, 2)).tolist() == [6, 12]


@pytest.mark.parametrize("count", range(1, 30))
def test_tokens_that_are_kept_are_spread_evenly(count: int) -> None:
    for keep in range(1, 35):
        positions = kept(count, keep)
        assert len(positions) == min(keep, count)
        steps = positions.diff()
        assert (steps >= 1).all() and (not len(steps) or steps.max() - steps.min() <= 1)
        assert positions[0] >= 0 and abs(positions[0] - (count - 1 - positions[-1])) <= 1


def test_a_text_model_has_no_exit() -> None:
    text = LlamaForCausalLM(LlamaConfig(**pictures.TEXT))
    for model in (text, get_peft_model(text, LoraConfig(target_modules="all-linear"))):
        with pytest.raises(Problem, match="has no image encoder"):
            Tower.of(model)


@pytest.mark.parametrize("exit", [-1, pictures.BLOCKS + 1])
def test_an_exit_that_is_none_is_refused(exit: int) -> None:
    model, two = made("gemma3")
    tower = Tower.of(model)
    for asking in (
        lambda: tower.states(two[0], exits=[exit]),
        lambda: tower.leaving(recorded("gemma3"), [1, exit]).__enter__(),
        lambda: truncated(model, exit),
    ):
        with pytest.raises(Problem, match=f"exit {exit}: the image encoder has"):
            asking()


def test_what_was_not_kept_cannot_be_left_at() -> None:
    model, two = made("gemma3")
    tower = Tower.of(model)
    thrifty = tower.states(two[0], exits=[2])
    with pytest.raises(Problem, match="layer 3 was not kept"), tower.leaving([thrifty], [3]):
        pass


@pytest.mark.parametrize("family", ["llava-next", "mistral3", "qwen2-vl"])
def test_other_pictures_are_not_taken_for_the_recorded_ones(family: str) -> None:
    model, two = made(family)
    other = pictures.asked(model, two[:1])
    for recording, batch in ((recorded(family)[:1], asked(family)), (recorded(family)[1:], other)):
        with pytest.raises(Problem, match="other pictures"), Tower.of(model).leaving(recording, [1]):
            logits(model, batch)


READS_AS_TEXT = [family for family in pictures.FAMILIES if not family.startswith(("qwen", "mllama"))]


@pytest.mark.parametrize("family", READS_AS_TEXT)
def test_fewer_tokens_are_a_shorter_prompt(family: str) -> None:
    """What is left is what the model says of a prompt in which these features alone stand as embeddings."""
    model, (picture, _) = made(family)
    count = pictures.features(model, picture)
    head, tail, keep = [1, 7, 8], [9, 10, 11], max(1, count // 3)
    places = kept(count, keep)
    with torch.no_grad():
        whole = model.get_image_features(**picture).pooler_output
        features = torch.cat([part.flatten(0, -2) for part in whole])[places]
        words = model.get_input_embeddings()(torch.tensor([head + tail]))
        given = torch.cat([words[:, :3], features[None].to(words), words[:, 3:]], 1)
        plain = (
            model.base_model.language_model
            if hasattr(model.base_model, "language_model")
            else model.base_model.text_model
        )
        expected = model.get_output_embeddings()(plain(inputs_embeds=given).last_hidden_state)[:, -1]
        ids = torch.tensor([head + [pictures.IMAGE] * keep + tail])
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **picture}
        if family == "gemma3":
            batch["token_type_ids"] = (ids == pictures.IMAGE).long()
        with thinned(model, [count], keep):
            found = logits(model, batch)
        if family != "gemma3":  # its visual tokens see each other, which plain embeddings do not say
            assert close(found, expected)
        assert not close(found, left(family, *[Tower.of(model).released] * 2)[:1]) or keep == count


def test_all_tokens_kept_is_the_model_itself() -> None:
    model, batch = made("llava").model, asked("llava")
    counts = [pictures.features(model, picture) for picture in made("llava").pictures]
    with thinned(model, counts, max(counts)):
        assert close(logits(model, batch), logits(made("llava").model, batch))
    assert "get_image_features" not in vars(model.base_model)


@pytest.mark.parametrize("family", ["qwen2-vl", "qwen3-vl", "mllama"])
def test_pictures_that_are_no_text_cannot_lose_tokens(family: str) -> None:
    with pytest.raises(Problem, match="none can be left out"), thinned(made(family).model, [4], 1):
        pass
