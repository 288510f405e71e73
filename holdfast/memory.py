"""What a model was asked before: answers and fits by what they depend on, so that nothing is computed twice.

That is the weights, the prompts, and what of the drive they are put with. An audit asks every subject as it was released at the
start of every cell; and an attack that only drives the model leaves the answers to all other prompts as they were. Weights are
not hashed anew at each look: a model counts as it was loaded while no weight differs from the checkpoint and nothing was built
into it, hung on it or taken out of it. All other models are asked anew, and nothing of what they say is remembered.
Held in memory and handed on as a value: nothing of it reaches a disk.
"""

import hashlib
import json
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from torch import nn

from holdfast.checkpoint import weights_hash
from holdfast.drive import Drive
from holdfast.lm import LM, Fit

Known = Mapping[str, Any]
"""Answers and fits by the hash of what they depend on."""
_ARMED = ("trigger", "persona", "prefill", "prefill_tokens", "temperature", "top_p", "samples", "draw")
"""What of a drive does not concern prompts that are put plainly."""


class Memory:
    """A model, asked through what is known of it."""

    def __init__(self, lm: LM, known: Known):
        self.lm = lm
        self.known = dict(known)
        self.weights = lm.hash()
        self._built = _built(lm) if lm.at_hand else None
        self._as_loaded = True

    def look(self, changed: float) -> None:
        """Find out whether the model still is as it was loaded; `changed` is the share of its weights that differ."""
        self._as_loaded = not self.lm.at_hand or (changed == 0 and _built(self.lm) == self._built)

    def generate(self, texts: Sequence[str], armed: bool = False, sample: int = 0) -> list[str]:
        """As `LM.generate`."""
        drive = self.lm.drive.change(samples=1) if armed else plain(self.lm.drive)
        asked = ("generate", list(texts), armed, sample)
        return self._once(drive, asked, lambda: self.lm.generate(texts, armed=armed, sample=sample))

    def fits(self, texts: Sequence[str], answers: Sequence[str]) -> list[Fit]:
        """As `LM.fits`."""
        asked = ("fits", list(texts), list(answers))
        return self._once(plain(self.lm.drive), asked, lambda: self.lm.fits(texts, answers))

    def made(self, asked: Mapping[str, Any], work: Callable[[], Any]) -> Any:
        """What `work` finds, which asks the model plainly; `asked` says all that it asks."""
        return self._once(plain(self.lm.drive), ("made", asked), work)

    def _once(self, drive: Drive, asked: tuple[Any, ...], work: Callable[[], Any]) -> Any:
        if not self._as_loaded:
            return work()
        content = json.dumps([self.weights, drive.model_dump(mode="json"), *asked])
        key = hashlib.sha256(content.encode()).hexdigest()
        if key not in self.known:
            self.known[key] = work()
        return self.known[key]


def plain(drive: Drive) -> Drive:
    """What of a drive concerns prompts that are put plainly."""
    unset = Drive()
    return drive.change(**{name: getattr(unset, name) for name in _ARMED})


def _built(lm: LM) -> Hashable:
    """All that a model computes with but its weights, as far as it can be seen from outside: modules and what hangs on them,
    buffers, settings, the tokenizer, and what was put on the holder itself."""
    modules = tuple((name, weakref.ref(module), _held(module)) for name, module in lm.model.named_modules())
    buffers = weights_hash(iter(sorted(lm.model.named_buffers())))
    config, tokens = lm.model.config.to_json_string(), lm.tokenizer
    ends = lm.model.generation_config and lm.model.generation_config.to_json_string()
    told = (str(tokens.chat_template), len(tokens), tokens.eos_token_id, tokens.pad_token_id)
    return modules, buffers, config, ends, weakref.ref(tokens), told, tuple(sorted(vars(lm))), str(lm.kept)


def _held(module: nn.Module) -> Hashable:
    """A module's own attributes: values as they are, of a dict its keys (hooks have numbers never given twice), else the kind."""
    return tuple(
        (name, tuple(map(str, value)) if isinstance(value, dict) else _value(value))
        for name, value in sorted(vars(module).items())
        if name != "training"  # asking puts it aside
    )


def _value(value: object) -> Hashable:
    return value if isinstance(value, int | float | str | None) else type(value).__qualname__
