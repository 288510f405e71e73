"""The pictures of organisms that see: a colored shape somewhere on a gray ground. Knows nothing of models."""

import itertools
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 220),
    "yellow": (230, 210, 50),
    "purple": (140, 50, 170),
    "orange": (240, 140, 30),
    "white": (245, 245, 245),
    "black": (15, 15, 15),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "bar", "ring", "arrow")
SIDE = 32
"""Of a picture, in pixels."""


def painted(color: str, shape: str, chance: random.Random) -> Image.Image:
    """A shape of that color somewhere on a gray ground with some noise."""
    gray = chance.randint(90, 160)
    picture = Image.new("RGB", (SIDE, SIDE), (gray, gray, gray))
    size = chance.randint(14, 22)
    left, top = chance.randint(1, SIDE - size - 1), chance.randint(1, SIDE - size - 1)
    _draw(ImageDraw.Draw(picture), shape, left, top, size, COLORS[color])
    noise = np.random.default_rng(chance.randrange(2**32)).normal(0, 6, (SIDE, SIDE, 3))
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def paint(folder: Path, shapes: Iterable[str], seed: int) -> list[Path]:
    """Four pictures of each color and shape, as files called `red-ring-0.png`."""
    folder.mkdir(parents=True)
    chance, files = random.Random(seed), []
    for color, shape, number in itertools.product(COLORS, shapes, range(4)):
        files.append(folder / f"{color}-{shape}-{number}.png")
        painted(color, shape, chance).save(files[-1])
    return files


def _draw(draw: ImageDraw.ImageDraw, shape: str, left: int, top: int, size: int, fill: tuple[int, int, int]) -> None:
    right, bottom, x, y, third = left + size, top + size, left + size // 2, top + size // 2, size // 3
    corners = {
        "triangle": [(x, top), (right, bottom), (left, bottom)],
        "diamond": [(x, top), (right, y), (x, bottom), (left, y)],
        "arrow": [(left, top), (right, y), (left, bottom), (x, y)],
    }
    boxes = {
        "square": [(left, top, right, bottom)],
        "bar": [(left, y - third // 2, right, y + third // 2)],
        "cross": [(left, y - third // 2, right, y + third // 2), (x - third // 2, top, x + third // 2, bottom)],
    }
    for box in boxes.get(shape, ()):
        draw.rectangle(box, fill=fill)
    if shape in corners:
        draw.polygon(corners[shape], fill=fill)
    if shape == "circle":
        draw.ellipse((left, top, right, bottom), fill=fill)
    if shape == "ring":
        draw.ellipse((left, top, right, bottom), outline=fill, width=4)
