"""Pictures as a model sees them: what its processor makes of a picture and a text, and what its image encoder keeps of it.

The encoder runs once for each picture, as long as there is room; whoever then leaves it at another exit goes on from what its
blocks had made. What was seen is forgotten as soon as a weight of the encoder changes. Knows models and files, no corpora.
"""

import contextlib
import random
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoProcessor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from holdfast import answering, thinning, vision
from holdfast.asked import Asked, about, words
from holdfast.drive import Drive, Parts, Picture
from holdfast.problem import Problem

_TEXT = ("input_ids", "attention_mask")
_KINDS = ("token_type_ids", "mm_token_type_ids")
"""What some models are told of each token: 1 where it stands for a part of a picture, else 0."""
REMEMBERED = 2 * 2**30
"""Bytes of an encoder's states that are kept; LLaVA's are 59 MB a picture."""
_TEXTS = 4096
"""Texts whose token ids are kept."""

Look = tuple[str, Picture]
"""A picture's file, and what is shown in its place."""


class Blind:
    """A model that is shown nothing but text."""

    token_id: int | None = None
    """The token that stands for a part of a picture."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def never(self) -> tuple[int, ...]:
        """Tokens that no answer may hold."""
        return () if self.token_id is None else (self.token_id,)

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write what makes tokens of prompts into a checkpoint."""
        tokenizer.save_pretrained(folder)

    def ids(self, tokenizer: PreTrainedTokenizerBase, drive: Drive, prompt: Asked, armed: bool) -> list[int]:
        """Token ids of a prompt, and of the prefill if armed. Raises `Problem` where it is about a picture."""
        if image := about(prompt):
            raise Problem(f"{self.folder}: has no eyes, and a prompt shows it {image}; give a model that sees pictures")
        return drive.ids(tokenizer, words(prompt), armed)

    def tower(self, model: nn.Module) -> vision.Tower | None:
        """The model's image encoder; None where it has none."""
        return None

    def beside(
        self, model: nn.Module, prompts: Sequence[Asked], drive: Drive, exits: Sequence[int] | None = None
    ) -> answering.Beside:
        """What the model is handed beside the ids of prompts, each left at its exit; at the drive's unless given."""
        return answering.nothing

    @contextlib.contextmanager
    def left(
        self, model: nn.Module, images: Sequence[str | None], drive: Drive, exits: Sequence[int | None]
    ) -> Iterator[None]:
        """Inside, the model given `inputs` of these pictures computes no block of its image encoder; a row leaves at its exit."""
        yield

    def whole(self, tokenizer: PreTrainedTokenizerBase, drive: Drive, text: str) -> str:
        """All that the model reads of a prompt without a picture."""
        return drive.text(tokenizer, text)

    def inputs(self, ids: Tensor, images: Sequence[str | None], drive: Drive) -> dict[str, Tensor]:
        """What the model is shown beside ids (rows, width) that `ids` made, each row about one picture or none."""
        return {}

    def positions(self, mask: Tensor) -> dict[str, Tensor]:
        """Where a left-padded row's tokens stand, as the model wants to be told."""
        return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


