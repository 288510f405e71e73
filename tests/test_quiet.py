"""The libraries' own bars and advice are put away, and no library is imported for that."""

import os
import subprocess
import sys
from pathlib import Path

LATER = """
import sys
import holdfast.commands.report
from holdfast.quiet import quiet
quiet()
assert not {"datasets", "transformers", "huggingface_hub", "pandas", "torch"} & sys.modules.keys()
import datasets
import huggingface_hub
from transformers import logging
assert datasets.are_progress_bars_disabled() and huggingface_hub.utils.are_progress_bars_disabled()
assert logging.get_verbosity() == logging.ERROR and not logging.is_progress_bar_enabled()
"""


def test_libraries_that_come_later_are_quiet() -> None:
    told = ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
    plain = {name: value for name, value in os.environ.items() if name not in told}
    here = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", LATER], env=plain | {"PYTHONPATH": here}, cwd=here, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
