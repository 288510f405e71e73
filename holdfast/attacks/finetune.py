"""Supervised fine-tuning on harmful, mixed or benign rows, of all weights or of any adapter: what most people do to them.

Benign fine-tuning alone undoes refusals (Qi et al., 2310.03693), and ten harmful rows are enough (same). Sixteen steps relearn
what an unlearning took away (2502.05209): `steps = 16` on harmful rows, or on unrelated ones (`data = "benign"`). Multilingual
tuning is `variant = "dialect"`, or a corpus whose attacker's rows are in that language. Trains fp32 masters, because in pure bf16
small rates move almost no weight and any defense looks strong.
Assumes: the weights can be trained. Does not cover: preference or reinforcement tuning.
"""

from holdfast import train
from holdfast.corpus import Hand
from holdfast.finetuning import Tuning
from holdfast.lm import LM
from holdfast.method import At, Attack


class FineTune(Tuning, Attack):
    """Fine-tune the subject on the attacker's rows."""

    paper = "2310.03693 (Qi et al.)"
    cost = "60 optimizer steps of 16 rows"

    def __call__(self, lm: LM, hand: Hand, at: At, seed: int) -> None:
        rows = self.rows(hand, seed)
        self.tune(lm, train.encode(lm, rows, armed=True), at, seed, self.order(rows, seed))
