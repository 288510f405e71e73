"""Does an open-weight model's safety hold fast when somebody changes its weights, for how long, and what makes it hold longer?"""

import logging
import os

__version__ = "0.1.0"

# TRL's trainers tell the hub that they were used, and the hub's client reads this when it is first imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# Where the optional quantizers are installed, transformers imports them at once, and they tell of every GPU kernel that a
# machine lacks: a page of warnings before the first line of an audit, in each of its processes.
for _name in ("torchao", "bitsandbytes", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
