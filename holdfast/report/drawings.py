"""Everything of a run that can be drawn, once: for the page and for who wants the figures as files."""

from typing import Any, NamedTuple

from holdfast.report import cuts, frontier, heads, landscape
from holdfast.report.cuts import Block
from holdfast.report.figures import Panel
from holdfast.report.rows import attack_of
from holdfast.report.sought import Sought, sought
from holdfast.report.words import Index


class Drawings(NamedTuple):
    """The figures with what is said around them."""

    survivals: list[Panel]
    cuts: list[Block]
    views: list[landscape.View]
    frontiers: list[frontier.View]
    sought: Sought | None
    attacks: list[dict[str, Any]]

    @property
    def panels(self) -> list[Panel]:
        """In the page's order; the maps of cuts are tables there, and figures only in files."""
        found = [self.sought.panel] if self.sought and self.sought.panel else []
        found += [*self.survivals, *(one.panel for one in self.cuts)]
        found += [panel for view in self.views for panel in view.panels]
        found += [view.panel for view in self.frontiers]
        return found + [panel for attack in self.attacks for panel in attack["panels"]]


def drawings(index: Index, search: dict[str, Any] | None = None) -> Drawings:
    """Of a run; `search` is what its `search.json` holds, where a search chose the attacks."""
    attacks = [attack_of(index, attack, turn) for turn, attack in enumerate(index.attacks + index.negative)]
    behind = {one["facts"].name: one["panels"][0].table for one in attacks if one["panels"]}
    return Drawings(
        survivals=heads.survivals(index, behind),
        cuts=cuts.blocks(index),
        views=landscape.views(index),
        frontiers=frontier.views(index),
        sought=sought(index, search),
        attacks=attacks,
    )
