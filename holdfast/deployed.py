"""What a model takes where it is deployed as it stands, cut and driven as it is: weights, memory, operations.

Counted on 64 tokens of text, and on the first picture that the judge asks about. Knows models and prompts, no attacks.
"""

from collections.abc import Sequence

import torch

from holdfast import exits
from holdfast.corpus import Row
from holdfast.lm import LM
from holdfast.record import Deployed

TOKENS = 64
"""Of the text."""


def deployed(lm: LM, rows: Sequence[Row]) -> Deployed | None:
    """What the model takes to read a prompt like these; None where that cannot be counted."""
    try:
        found = exits.cost(lm.drive.exit, lm.model, TOKENS, _picture(lm, rows), timed=False)
    except Exception:  # of an unknown architecture, what it costs may be unknown; what it answers still counts
        return None
    return Deployed(parameters=found.parameters, bytes=found.bytes, flops=found.prompt(TOKENS))


def _picture(lm: LM, rows: Sequence[Row]) -> exits.Picture | None:
    """The first picture that the rows are about, as the model is shown it."""
    row = next((row for row in rows if row.image), None)
    if row is None:
        return None
    ids = torch.tensor([lm.encode(row.asked)[0]], device=lm.device)
    given = lm.eyes.inputs(ids, [row.image], lm.drive)
    return {name: value for name, value in given.items() if not name.endswith("token_type_ids")} or None
