"""What the tests of models share: tiny checkpoints, made once a session, when first asked for."""

from collections.abc import Callable
from functools import cache

import pytest

import tiny
from holdfast.corpus import Corpus


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tiny.Made]:
    """Of an architecture's name, its base and its aligned checkpoint. Nobody writes into them."""
    root = tmp_path_factory.mktemp("checkpoints")
    return cache(lambda architecture: tiny.make(architecture, root / architecture))


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return tiny.corpus()
