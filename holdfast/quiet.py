"""The libraries' own bars and advice, put away: they would tear the audit's display."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator

from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import logging as transformers_logging


def quiet() -> None:
    """Put them away in this process."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Put them away for a while: whoever calls holdfast as a library wants his own as they were."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    silent = are_progress_bars_disabled()
    with warnings.catch_warnings():
        quiet()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(level)
            if bars:
                transformers_logging.enable_progress_bar()
            if not silent:
                enable_progress_bars()
