"""The combinations of techniques that a plan compares, where the command line leaves them open.

In: the axes that were chosen, and a card. Out: words, as they stand on the command line.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from bench.machine.gpu_catalogue import Gpu

Words = tuple[str, ...]

# Sensible pairs of precision and LoRA, for axes that the command line leaves open.
_WEIGHTS = (
    ("precision=fp32", "lora=off"),
    ("precision=bf16", "lora=off"),
    ("precision=bf16_pure", "lora=off"),
    ("precision=bf16_pure", "lora=on"),
    ("precision=bf16_autocast", "lora=on"),
    ("precision=int8", "lora=on"),
    ("precision=nf4", "lora=on"),
)
_INFERENCE_PRECISIONS = ("fp32", "bf16_pure", "int8", "nf4")


def inference_combinations(given: Iterable[str], gpu: Gpu) -> Iterator[Words]:
    """The combinations of precision and cache to plan for inference.

    Args:
        given: the axes that the command line has already chosen; they are left out.
        gpu: the card; one without bfloat16 is offered float16.
    """
    chosen = set(given)
    half = _half_precision(gpu)
    axes = {
        "precision": [name.replace("bf16", half) for name in _INFERENCE_PRECISIONS],
        "kv_cache": ["dynamic", "static"],
    }
    yield from itertools.product(
        *([f"{axis}={name}" for name in names] for axis, names in axes.items() if axis not in chosen)
    )


def combinations(given: Iterable[str], ranks: int, gpu: Gpu) -> Iterator[Words]:
    """The combinations of techniques to plan for training.

    Args:
        given: the axes that the command line has already chosen; they are left out.
        ranks: GPUs that train together.
        gpu: the card; one without bfloat16 is offered float16.
    """
    chosen = set(given)
    half = _half_precision(gpu)
    weights = [
        tuple(word.replace("bf16", half) for word in pair if word.partition("=")[0] not in chosen)
        for pair in _WEIGHTS
    ]
    options = [list(dict.fromkeys(weights))]
    if "checkpointing" not in chosen:
        options.append([("checkpointing=off",), ("checkpointing=on",)])
    if "fsdp" not in chosen and ranks > 1:
        options.append(
            [(f"fsdp={name}", f"fsdp.world_size={ranks}") for name in ("full_shard", "no_shard")]
        )
    for parts in itertools.product(*options):
        yield tuple(itertools.chain(*parts))
    if {"fsdp", "offload", "optimizer", "precision", "lora", "checkpointing"} & chosen:
        return
    for technique in (
        ("optimizer=adamw_8bit",),
        ("offload=params", "fsdp=full_shard", f"fsdp.world_size={ranks}"),
    ):
        if ranks == 1 or technique[0].startswith("offload"):
            yield (f"precision={half}_pure", "lora=off", "checkpointing=on", *technique)


def _half_precision(gpu: Gpu) -> str:
    """How the names of the precisions with 16-bit floats begin that the card multiplies fast."""
    return "bf16" if gpu.peak_flops_per_sec["bfloat16"] else "fp16"
