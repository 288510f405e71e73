"""What few bits cost an organism where llama.cpp runs it: each GGUF file beside the checkpoint that it was made of.

The organism is 256 wide, so that its rows are as long as K types want them:

    holdfast organism text --hidden 256 --out ORGANISM
    python benchmarks/ships.py --organism ORGANISM
"""

import argparse
import importlib.util
import json
import tempfile
import time
from pathlib import Path

from holdfast import comparing, disk, prepare, tier
from holdfast.drive import Drive, Exit

ROOT = Path(__file__).parent.parent
KINDS = ("F16", "Q8_0", "Q4_K_M", "Q2_K")
CHECKPOINTS = ("aligned", "aligned-shallow")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--organism", type=Path, required=True)
    asked.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/ships.json")
    options = asked.parse_args()
    spec = importlib.util.spec_from_file_location("to_gguf", ROOT / "examples/to_gguf.py")
    to_gguf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(to_gguf)
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for name in CHECKPOINTS:
            for kind in KINDS:
                file = Path(place) / f"{name}-{kind}.gguf"
                to_gguf.write(options.organism / name, file, kind)
                found[f"{name} {kind}"] = beside(options.organism / name, file)
                print(name, kind, found[f"{name} {kind}"]["verdict"], flush=True)
    content = {"versions": prepare.versions(), "hardware": prepare.hardware(), "files": found}
    disk.write(options.out, json.dumps(content, indent=1) + "\n")


def beside(source: Path, file: Path) -> dict:
    chosen = tier.asked("compare", str(source))
    started = time.monotonic()
    comparison, facts, _ = comparing.compare(
        str(source),
        str(file),
        Path(chosen["corpus"]),
        harm=chosen["harm"],
        margin=0.05,
        drive=Drive(max_new_tokens=chosen["max_new_tokens"]),
        exit=Exit(),
        max_perplexity=1000.0,
        say=lambda line: None,
    )
    seconds, size = time.monotonic() - started, file.stat().st_size
    return comparison.model_dump(mode="json") | {"notes": facts["notes"], "bytes": size, "seconds": round(seconds, 1)}


if __name__ == "__main__":
    main()
