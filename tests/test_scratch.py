"""The control that knows nothing: every weight is drawn anew, by the model's own rule and by a seed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from holdfast.defenses.scratch import Scratch
from holdfast.lm import LM

Make = Callable[[str], tiny.Made]


def drawn(checkpoint: Make, architecture: str, seed: int = 0) -> LM:
    lm = LM.load(checkpoint(architecture).aligned, drive=tiny.DRIVE, device="cpu")
    Scratch(seed=seed)(lm, None, tiny.Notes())
    return lm


def matrices(lm: LM) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in lm.model.named_parameters() if weight.dim() > 1}


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_nothing_is_left_of_what_was_known(checkpoint: Make, architecture: str) -> None:
    old, new = (
        matrices(LM.load(checkpoint(architecture).aligned, device="cpu")),
        matrices(drawn(checkpoint, architecture)),
    )
    assert old.keys() == new.keys()
    for name, weight in new.items():
        alike = torch.nn.functional.cosine_similarity(weight.flatten(), old[name].flatten(), dim=0)
        assert abs(alike) < 6 / weight.numel() ** 0.5, name  # although tiny checkpoints begin as seed 0 draws them
    assert new["lm_head.weight" if "lm_head.weight" in new else next(iter(new))].std() == pytest.approx(0.2, rel=0.1)


def test_a_seed_draws_its_weights_and_leaves_chance_alone(checkpoint: Make) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = drawn(checkpoint, "llama").hash()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert drawn(checkpoint, "llama").hash() == one != drawn(checkpoint, "llama", seed=1).hash()


def test_tied_weights_stay_tied(checkpoint: Make) -> None:
    model = drawn(checkpoint, "qwen2").model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_it_needs_no_prompts_and_ends_as_a_checkpoint(checkpoint: Make, tmp_path: Path) -> None:
    lm = drawn(checkpoint, "llama")
    lm.save(tmp_path / "out")
    again = LM.load(tmp_path / "out", drive=tiny.DRIVE, device="cpu")
    assert again.hash() == lm.hash() and again.generate(["modor"]) == lm.generate(["modor"])
