"""A model of some of its own blocks: what a simulation builds in place of a deep model.

In: a model. Out: what each of its blocks consists of, and the same architecture with only the blocks asked
for. `methods/depth.py` chooses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from bench.trial.axes import Model
from bench.workload.architectures import blocks_of, config_of

_DEPTHS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
_NUMBERED = ("idx", "index", "layer_id", "layer_number")  # in names of attributes that number a block


def block_kinds(model: nn.Module) -> list[Any] | None:
    """What each block consists of, from the first to the last: blocks that are alike compare equal.

    Where a model has several stacks, a kind is of all their blocks of the same number; None where stacks
    differ in depth, or blocks are in no list.
    """
    stacks: dict[str, list[Any]] = {}
    for name, block in blocks_of(model).items():
        stack, _, number = name.rpartition(".")
        if number != str(len(stacks.setdefault(stack, []))):
            return None
        stacks[stack].append(_kind(block))
    if not stacks or len({len(blocks) for blocks in stacks.values()}) > 1:
        return None
    return list(zip(*stacks.values(), strict=True))


def _kind(block: nn.Module) -> tuple[Any, ...]:
    """The block's modules by name, each with its class, its plain attributes and its parameters' shapes."""
    return tuple(
        (
            name,
            type(module),
            tuple(
                (key, value)
                for key, value in sorted(vars(module).items())
                if isinstance(value, int | float | str | None) and not any(n in key for n in _NUMBERED)
            ),
            tuple((key, tuple(p.shape), p.dtype) for key, p in module.named_parameters(recurse=False)),
        )
        for name, module in block.named_modules()
    )


def shortened(model: Model, kept: Sequence[int]) -> Model:
    """The model with only the blocks `kept`, by number: in each stack, where it has several.

    Of a configuration, lists with an entry for each block keep the entries of these, and lists of blocks'
    numbers are numbered anew. Whether that gave the blocks asked for, the caller has to look.
    """
    if model.config is None and model.pretrained is None:
        return replace(model, layers=len(kept))
    config = config_of(model)
    depth, values = config.num_hidden_layers, config.to_dict()
    own_name = getattr(config, "attribute_map", {}).get("num_hidden_layers", "num_hidden_layers")
    for key, value in values.items():
        if key in (own_name, *_DEPTHS) and value == depth:
            values[key] = len(kept)
        elif isinstance(value, list) and len(value) == depth:
            values[key] = [value[number] for number in kept]
        elif isinstance(value, list) and "layers" in key and all(isinstance(n, int) for n in value):
            values[key] = [kept.index(number) for number in value if number in kept]
    return replace(model, config=values)
