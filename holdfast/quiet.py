"""The libraries' own bars and advice, put away: they would tear the audit's display."""

import os
import sys
import warnings

from datasets import disable_progress_bars
from transformers import logging as transformers_logging


def quiet() -> None:
    """Put them away in this process."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
