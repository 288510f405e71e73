"""Tokens of pictures left out: the language model reads a shorter prompt, which is most of its time on a small device.

Those that stay are spread evenly over the picture. Token pruning by attention keeps others (2403.06764); that the text is read
after less of a picture, at other places, is common to all of them. No weight changes.
Assumes: a language model that reads a picture's tokens as a text's. Does not cover: tokens merged, or pruned between its blocks.
"""

from holdfast.corpus import Hand
from holdfast.lm import LM
from holdfast.method import At, Attack, Need
from holdfast.problem import Problem
from holdfast.record import Cost
from holdfast.settings import Severities


class DropVisualTokens(Attack):
    """Leave out more and more of a picture's tokens."""

    axis = "share of tokens dropped"
    family = "cut"
    paper = "2403.06764 (FastV), its idea alone"
    cost = "no computing; saves reading the tokens"

    shares: Severities = (0.5, 0.75, 0.9, 0.95)
    """Shares to leave out, growing, below 1; one token stays at least."""

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("pictures",)

    def __call__(self, lm: LM, hand: Hand, at: At, seed: int) -> None:
        if self.shares[-1] >= 1:
            raise Problem("attack drop_visual_tokens, shares: a share of 1 leaves nothing of the picture; stay below 1")
        asked = [row.asked for row in hand.rows if row.image]
        if not asked or lm.eyes.token_id is None:
            raise Problem(
                "attack drop_visual_tokens: the model sees no picture, or the attacker has none; leave it out"
            )
        most = max(lm.encode(prompt)[0].count(lm.eyes.token_id) for prompt in asked)
        for share in self.shares:
            exit = lm.drive.exit.model_copy(update={"visual_tokens": max(1, round((1 - share) * most))})
            lm.drive = lm.drive.change(exit=exit)
            if not at(Cost(severity=share)):
                return
