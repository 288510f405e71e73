"""How subjects are drawn everywhere: colors, dashes and markers, told apart without color too.

Colors here are the light page's; `DARK` maps each to its twin in the dark, which the page's script puts in.
"""

from typing import NamedTuple

from holdfast.record import SubjectFacts
from holdfast.report import words

INK, MUTED, GRID = "#3d4248", "#6b7178", "#e4e6e9"
# Okabe and Ito's colors, told apart by every kind of color vision; darkened where white would drown them.
_LINES = {
    "undefended": (("#3d4248", "#d3d7dc"), ("#7b8188", "#9aa1a9")),
    "defense": (("#0067b1", "#5cb3f5"), ("#0d8fa8", "#56cfe1"), ("#4a4fc4", "#9a9ff5")),
    "control": (("#c75000", "#ff9d57"), ("#00835c", "#3ccf9f"), ("#a9407f", "#ee96cb"), ("#8a6d00", "#e3c44a")),
}
_MARKERS = {"undefended": ("circle",), "defense": ("diamond", "hexagon"), "control": ("square", "triangle-up", "x")}
_DASHES = {"undefended": ("dash", "dot"), "defense": ("solid",), "control": ("solid", "dashdot", "longdash")}
DARK = {INK: "#d3d7dc", MUTED: "#9aa1a9", GRID: "#31363c"}
for _pairs in _LINES.values():
    DARK |= dict(_pairs)


class Look(NamedTuple):
    """How one subject is drawn, everywhere."""

    color: str
    dark: str
    dash: str
    marker: str

    @property
    def shape(self) -> tuple[str, str]:
        """All but the color."""
        return self.dash, self.marker


def looks(subjects: list[SubjectFacts]) -> list[Look]:
    """A color, a dash and a marker for each subject, by its role and its turn in it."""
    turns = dict.fromkeys(_LINES, 0)
    made = []
    for facts in subjects:
        kind = words.role(facts)
        turn = turns[kind]
        turns[kind] += 1
        pair, dashes, markers = _LINES[kind][turn % len(_LINES[kind])], _DASHES[kind], _MARKERS[kind]
        made.append(Look(*pair, dashes[turn % len(dashes)], markers[turn % len(markers)]))
    return made


def tint(color: str, alpha: float) -> str:
    """`color` (#rrggbb) seen through."""
    return f"rgba({int(color[1:3], 16)},{int(color[3:5], 16)},{int(color[5:7], 16)},{alpha})"


def palette() -> dict[str, str]:
    """Every color of the light page with its twin in the dark."""
    bands = {tint(light, 0.13): tint(dark, 0.16) for light, dark in DARK.items()}
    return DARK | bands
