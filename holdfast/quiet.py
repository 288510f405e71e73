"""The libraries' own bars and advice, put away: they would tear the audit's display.

A library that nobody has imported yet is told by its environment variable: importing it takes seconds, and a report needs none.
"""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator


def quiet() -> None:
    """Put them away in this process."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "transformers" in sys.modules:
        from transformers import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
    else:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if "huggingface_hub" in sys.modules:
        from huggingface_hub import utils

        utils.disable_progress_bars()  # type: ignore[attr-defined]
    else:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if "datasets" in sys.modules:
        import datasets

        datasets.disable_progress_bars()
    else:
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Put them away for a while: whoever calls holdfast as a library wants his own as they were."""
    import datasets
    from transformers import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    silent = datasets.are_progress_bars_disabled()
    with warnings.catch_warnings():
        quiet()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()
            if not silent:
                datasets.enable_progress_bars()
