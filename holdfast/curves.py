"""What a run measured along each attack's path, averaged over seeds: the curves of the report."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np

from holdfast import processes, statistics, survival
from holdfast.dossier import Curve, Point
from holdfast.evidence import Evidence, most, walks
from holdfast.landscape import landscape
from holdfast.record import AttackFacts, Cell, SubjectFacts
from holdfast.run import MANY
from holdfast.survival import Look
from holdfast.tables import COLUMNS


def curves(evidence: Evidence) -> AbstractContextManager[Callable[[], tuple[Curve, ...]]]:
    """A block given what hands over all curves of a run; of very many cells a copy of this process makes them meanwhile."""
    manifest = evidence.manifest

    def made() -> tuple[Curve, ...]:
        pairs = [(subject, attack) for attack in manifest.attacks for subject in manifest.subjects]
        return tuple(curve(evidence, *pair) for pair in pairs if any(one.milestones for one in evidence.of(*pair)))

    return processes.meanwhile(made, pays=len(evidence.cells) >= MANY)


def curve(evidence: Evidence, subject: SubjectFacts, attack: AttackFacts) -> Curve:
    """Of one subject under one attack, its points from mild to severe."""
    cells = evidence.of(subject, attack)
    path = survival.path(cells, attack.axis)
    shares = dict(zip(path, survival.held(cells, attack.axis, evidence.bar), strict=True))
    looks = list(_places(cells, path))
    points = [_point(evidence, attack, there, shares[there[0][2].cost.position]) for there in looks]
    walked = walks(attack) or any(point.plane for point in points)
    return Curve(
        subject=subject.name,
        attack=attack.name,
        axis=attack.axis,
        points=tuple(points),
        landscape=landscape(cells, evidence.bar) if walked else None,
    )


def _places(cells: Sequence[Cell], path: Sequence[float]) -> Iterator[list[Look]]:
    """The milestones of all seeds, together where they were taken at the same place, from mild to severe."""
    looks = survival.looks(cells)
    for position in path:
        there = looks[position]
        for plane in dict.fromkeys(look.cost.plane for _, _, look in there):
            yield [(cell, index, look) for cell, index, look in there if look.cost.plane == plane]


def _point(evidence: Evidence, attack: AttackFacts, there: list[Look], share: float) -> Point:
    """One place over the seeds that got there alive; `share` of all hold, on a clock."""
    alive = [(cell, index) for cell, index, look in there if look.status != "dead"]
    harm = {cell.seed: look.harm.value for cell, _, look in there if look.harm and look.status != "dead"}
    looks, looked = [(cell, look) for cell, _, look in there], evidence.looked(alive)
    return Point(
        position=there[0][2].cost.position,
        plane=there[0][2].cost.plane,
        seconds=float(np.mean([look.cost.seconds for _, look in looks])),
        seeds=len(alive),
        status=most([look.status for _, look in looks]),
        broken=sum(survival.breaks(cell, look, evidence.bar) for cell, look in looks),
        held=share if attack.axis == "steps" else survival.share(looks, evidence.bar),
        per_seed=tuple(harm.get(seed) for seed in attack.seeds),
        **{column: statistics.mean(looked.scores(column)) for column in COLUMNS},
    )
