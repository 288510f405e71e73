"""Does an open-weight model's safety hold fast when somebody changes its weights, for how long, and what makes it hold longer?"""

import importlib
import logging
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.api import audit, harden
    from holdfast.audited import Audited
    from holdfast.corpus import Corpus, Hand
    from holdfast.dossier import Conclusion, Verdict
    from holdfast.lm import LM
    from holdfast.method import Answers, At, Attack, Defense, Eval, Log, Scores
    from holdfast.problem import Problem
    from holdfast.record import Cost

__version__ = "0.1.0"
__all__ = [
    "LM",
    "Answers",
    "At",
    "Attack",
    "Audited",
    "Conclusion",
    "Corpus",
    "Cost",
    "Defense",
    "Eval",
    "Hand",
    "Log",
    "Problem",
    "Scores",
    "Verdict",
    "audit",
    "harden",
]
_ROOMS = {
    "api": ("audit", "harden"),
    "audited": ("Audited",),
    "corpus": ("Corpus", "Hand"),
    "dossier": ("Conclusion", "Verdict"),
    "lm": ("LM",),
    "method": ("Answers", "At", "Attack", "Defense", "Eval", "Log", "Scores"),
    "problem": ("Problem",),
    "record": ("Cost",),
}
"""Where the names above are defined. None of them is a room's own: importing that room would put it in the name's place."""


def __getattr__(name: str) -> Any:
    """The names above, imported when they are first asked for: `holdfast --help` needs no torch."""
    for room, names in _ROOMS.items():
        if name in names:
            globals()[name] = found = getattr(importlib.import_module(f"holdfast.{room}"), name)
            return found
    raise AttributeError(f"module 'holdfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# TRL's trainers tell the hub that they were used, and the hub's client reads this when it is first imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# Where the optional quantizers are installed, transformers imports them at once, and they tell of every GPU kernel that a
# machine lacks: a page of warnings before the first line of an audit, in each of its processes.
for _name in ("torchao", "bitsandbytes", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
