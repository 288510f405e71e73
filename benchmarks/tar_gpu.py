"""One outer step of TAR on Llama shapes of 1, 3 and 8 B parameters with random weights, and LoX on the matrices of 8 B, on a GPU.

Of each shape: the most memory that torch had allocated, beside the plan; seconds of an outer step, the median of those after the
first; and model FLOPs utilization: operations of forward and backward passes, recomputing not counted, over what the card could
do in those seconds by its maker's sheet (bf16, dense). LoX: seconds to edit one matrix of each shape, times their number. Without
a GPU it says so and ends with exit code 2; `--tiny` runs the same code on a tiny shape on the CPU.

Run: python benchmarks/tar_gpu.py [--shapes 1B 3B 8B] [--tiny] [--out FILE]
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from holdfast import footprint, inner, shards, spectrum, thrift, train
from holdfast.defenses.tar import TAR
from holdfast.lm import LM
from holdfast.prepare import hardware
from holdfast.rehearsal import diverged

SHAPES: dict[str, dict[str, int]] = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "3B": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
SHAPES = {name: shape | {"num_key_value_heads": 8, "vocab_size": 128256} for name, shape in SHAPES.items()}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 2, "vocab_size": 500}
LENGTH, ANSWER, ROWS, STEPS, STRIDE, ROUNDS = 256, 128, 16, 8, 4, 3
RANK = 6


class Quiet:
    folder: Path | None = None

    def metrics(self, **values: Any) -> None:
        pass


def batch(device: torch.device, vocabulary: int) -> train.Batch:
    ids = torch.randint(vocabulary, (ROWS, LENGTH), device=device)
    labels = ids.clone()
    labels[:, : LENGTH - ANSWER] = -100
    return train.Batch(ids, torch.ones_like(ids), labels)


def settings(state: str) -> TAR:
    memory = thrift.Memory(precision="bf16", state=state, offload=True, checkpointing=True)
    families = (inner.Family(batch=(ROWS,)),)
    sizes = {"batch": ROWS, "looked": ROWS, "inner_steps": STEPS, "stride": STRIDE, "steps": ROUNDS}
    return TAR(**sizes, families=families, memory=memory)


def stepped(shape: dict[str, int], device: torch.device, speed: float | None, state: str) -> dict[str, Any]:
    """TAR's outer steps on random rows, measured."""
    how, text = settings(state), footprint.Text(LENGTH, ANSWER)
    planned = footprint.footprint(LlamaConfig(**shape), how.rehearsal(), text)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**shape), dtype=torch.float32).eval()
    lm = LM(model, None, Path())
    adversary, seconds = how.families[0].largest().model_copy(update={"steps": STEPS}), []
    reference, shares = how.memory.reference(model), how.shares(STEPS)
    with how.hardening(lm, Quiet(), how.memory) as walk:
        gathered = inner.Gathered(walk.masters)
        clean(device)
        for _ in walk.steps():
            start = time.perf_counter()
            work = (batch(device, shape["vocab_size"]) for _ in range(STEPS))
            with inner.kept(walk.weights, walk.masters.copies):
                for k in inner.attack(lm, adversary, work, 0, how.memory):
                    if k in shares:
                        train.answer_loss(lm.model, batch(device, shape["vocab_size"])).backward()
                        gathered.take(shares[k])
            diverged(lm.model, reference, batch(device, shape["vocab_size"])).backward()
            gathered.give()
            walk.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    bare = footprint.footprint(LlamaConfig(**shape), plain(how).rehearsal(), text).flops / ROUNDS
    median = statistics.median(seconds[1:])
    return {
        "weights": planned.weights,
        "seconds": seconds,
        "peak_bytes": peak,
        "planned_bytes": planned.worst.device,
        "model_flops": bare,
        "utilization": bare / median / speed if speed else None,
    }


def plain(how: TAR) -> TAR:
    """The same without recomputing, whose operations are the model's own."""
    return how.model_copy(update={"memory": how.memory.model_copy(update={"checkpointing": False})})


def clean(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def lox(shape: dict[str, int], device: torch.device) -> dict[str, Any]:
    """Seconds of LoX's edit of every matrix of the blocks, from one of each shape."""
    width, middle = shape["hidden_size"], shape["intermediate_size"]
    keys = width // shape["num_attention_heads"] * shape["num_key_value_heads"]
    times = Counter({(width, width): 2, (keys, width): 2, (middle, width): 2, (width, middle): 1})
    each: dict[str, float] = {}
    for rows, columns in times:
        difference: Tensor = torch.randn(rows, columns, device=device) * 1e-3
        spectrum.edit(difference, RANK, "top", 0)  # the first call makes the libraries ready
        start = time.perf_counter()
        spectrum.edit(difference, RANK, "top", 0)
        if device.type == "cuda":
            torch.cuda.synchronize()
        each[f"{rows}x{columns}"] = time.perf_counter() - start
    whole = sum(seconds * count for seconds, count in zip(each.values(), times.values(), strict=True))
    return {"matrix_seconds": each, "blocks_seconds": whole * shape["num_hidden_layers"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=[*SHAPES], default=[*SHAPES])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/tar_gpu.json")
    options = parser.parse_args()
    if not (options.tiny or torch.cuda.is_available()):
        print("tar_gpu: no CUDA GPU here; run it where there is one, or give --tiny to try the code", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.tiny else "cuda")
    name = "" if options.tiny else torch.cuda.get_device_name().lower()
    speed = next((speed for card, (_, speed) in footprint.CARDS.items() if card in name), None)
    state = "fp32" if options.tiny else "8bit"
    shapes = {"tiny": TINY} if options.tiny else {one: SHAPES[one] for one in options.shapes}
    result: dict[str, Any] = {"hardware": hardware(), "date": date.today().isoformat(), "tar": {}}
    result |= {"versions": {one: version(one) for one in ("torch", "transformers")}, "processes": shards.size()}
    result |= {"rows": ROWS, "length": LENGTH, "inner_steps": STEPS, "memory": settings(state).memory.model_dump()}
    for one, shape in shapes.items():
        try:
            result["tar"][one] = stepped(shape, device, speed, state)
        except torch.OutOfMemoryError as error:
            result["tar"][one] = {"out_of_memory": str(error)}
        clean(device)
    result["lox"] = lox(TINY if options.tiny else SHAPES["8B"], device)
    text = json.dumps(result, indent=1) + "\n"
    options.out.write_text(text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
