"""An image encoder stopped early: what its blocks made of each picture, kept once, and the pass that goes on from any of them.

An exit l means the same in every family: every block of the encoder behind the l-th is skipped, so what it is given it hands on.
What stands behind the blocks (a last norm where the family has one, merger, pixel shuffle, projector) is as released, not trained
anew. Where the configuration names the one layer that the projector reads (LLaVA: the last but one), the projector is given
layer l in its place, which is exit l of "image encoder early exit" (2411.04291). Knows models and the tensors of pictures;
nothing of texts, prompts and processors.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from holdfast import anatomy
from holdfast.problem import Problem

_TAPPED = ("deepstack_visual_indexes", "intermediate_layers_indices")
"""Entries of an encoder's configuration that name blocks, from 0, read beside the last one (Qwen3-VL; Mllama)."""


@dataclass(frozen=True)
class States:
    """What the encoder made of one picture."""

    layers: Mapping[int, Tensor]
    """Outputs of blocks by the block's number, 0 for what the first is given: (tiles, tokens, width) or (patches, width)."""

    @property
    def shape(self) -> torch.Size:
        """Of every layer."""
        return next(iter(self.layers.values())).shape

    def shuffled(self, seed: str) -> "States":
        """With the places of its features changed, all layers alike; the first, which may stand for the whole, stays."""
        count = self.shape[-2]
        order = [0, *random.Random(seed).sample(range(1, count), count - 1)]
        return States({number: layer[..., order, :] for number, layer in self.layers.items()})


@dataclass(frozen=True)
class Tower:
    """The image encoder of a model, and where it can be left: exits 0 (its embeddings) to `last`."""

    encoder: nn.Module
    encode: Callable[..., Any]
    """Computes the features of pictures from what a processor made of them."""
    stacks: tuple[nn.ModuleList, ...]
    """Transformer blocks, one stack behind the other; only Mllama has two."""
    selected: int | None
    """The one layer that the projector is given, where the configuration names it."""
    tapped: tuple[int, ...]
    """Layers that are read on the way, wherever the encoder is left; no skipped ones."""
    last: int
    """The deepest exit: the last block that anything reads."""
    choice: str | None
    """The choice made where an exit is not plain, in words."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Tower":
        """The image encoder of a model.

        Raises:
            Problem: it has none, or one that is no transformer, or one of which only the embeddings are read.
        """
        encoder = model.get_encoder(modality="image")
        if any(module is model.get_input_embeddings() for module in encoder.modules()):  # then it reads tokens
            raise Problem(f"{type(model).__name__}: it has no image encoder to leave early; leave out `vision_layer`")
        kind = type(anatomy.blocks(encoder)[0])
        lists = [module for module in encoder.modules() if isinstance(module, nn.ModuleList) and len(module)]
        stacks = tuple(stack for stack in lists if all(type(block) is kind for block in stack))
        total = sum(map(len, stacks))
        layers = getattr(model.config, "vision_feature_layer", None)
        selected = layers % (total + 1) if isinstance(layers, int) else None
        several = [layer % (total + 1) for layer in layers or ()] if selected is None else []
        tapped = several + [i + 1 for name in _TAPPED for i in getattr(encoder.config, name, None) or ()]
        last = max(several, default=total)
        if 0 in (selected, last):
            raise Problem(f"{type(model).__name__}: no block of its image encoder is read; it cannot be left earlier")
        encode = getattr(model, "get_image_features", encoder)  # Mllama's projector is no part of any such method
        tapped = tuple(sorted(set(tapped)))
        return cls(encoder, encode, stacks, selected, tapped, last, _choice(stacks, tapped))

    @property
    def blocks(self) -> list[nn.Module]:
        """Its transformer blocks in order; the first is number 1."""
        return [block for stack in self.stacks for block in stack]

    @property
    def released(self) -> int:
        """The exit that the checkpoint is released with."""
        return self.selected or self.last

    @torch.no_grad()
    def states(self, inputs: Mapping[str, Tensor], exits: Sequence[int] | None = None) -> States:
        """One pass of the encoder over one picture.

        Args:
            inputs: what a processor makes of the picture alone: `pixel_values`, and `image_sizes`, `image_grid_thw`,
                `pixel_attention_mask`, `aspect_ratio_ids`, `aspect_ratio_mask` where the family has them.
            exits: the exits that will be asked; all unless given. Nothing else is kept.

        Raises:
            Problem: there is no such exit.
        """
        exits = range(self.last + 1) if exits is None else exits
        self._known(exits)
        wanted = {layer for exit in exits for layer in self._read(exit).values()}
        layers, blocks = {}, self.blocks

        def entered(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            layers[0] = _stream(args, kwargs)

        def left(number: int) -> Callable[..., None]:
            return lambda _, __, out: layers.update({number: out})

        hooks = [blocks[number - 1].register_forward_hook(left(number)) for number in wanted - {0}]
        hooks += [blocks[0].register_forward_pre_hook(entered, with_kwargs=True)] if 0 in wanted else []
        try:
            self.encode(**inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return States(layers)

    @contextmanager
    def leaving(self, pictures: Sequence[States], exits: Sequence[int]) -> Iterator[None]:
        """Inside, the whole model, given the same pictures in one batch (`collated`), computes no block of the encoder.

        Each picture leaves at its own exit. Texts without pictures, and the later steps of `generate`, are as ever.

        Args:
            pictures: in the batch's order.
            exits: one for each picture.

        Raises:
            Problem: there is no such exit, its states were not kept, or (inside) the batch holds other pictures.
        """
        self._known(exits)
        for picture, exit in zip(pictures, exits, strict=True):
            if missing := set(self._read(exit).values()) - set(picture.layers):
                raise Problem(f"exit {exit}: layer {min(missing)} was not kept; name the exit when recording `states`")
        blocks = self.blocks
        before = [vars(block).get("forward") for block in blocks]  # accelerate puts its own there
        for number, block in enumerate(blocks, 1):
            block.forward = partial(self._handed_on, number, pictures, exits)
        try:
            yield
        finally:
            for block, forward in zip(blocks, before, strict=True):
                del block.forward
                if forward is not None:
                    block.forward = forward

    def _handed_on(
        self, number: int, pictures: Sequence[States], exits: Sequence[int], *args: Any, **kwargs: Any
    ) -> Tensor:
        """In place of a block's forward: what it has for the block behind it."""
        stream = _stream(args, kwargs)
        axis = 0 if sum(picture.shape[0] for picture in pictures) == len(stream) else -2  # Pixtral: (1, patches, width)
        sizes = [picture.shape[axis] for picture in pictures]
        parts = stream.split(sizes, axis) if sum(sizes) == stream.shape[axis] else ()
        if [part.shape for part in parts] != [picture.shape for picture in pictures]:
            raise Problem("leaving: the batch holds other pictures than those recorded; give it the same in this order")
        return torch.cat([self._part(number, *each) for each in zip(pictures, exits, parts, strict=True)], axis)

    def _part(self, number: int, picture: States, exit: int, given: Tensor) -> Tensor:
        read = self._read(exit)
        if number in read:
            return picture.layers[read[number]].to(given)
        # Before the exit no one may read this; somebody we know nothing of shall be loud.
        return given if number > max(read) else torch.full_like(given, torch.nan)

    def _read(self, exit: int) -> dict[int, int]:
        """Which blocks' outputs are read where the encoder is left there, and the layer that each is to be."""
        if self.selected is not None:
            return {self.selected: exit}
        return {layer: layer for layer in (*self.tapped, exit) if layer <= exit}

    def _known(self, exits: Sequence[int]) -> None:
        if wrong := [exit for exit in exits if not 0 <= exit <= self.last]:
            raise Problem(f"exit {wrong[0]}: the image encoder has exits 0 to {self.last}; choose one of these")


