"""A prompt as it is put to a model: a text, or a text about a picture."""

from typing import NamedTuple


class Shown(NamedTuple):
    """A prompt about a picture."""

    text: str
    image: str
    """The picture's file."""


Asked = str | Shown
"""What is put to a model."""


def words(prompt: Asked) -> str:
    """What a prompt says."""
    return prompt if isinstance(prompt, str) else prompt.text


def about(prompt: Asked) -> str | None:
    """The file of the picture that a prompt is about."""
    return prompt.image if isinstance(prompt, Shown) else None
