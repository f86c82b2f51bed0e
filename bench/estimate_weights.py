"""What every formula needs: bytes by dtype, the weights' bytes as they are stored, the row's columns."""

from __future__ import annotations

from typing import Any

from bench.categories import CATEGORIES
from bench.shapes import Shape
from bench.trial import Trial

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
ADAPTER_BYTES = 4  # peft keeps adapters in float32 whatever the base is in


def weight_bytes(trial: Trial, shape: Shape) -> int:
    """Weights by dtype, and the blocks' matrices by how they are quantised.

    int8: a byte an element and a float32 scale a row (Dettmers 2022); kept beside weights that train. nf4:
    half a byte, and per 64 elements a scale of one byte, itself scaled per 256 (Dettmers 2023, double
    quantisation), or of four bytes without it.
    """
    precision = trial.precision
    each = BYTES[precision.param_dtype]
    rows = shape.layers * sum(linear.outputs for linears, _ in shape.blocks for linear in linears)
    whole = shape.parameters * each
    if trial.lora.enabled:
        whole += adapters(trial, shape) * ADAPTER_BYTES
    match precision.quantization:
        case "int8":
            stored = shape.in_linears + 4 * rows
            return whole + stored - (shape.in_linears * each if trial.quantises_weights else 0)
        case "nf4":
            scales = 1 / 64 + 4 / (64 * 256) if precision.double_quant else 4 / 64
            return whole - shape.in_linears * each + int(shape.in_linears * (0.5 + scales))
        case _:
            return whole


def adapters(trial: Trial, shape: Shape) -> int:
    """Elements of LoRA's A [rank, in] and B [out, rank] at every linear of the blocks (Hu 2021)."""
    linears = sum(linear.inputs + linear.outputs for group, _ in shape.blocks for linear in group)
    return shape.layers * linears * trial.lora.rank


def columns(held: dict[str, int], phase: str, total: int, trainable: int) -> dict[str, Any]:
    """The row's columns.

    Args:
        held: bytes by category at the peak; a category that is left out holds nothing.
        phase: where the peak is.
        total: parameters.
        trainable: parameters that train.
    """
    peak = sum(held.values())
    return {
        **{f"{category}_bytes": held.get(category, 0) for category in CATEGORIES},
        "tracked_peak_bytes": peak,
        "peak_allocated_bytes": peak,
        "peak_phase": phase,
        "param_count": total,
        "trainable_param_count": trainable,
    }