class Weights(NamedTuple):
    """Those of a model that sees pictures, by what they belong to; each stands in one list alone."""

    encoder: list[nn.Parameter]
    projector: list[nn.Parameter]
    """Between encoder and language model; none where it is the encoder's own last module (Qwen-VL's merger)."""
    language: list[nn.Parameter]

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Weights":
        """Raises `Problem` where there is no image encoder."""
        encoder = list(Tower.of(model).encoder.parameters())
        language = [*model.get_decoder().parameters(), *model.get_output_embeddings().parameters()]
        known = {id(weight) for weight in (*encoder, *language)}
        return cls(encoder, [one for one in model.parameters() if id(one) not in known], language)


def truncated(model: PreTrainedModel, exit: int) -> Callable[[], None]:
    """Remove the blocks behind an exit, as somebody who deploys the model does it; returns what puts all back.

    Fewer blocks and the integers that say so in the configuration, so that the checkpoint can be saved and loaded as one of its
    family. It computes what `Tower.leaving` does, but for Qwen3-VL: it drops the features tapped from blocks that are gone.

    Raises:
        Problem: there is no such exit, or no block would be left.
    """
    tower = Tower.of(model)
    if not 1 <= exit <= tower.last:
        raise Problem(f"exit {exit}: the image encoder has blocks 1 to {tower.last}, and one must be left")
    removed, before = [], []

    def put(where: Any, name: str, value: Any) -> None:
        before.append((where, name, getattr(where, name)))
        setattr(where, name, value)

    config, start = tower.encoder.config, 0
    for stack, name in zip(tower.stacks, ("num_hidden_layers", "num_global_layers"), strict=False):
        stay, start = min(max(exit - start, 0), len(stack)), start + len(stack)
        removed.append((stack, list(stack[stay:])))
        put(config, name, stay)
        del stack[stay:]
    layers = getattr(model.config, "vision_feature_layer", None)
    if tower.selected is not None and layers != -1:  # -1 stays what it is: InternVL puts a norm behind that one alone
        put(model.config, "vision_feature_layer", exit)
    elif layers is not None and tower.selected is None:
        put(model.config, "vision_feature_layer", [min(layer % (start + 1), exit) for layer in layers])
    if getattr(config, "intermediate_layers_indices", None):
        for where in (config, tower.encoder):
            put(where, "intermediate_layers_indices", [min(i, exit - 1) for i in config.intermediate_layers_indices])

    def undo() -> None:
        for stack, blocks in removed:
            stack.extend(blocks)
        for where, name, value in before:
            setattr(where, name, value)

    return undo


def collated(pictures: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What a processor made of pictures one by one, as one batch.

    Along the first axis; along the others short ones are filled up with zeros behind, as the processors do with tiles.
    """
    return {name: _stacked([picture[name] for picture in pictures]) for name in pictures[0]}


def _choice(stacks: Sequence[nn.ModuleList], tapped: Sequence[int]) -> str | None:
    said = []
    if len(stacks) > 1:
        counts = " and ".join(str(len(stack)) for stack in stacks)
        said.append(
            f"exits are counted through stacks of {counts} blocks, and one in a stack skips the stacks behind it"
        )
    if tapped:
        layers = ", ".join(map(str, tapped))
        said.append(f"of the features tapped from blocks {layers}, those of skipped blocks are the exit's own")
    return "; ".join(said) or None


def _stream(args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    """What a block is given to work on: its first tensor."""
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    widest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    made = tensors[0].new_zeros(sum(map(len, tensors)), *widest)
    for tensor, place in zip(tensors, made.split(list(map(len, tensors))), strict=True):
        place[tuple(map(slice, tensor.shape))] = tensor
    return made
