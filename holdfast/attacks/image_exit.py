"""The image encoder stopped early: its first blocks' features go to the projector in place of those it was trained with.

One integer of a checkpoint's configuration makes it so, and saves a small device the rest. Picture and question stay as they are,
and no weight changes (ICET, 2411.04291). Refusals that were learned behind one layer need not hold behind another.
Assumes: the language model still reads the question. Does not cover: a projector fitted anew to the early features.
"""

from holdfast.corpus import Hand
from holdfast.drive import Picture
from holdfast.exits import fewer
from holdfast.lm import LM
from holdfast.method import At, Attack, Need
from holdfast.problem import Problem
from holdfast.record import Cost
from holdfast.settings import Counts


class ImageExit(Attack):
    """Leave the image encoder after fewer and fewer blocks."""

    axis = "image-encoder blocks skipped"
    family = "cut"
    paper = "2411.04291 (ICET)"
    cost = "no computing; saves the blocks that are skipped"

    skipped: Counts | None = None
    """Blocks to skip, counted back from the layer that the checkpoint reads, growing; each one unless given."""
    picture: Picture = "shown"
    """What is shown in the picture's place; all but `shown` are controls, which tell early features from any odd input."""

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("pictures",)

    def __call__(self, lm: LM, hand: Hand, at: At, seed: int) -> None:
        tower = lm.eyes.tower(lm.model)
        if tower is None:
            raise Problem(
                "attack image_exit: the model has no image encoder; leave this attack out, or take early_exit"
            )
        lm.drive = lm.drive.change(picture=self.picture)
        for skipped in fewer(tower.released, self.skipped, 1.0, "attack image_exit, skipped"):
            exit = lm.drive.exit.model_copy(update={"vision_layer": tower.released - skipped})
            lm.drive = lm.drive.change(exit=exit)
            if not at(Cost(severity=skipped)):
                return
