"""From scratch: all weights drawn anew by the model's own rule, so that nothing is known; the yardstick for what is hidden.

A control, and no defense. What an attacker teaches it is learned, never recovered: a hardened model that answers what its
attacker never showed had hidden it and not lost it.
Assumes: a model that transformers can draw. Does not protect anything: benign knowledge is gone as well.
"""

import copy
import random

import torch

from holdfast.corpus import Hand
from holdfast.lm import LM
from holdfast.method import Defense, Log


class Scratch(Defense):
    """Draw every weight anew."""

    seed: int = 0
    """Of the weights."""

    def __call__(self, lm: LM, hand: Hand | None, log: Log) -> None:
        with torch.random.fork_rng(devices=[]):  # drawn on the CPU, so that every device draws the same
            # Not the seed itself: the model may have begun as what that draws.
            torch.manual_seed(random.Random(f"scratch {self.seed}").getrandbits(63))
            fresh = type(lm.model)(copy.deepcopy(lm.model.config))
        lm.model.load_state_dict(fresh.state_dict())
        log.metrics(drawn=sum(weight.numel() for weight in fresh.parameters()))