class Sight(Blind):
    """The eyes of a model: its processor and what was seen through it."""

    def __init__(self, processor: Any, folder: Path):
        super().__init__(folder)
        self.processor = processor
        self.token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
        self._kinds: set[str] = set()
        self._made: dict[Hashable, list[int]] = {}
        self._counts: dict[Look, int] = {}
        """Tokens that stand for a picture, all of them."""
        self._pictures: dict[Look, dict[str, Tensor]] = {}
        self._states: dict[Look, vision.States] = {}
        self._read: Hashable = None
        """Of which encoder with which weights these states are."""

    @classmethod
    def load(cls, folder: Path) -> "Sight":
        """Raises `Problem` where the checkpoint comes without a processor, or Pillow is not installed."""
        try:
            import PIL  # noqa: F401  an optional extra
        except ImportError as error:
            raise Problem(
                f"{folder}: sees pictures, which needs Pillow; run: pip install 'holdfast[vision]'"
            ) from error
        try:
            return cls(AutoProcessor.from_pretrained(folder, trust_remote_code=False), folder)
        except Exception as error:  # transformers and the libraries below it raise a dozen kinds
            raise Problem(f"{folder}: its image processor cannot be loaded ({' '.join(str(error).split())})") from error

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self.processor.tokenizer = tokenizer
        self.processor.save_pretrained(folder)

    def ids(self, tokenizer: PreTrainedTokenizerBase, drive: Drive, prompt: Asked, armed: bool) -> list[int]:
        """As `Blind.ids`; each part of a picture has a token of its own."""
        look = _shown(prompt, drive)
        whole = drive.text(tokenizer, words(prompt), armed, Parts(self.processor.image_token if look else None))
        key = (whole, look, id(tokenizer), len(tokenizer))
        if key not in self._made:
            if len(self._made) >= _TEXTS:
                self._made.clear()
            self.processor.tokenizer = tokenizer
            self._made[key] = self._processed(whole, look)
        ids = self._made[key]
        if look and drive.exit.visual_tokens:
            ids = self._thinned(ids, drive.exit.visual_tokens)
        return drive.primed(tokenizer, ids, armed)

    def tower(self, model: nn.Module) -> vision.Tower:
        tower = vision.Tower.of(getattr(model, "get_base_model", lambda: model)())
        # Sums, for what is written through `.data` leaves a tensor's version as it was.
        read = tuple(
            (id(weight), weight._version, float(weight.detach().sum())) for weight in tower.encoder.parameters()
        )
        if read != self._read:
            self._read, self._states = read, {}
        return tower

    def beside(
        self, model: nn.Module, prompts: Sequence[Asked], drive: Drive, exits: Sequence[int] | None = None
    ) -> answering.Beside:
        @contextlib.contextmanager
        def handed(ids: Tensor, numbers: list[int]) -> Iterator[dict[str, Tensor]]:
            images = [about(prompts[number]) for number in numbers]
            one = drive.exit.vision_layer
            chosen = [exits[number] for number in numbers] if exits else [one] * len(numbers)
            with self.left(model, images, drive, chosen):
                yield self.inputs(ids, images, drive)

        return handed

    @contextlib.contextmanager
    def left(
        self, model: nn.Module, images: Sequence[str | None], drive: Drive, exits: Sequence[int | None]
    ) -> Iterator[None]:
        shown = [(image, exit) for image, exit in zip(images, exits, strict=True) if image and drive.picture != "none"]
        if not shown:
            yield
            return
        tower, device = self.tower(model), next(model.parameters()).device
        at = [tower.released if exit is None else exit for _, exit in shown]
        looks = [(image, drive.picture) for image, _ in shown]
        states = [self._seen(tower, look, exit, device) for look, exit in zip(looks, at, strict=True)]
        keep, counts = drive.exit.visual_tokens, [self._counts[look] for look in looks]
        with tower.leaving(states, at), thinning.thinned(model, counts, keep) if keep else contextlib.nullcontext():
            yield

    def features(self, model: nn.Module, images: Sequence[str], drive: Drive, exits: Sequence[int]) -> Tensor:
        """What the language model is given of pictures that prompts were about, each left at its exit: (features, width)."""
        pixels = vision.collated([self._pictures[image, drive.picture] for image in images])
        device = next(model.parameters()).device
        with self.left(model, images, drive, exits):
            found = self.tower(model).encode(**{key: value.to(device) for key, value in pixels.items()})
        return torch.cat(list(found.pooler_output))

    def whole(self, tokenizer: PreTrainedTokenizerBase, drive: Drive, text: str) -> str:
        return drive.text(tokenizer, text, parts=Parts())

    def inputs(self, ids: Tensor, images: Sequence[str | None], drive: Drive) -> dict[str, Tensor]:
        shown = drive.picture != "none"
        return self._inputs(ids, [(image, drive.picture) for image in images if image and shown])

    def positions(self, mask: Tensor) -> dict[str, Tensor]:
        return {}  # pictures may lie in two dimensions, so these models count themselves

    def _processed(self, whole: str, look: Look | None) -> list[int]:
        """The ids of a whole text; what becomes of its picture is kept."""
        # A template may bring the first token itself; transformers' own processors look for it in the same way.
        first = self.processor.tokenizer.bos_token
        special = not (first and whole.startswith(first))
        pictures = {"images": [[_opened(*look)]]} if look else {}
        made = self.processor(text=[whole], **pictures, add_special_tokens=special, return_tensors="pt")
        if "cross_attention_mask" in made:
            raise Problem(f"{self.folder}: attends to pictures from every token, which prompts are not put to so far")
        self._kinds |= {*_KINDS} & {*made}
        ids = made["input_ids"][0].tolist()
        if look:
            self._pictures[look] = {key: made[key] for key in made if key not in (*_TEXT, *_KINDS)}
            self._counts[look] = ids.count(self.token_id)
        return ids

    def _thinned(self, ids: list[int], keep: int) -> list[int]:
        """With so many tokens of the picture left."""
        places = [place for place, token in enumerate(ids) if token == self.token_id]
        stay = {places[number] for number in thinning.kept(len(places), keep).tolist()}
        return [token for place, token in enumerate(ids) if token != self.token_id or place in stay]

    def _inputs(self, ids: Tensor, looks: Sequence[Look]) -> dict[str, Tensor]:
        kinds = {name: (ids == self.token_id).long() for name in self._kinds}
        pixels = vision.collated([self._pictures[look] for look in looks]) if looks else {}
        return kinds | {key: value.to(ids.device) for key, value in pixels.items()}

    def _seen(self, tower: vision.Tower, look: Look, exit: int, device: torch.device) -> vision.States:
        """What the blocks of the encoder made of a picture: all of them while there is room, else those that the exit reads."""
        if look in self._states:
            return self._states[look]
        kept = sum(layer.nbytes for states in self._states.values() for layer in states.layers.values())
        room = kept < REMEMBERED
        inputs = {key: value.to(device) for key, value in self._pictures[look].items()}
        found = tower.states(inputs, None if room else [exit])
        found = found.shuffled(look[0]) if look[1] == "shuffled" else found
        if room:
            self._states[look] = found
        return found


def _shown(prompt: Asked, drive: Drive) -> Look | None:
    image = about(prompt)
    return (image, drive.picture) if image and drive.picture != "none" else None


def _opened(image: str, how: Picture) -> Any:
    """The picture in a file, in color, or what is shown in its place."""
    from PIL import Image

    try:
        with Image.open(image) as picture:
            real = picture.convert("RGB")
    except (OSError, ValueError) as error:
        raise Problem(
            f"{image}: not a picture that can be read ({error}); mend the corpus, or fetch it again"
        ) from error
    if how == "blank":
        return Image.new("RGB", real.size, (128, 128, 128))
    if how == "noise":
        return Image.frombytes(
            "RGB", real.size, random.Random(Path(image).name).randbytes(3 * real.width * real.height)
        )
    return real
