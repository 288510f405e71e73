"""What LoX costs: streaming edit against full SVDs of two loaded models, and against a plain copy of the same bytes.

Makes a pair of checkpoints in the shape of Llama-3.2-1B (bf16, tied, one file of 2.5 GB) whose difference has singular
values falling as i^-0.75, plus what rounding to bf16 adds. Then, each in a process of its own:

- lox:  `LoX(rank=6, strength=1.25).harden`, from the call to the renamed folder, files on the disk (fsync); imports not
        counted. Peak RSS is of the whole process, imports included.
- copy: the weight file copied by two threads, one half each, inside the kernel (copy_file_range), then fsync.
- full: both models loaded with transformers, full SVD (torch, one thread) of one matrix of each shape, the time scaled to
        all of them and divided by the number of cores, as if it scaled perfectly; the token table's from a line through
        8192 and 16384 rows.

The inputs lie in the page cache in all three. On a machine that others use, the wall-clock ratios flatter whoever needs
fewer cores: `load_before` tells, and `full_svd_cpu_ratio` compares processor seconds, which suffer less.

Run: python benchmarks/lox.py [--layers N] [--repeats N]
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HIDDEN, MIDDLE, KEYS, VOCABULARY = 2048, 8192, 512, 128256
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (MIDDLE, HIDDEN),
    "mlp.up_proj": (MIDDLE, HIDDEN),
    "mlp.down_proj": (HIDDEN, MIDDLE),
}
RANK, STRENGTH = 6, 1.25
COMPONENTS, EXPONENT, SPREAD = 256, 0.75, 1e-4
"""Singular directions of a difference, how they fall, and the standard deviation of its entries."""


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in SHAPES.items()}
        norms = ("input_layernorm", "post_attention_layernorm")
        found |= {f"model.layers.{layer}.{name}.weight": (HIDDEN,) for name in norms}
    return found | {"model.norm.weight": (HIDDEN,)}


def make(folder: Path, layers: int) -> dict[str, Any]:
    """Write `folder/base` and `folder/aligned`, one tensor in memory at a time."""
    found = shapes(layers)
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in found.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": MIDDLE,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    files = []
    for kind in ("base", "aligned"):
        (folder / kind).mkdir()
        (folder / kind / "config.json").write_text(json.dumps(config))
        files.append((folder / kind / "model.safetensors").open("wb"))
        files[-1].write(len(head).to_bytes(8, "little") + head)
    generator = torch.Generator().manual_seed(0)
    for shape in found.values():
        for file, tensor in zip(files, pair(shape, generator), strict=True):
            file.write(tensor.contiguous().view(torch.uint8).numpy())
    for file in files:
        file.flush()
        os.fsync(file.fileno())
        file.close()
    return {"bytes": len(head) + 8 + end}


def pair(shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16), torch.ones(shape, dtype=torch.bfloat16)
    base = (torch.randn(shape, generator=generator) * 0.02).bfloat16()
    scale = torch.arange(1, COMPONENTS + 1) ** -EXPONENT
    left = torch.randn(shape[0], COMPONENTS, generator=generator) * (scale * SPREAD / torch.linalg.vector_norm(scale))
    return base, torch.addmm(base.float(), left, torch.randn(COMPONENTS, shape[1], generator=generator)).bfloat16()


class Silent:
    """A log that forgets."""

    folder = None

    def metrics(self, **values: float | str | bool) -> None:
        pass


def lox(folder: Path) -> dict[str, Any]:
    from holdfast.defenses.lox import LoX
    from holdfast.lm import Drive

    start, started = time.perf_counter(), time.process_time()
    out = folder / "hardened"
    LoX(rank=RANK, strength=STRENGTH).harden(folder / "base", folder / "aligned", out, None, Silent(), Drive())
    seconds, busy = time.perf_counter() - start, time.process_time() - started
    entries = json.loads((out / "holdfast.json").read_text())["tensors"]
    methods = [entry.get("method") for entry in entries]
    return {
        "seconds": seconds,
        "cpu_seconds": busy,
        "randomized": methods.count("randomized"),
        "exact": methods.count("exact"),
    }


def copy(folder: Path) -> dict[str, Any]:
    (folder / "copied").mkdir()
    start = time.perf_counter()
    source = os.open(folder / "aligned/model.safetensors", os.O_RDONLY)
    target = os.open(folder / "copied/model.safetensors", os.O_WRONLY | os.O_CREAT, 0o600)
    size = os.fstat(source).st_size
    os.truncate(target, size)

    def half(first: int, last: int) -> None:
        while first < last:
            first += os.copy_file_range(source, target, last - first, first, first)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(half, (0, size // 2), (size // 2, size)))
    os.fsync(target)
    return {"seconds": time.perf_counter() - start, "bytes": size}


def full(folder: Path, layers: int) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    from holdfast import spectrum

    start, started = time.perf_counter(), time.process_time()
    base, aligned = (
        AutoModelForCausalLM.from_pretrained(folder / kind, dtype=torch.bfloat16).state_dict()
        for kind in ("base", "aligned")
    )
    for side in (base, aligned):
        sum(tensor.sum() for tensor in side.values())  # loading may map the file: read it all
    loading = np.array([time.perf_counter() - start, time.process_time() - started])

    errors: list[float] = []

    def timed(name: str, rows: int | None = None) -> np.ndarray:
        start = np.array([time.perf_counter(), time.process_time()])
        difference = aligned[name][:rows].float() - base[name][:rows].float()
        left, values, right = torch.linalg.svd(difference, full_matrices=False)
        exact = (left[:, :RANK] * values[:RANK]) @ right[:RANK]
        (aligned[name][:rows].float() + STRENGTH * exact).bfloat16()
        seconds = np.array([time.perf_counter(), time.process_time()]) - start
        found = spectrum.edit(difference, RANK, "top", seed=0)
        errors.append(((found.left @ found.right - exact).norm() / exact.norm()).item())
        return seconds

    torch.set_num_threads(1)
    layer = "model.layers.0."
    by_shape = {SHAPES[name]: timed(f"{layer}{name}.weight") for name in ("self_attn.q_proj", "self_attn.k_proj")}
    by_shape[MIDDLE, HIDDEN] = by_shape[HIDDEN, MIDDLE] = short = timed(f"{layer}mlp.gate_proj.weight")
    per_layer = sum(by_shape[shape] for shape in SHAPES.values())
    tall = timed("model.embed_tokens.weight", 2 * MIDDLE)
    table = short + (tall - short) * (VOCABULARY - MIDDLE) / MIDDLE
    work = layers * per_layer + table
    return {
        "seconds": loading[0] + work[0] / len(os.sched_getaffinity(0)),
        "cpu_seconds": loading[1] + work[1],
        "relative_error": max(errors),
    }


def flat() -> dict[str, Any]:
    """What a matrix costs whose singular values hardly fall, beside one whose values do; one thread."""
    from holdfast import spectrum

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    base, aligned = pair((HIDDEN, HIDDEN), generator)
    falling = aligned.float() - base.float()
    found = {}
    for kind, matrix in (("falling", falling), ("flat", torch.randn(HIDDEN, HIDDEN, generator=generator))):
        start = time.perf_counter()
        method = spectrum.top(matrix, RANK, seed=0).method
        found[f"{kind}_seconds"] = round(time.perf_counter() - start, 3)
        found[f"{kind}_method"] = method
    return found


def measured(role: str, folder: Path, layers: int) -> dict[str, Any]:
    """Run one role in a process of its own, the disk idle."""
    os.sync()
    command = [sys.executable, __file__, "--role", role, "--folder", str(folder), "--layers", str(layers)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(told.splitlines()[-1])
    print(f"{role:5} {found}", flush=True)
    for left in ("hardened", "copied"):
        for file in (folder / left).glob("*"):
            file.unlink()
        if (folder / left).is_dir():
            (folder / left).rmdir()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16, help="fewer for a quick look; only 16 is written down")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-full", action="store_true", help="skip the full SVDs")
    parser.add_argument("--role", choices=("make", "lox", "copy", "full", "flat"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.role:
        roles = {
            "make": lambda: make(asked.folder, asked.layers),
            "lox": lambda: lox(asked.folder),
            "copy": lambda: copy(asked.folder),
            "full": lambda: full(asked.folder, asked.layers),
            "flat": flat,
        }
        found = roles[asked.role]()
        found["peak_rss_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured("make", folder, asked.layers)
        load = os.getloadavg()[0]
        rounds = [
            {role: measured(role, folder, asked.layers) for role in ("copy", "lox")} for _ in range(asked.repeats)
        ]
        whole = None if asked.no_full else measured("full", folder, asked.layers)
        report(asked.layers, load, rounds, whole, measured("flat", folder, asked.layers))


def report(
    layers: int, load: float, rounds: list[dict[str, Any]], whole: dict[str, Any] | None, slow: dict[str, Any]
) -> None:
    seconds = {role: statistics.median(each[role]["seconds"] for each in rounds) for role in ("copy", "lox")}
    cpu = statistics.median(each["lox"]["cpu_seconds"] for each in rounds)
    result = {
        "what": f"LoX rank {RANK}, strength {STRENGTH}, on a Llama-3.2-1B-shaped bf16 pair with {layers} layers",
        "copy_ratio": round(seconds["lox"] / seconds["copy"], 2),
        "copy_ratio_each_round": [round(each["lox"]["seconds"] / each["copy"]["seconds"], 2) for each in rounds],
        "peak_rss_gib": max(each["lox"]["peak_rss_gib"] for each in rounds),
        "lox_seconds": round(seconds["lox"], 2),
        "lox_cpu_seconds": round(cpu, 2),
        "copy_seconds": round(seconds["copy"], 2),
        "load_before": round(load, 1),
        "matrices_randomized": rounds[0]["lox"]["randomized"],
        "matrices_exact": rounds[0]["lox"]["exact"],
        "one_2048x2048_matrix": {key: value for key, value in slow.items() if key != "peak_rss_gib"},
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "numpy", "safetensors", "transformers")},
        "hardware": hardware(),
    }
    if whole:
        result |= {
            "full_svd_ratio": round(whole["seconds"] / seconds["lox"], 1),
            "full_svd_cpu_ratio": round(whole["cpu_seconds"] / cpu, 1),
            "full_svd_seconds_scaled": round(whole["seconds"], 1),
            "full_svd_peak_rss_gib": whole["peak_rss_gib"],
            "relative_error": float(f"{whole['relative_error']:.1e}"),
        }
    print(json.dumps(result, indent=1))
    if whole and layers == 16:
        path = Path(__file__).parent / "results/lox.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")


def hardware() -> str:
    cores = len(os.sched_getaffinity(0))
    models = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{models[0] if models else platform.machine()}, {cores} cores"


if __name__ == "__main__":
    main()
