"""Every exit of a model as training walks them: layers of an image encoder, or, of a model that reads alone, depths.

Rows of one batch may leave an image encoder each at its own layer, because its blocks are not trained and what they made is kept.
A depth of the language model holds for a whole batch. Knows models and exits, no losses.
"""

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from holdfast import answering, surgery, vision
from holdfast.asked import Asked
from holdfast.drive import Drive, Exit
from holdfast.finetuning import plain
from holdfast.lm import LM
from holdfast.problem import Problem


@dataclass(frozen=True)
class Ladder:
    """The exits that a training goes through."""

    exits: tuple[int, ...]
    """Growing; the released one among them only where it is wanted."""
    released: int
    """The exit that the checkpoint is released with."""
    sees: bool
    """Whether they are layers of an image encoder."""

    @classmethod
    def of(cls, lm: LM, wanted: Sequence[int] | None, where: str) -> "Ladder":
        """Those wanted, or all: encoder layers from 1 on where the model sees pictures, else depths.

        Raises:
            Problem: there is no such exit; `where` names the setting.
        """
        tower = lm.eyes.tower(lm.model)
        last = tower.last if tower else len(lm.layers)
        if wrong := [exit for exit in wanted or () if exit > last]:
            what = "image encoder has layers" if tower else "model has blocks"
            raise Problem(f"{where}: {wrong[0]} is no exit; its {what} 1 to {last}, choose among these")
        return cls(tuple(wanted or range(1, last + 1)), tower.released if tower else last, tower is not None)

    def exit(self, number: int) -> Exit:
        """As a drive is told."""
        return Exit(vision_layer=number) if self.sees else Exit(depth=number)

    def driven(self, drive: Drive, number: int) -> Drive:
        """The drive, leaving there."""
        return drive.change(exit=self.exit(number))

    def draw(
        self, chance: random.Random, rows: int, released: float, likely: Mapping[int, float] | None = None
    ) -> list[int]:
        """An exit for each row of a batch: with chance `released` the released one, else as likely as said, or all alike."""
        weights = [likely[exit] if likely else 1.0 for exit in self.exits]

        def one() -> int:
            if chance.random() < released:
                return self.released
            return chance.choices(self.exits, weights)[0]

        return [one() for _ in range(rows)] if self.sees else [one()] * rows

    @contextmanager
    def left(self, lm: LM, images: Sequence[str | None], exits: Sequence[int]) -> Iterator[None]:
        """Inside, a batch of rows about these pictures leaves the model at these exits, drawn by `draw`."""
        if self.sees:
            with lm.eyes.left(lm.model, images, lm.drive, exits):
                yield
        else:
            undo = lm.keep(range(exits[0]))
            try:
                yield
            finally:
                undo()

    def answers(
        self, lm: LM, prompts: Sequence[Asked], exits: Sequence[int], how: answering.Decoding
    ) -> list[list[int]]:
        """The tokens that the model adds to each prompt, left at its exit; those of a text model are asked exit by exit."""
        ids = [lm.encode(prompt)[0] for prompt in prompts]
        if self.sees:
            return answering.answers(lm.model, ids, how, lm.eyes.beside(lm.model, prompts, lm.drive, exits))
        said: list[list[int]] = [[]] * len(ids)
        for exit in sorted(set(exits)):
            chosen = [number for number, one in enumerate(exits) if one == exit]
            with self.left(lm, [], [exit]):
                for number, tokens in zip(
                    chosen, answering.answers(lm.model, [ids[i] for i in chosen], how), strict=True
                ):
                    said[number] = tokens
        return said

    def cut(self, lm: LM, number: int) -> Callable[[], None]:
        """Take the blocks behind an exit away; returns what puts them back."""
        if self.sees:
            return vision.truncated(plain(lm.model), number)
        return surgery.keep(lm.model, range(number))

    def apart(self, lm: LM) -> list[nn.Parameter]:
        """Weights that no exit's training moves: an image encoder's and its projector's, or none."""
        if not self.sees:
            return []
        weights = vision.Weights.of(plain(lm.model))
        return weights.encoder + weights.projector


@contextmanager
def without_adapter(lm: LM) -> Iterator[LM]:
    """Inside, the model as it was before its adapter."""
    with lm.model.disable_adapter():
        yield lm


def copied(lm: LM, shared: Sequence[nn.Parameter]) -> LM:
    """The model as it is now, with the same tensors for what nobody moves: what was seen of pictures then serves both."""
    other = copy.copy(lm)
    other.model = copy.deepcopy(lm.model, {id(weight): weight for weight in shared})
    return other
