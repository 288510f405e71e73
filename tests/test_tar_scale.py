"""TAR with less memory, and in several processes: the same weights come out."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import tiny
from holdfast import inner, shards, thrift, train
from holdfast.corpus import Corpus, Hand
from holdfast.defenses.tar import TAR
from holdfast.lm import LM
from holdfast.problem import Problem

Make = Callable[[str], tiny.Made]
QUICK: dict[str, Any] = {
    **{"steps": 2, "inner_steps": 2, "stride": 2, "batch": 8, "looked": 4, "varied": 4, "warmup": 0},
    **{"learning_rate": 1e-4},
}


def family(**settings: Any) -> inner.Family:
    return inner.Family(learning_rate=(1e-3, 1e-2), batch=(4,), examples=(4,), **settings)


def hardened(made: tiny.Made, hand: Hand, *families: inner.Family, **settings: Any) -> Tensor:
    lm = LM.load(made.aligned, drive=tiny.DRIVE, device="cpu")
    TAR(**QUICK | settings, families=families or (family(),))(lm, hand, tiny.Notes())
    assert all(weight.dtype == torch.float32 for weight in lm.model.parameters())
    assert lm.model.config.use_cache, "as before"
    return torch.cat([weight.detach().flatten() for weight in lm.model.parameters()])


# Memory


@pytest.mark.parametrize(
    "memory", [{"offload": True}, {"checkpointing": True}, {"offload": True, "checkpointing": True}]
)
def test_what_costs_only_time_changes_nothing(checkpoint: Make, corpus: Corpus, memory: dict) -> None:
    made, hand = checkpoint("llama"), corpus.hand("defender")
    assert torch.equal(hardened(made, hand), hardened(made, hand, memory=memory))


def test_with_few_bits_it_goes_the_same_way(checkpoint: Make, corpus: Corpus) -> None:
    made, hand = checkpoint("llama"), corpus.hand("defender")
    memory = {"precision": "bf16", "state": "8bit", "offload": True, "checkpointing": True}
    families = family(), family(lora_rank=(2,))
    start = torch.cat([w.detach().flatten() for w in LM.load(made.aligned, drive=tiny.DRIVE).model.parameters()])
    exact, rounded = (hardened(made, hand, *families, **more) - start for more in ({}, {"memory": memory}))
    assert float(nn.functional.cosine_similarity(exact, rounded, dim=0)) > 0.8


@pytest.mark.parametrize("name", ["adamw", "sgd", "sgd-momentum", "adagrad", "rmsprop"])
@pytest.mark.parametrize("state", ["fp32", "8bit"])
def test_small_steps_in_bf16_lead_as_far_as_in_fp32(name: train.Optimizer, state: str) -> None:
    """Along the way that fp32 takes at a rate of 2e-6; plain bf16 stands nearly still."""
    torch.manual_seed(0)
    start = (torch.randn(400, 500) * 0.02).bfloat16().float()
    gradients = [torch.randn(400, 500) for _ in range(64)]

    def walked(dtype: torch.dtype, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> Tensor:
        weight = nn.Parameter(start.clone().to(dtype))
        optimizer = make([weight])
        for gradient in gradients:
            weight.grad = gradient.to(dtype)
            optimizer.step()
        return weight.detach().float() - start

    def along(moved: Tensor) -> float:
        return float((moved * exact).sum() / exact.square().sum())

    exact = walked(torch.float32, lambda weights: train.make_optimizer(weights, name, 2e-6))
    memory = thrift.Memory(precision="bf16", state=state)
    assert along(walked(torch.bfloat16, lambda weights: memory.optimizer(weights, name, 2e-6, 0))) == pytest.approx(
        1, abs=0.05
    )
    if name == "adamw":
        assert along(walked(torch.bfloat16, lambda weights: train.make_optimizer(weights, name, 2e-6))) < 0.3


def test_rounding_by_chance_keeps_the_mean_and_what_needs_no_rounding() -> None:
    chance = torch.Generator().manual_seed(0)
    values = torch.tensor([1.0, -1.5, 0.0, 1 + 2**-10, -1 - 2**-9]).repeat(20000, 1)
    rounded = thrift.by_chance(values, torch.bfloat16, chance).float()
    assert torch.equal(rounded[:, :3], values[:, :3])
    assert torch.allclose(rounded.mean(0), values[0], atol=1e-4)
    assert set(rounded[:, 3].tolist()) == {1.0, 1 + 2**-7}


# Processes


def _process(rank: int, port: int, made: tiny.Made, out: Path, settings: dict[str, Any]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shards.join()
    TAR(**settings).harden(None, made.aligned, out, tiny.corpus().hand("defender"), tiny.Notes(), tiny.DRIVE)
    shards.leave()


def together(made: tiny.Made, out: Path, settings: dict[str, Any]) -> Tensor:
    """What two processes write, each forked from this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=_process, args=(rank, port, made, out, settings)) for rank in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(120)
    assert [one.exitcode for one in both] == [0, 0]
    written = load_file(out / "model.safetensors")
    lm = LM.load(out, drive=tiny.DRIVE, device="cpu")
    assert set(written) <= set(lm.model.state_dict())
    return torch.cat([weight.detach().flatten() for weight in lm.model.parameters()])


@pytest.mark.parametrize(
    ("families", "memory"),
    [((family(),), {}), ((family(lora_rank=(2,)),), {"offload": True, "checkpointing": True})],
    ids=["full", "lora"],
)
def test_two_processes_write_what_one_writes(
    checkpoint: Make, corpus: Corpus, tmp_path: Path, families: tuple[inner.Family, ...], memory: dict
) -> None:
    made = checkpoint("llama")
    alone = hardened(made, corpus.hand("defender"), *families, memory=memory)
    both = together(made, tmp_path / "out", {**QUICK, "families": families, "memory": memory})
    start = torch.cat([w.detach().flatten() for w in LM.load(made.aligned, drive=tiny.DRIVE).model.parameters()])
    assert float((both - alone).norm() / alone.norm()) < 1e-4
    assert float((both - alone).norm() / (alone - start).norm()) < 0.05, "of the way that it went"


def test_a_batch_that_cannot_be_divided_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "size", lambda: 2)
    with pytest.raises(Problem, match="3 rows cannot be divided"):
        shards.share([1, 2, 3])
