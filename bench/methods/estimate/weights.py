"""What every formula needs: bytes by dtype, the weights' bytes as they are stored, the row's columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from bench.trial.columns import Columns
from bench.trial.platform import Platform
from bench.trial.spec import Trial
from bench.trial.vocabulary import CATEGORIES
from bench.workload.shapes import Linear, Shape

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
ADAPTER_BYTES = 4  # peft keeps adapters in float32 whatever the base is in


def weight_bytes(trial: Trial, shape: Shape, platform: Platform) -> int:
    """Weights by dtype, and the blocks' matrices by how they are quantised."""
    each = BYTES[trial.precision.param_dtype]
    outside = sum(platform.allocated_bytes(elements * each) for elements in shape.outer_tensors())
    layer = 0
    for linears, norms in shape.blocks:
        layer += norms * each
        for linear in linears:
            layer += sum(platform.allocated_bytes(size) for size in _matrix_bytes(trial, linear))
            layer += linear.outputs * each if linear.bias else 0
    if trial.lora.enabled:
        outside += adapter_bytes(trial, shape, platform)
    return outside + shape.layers * layer


def _matrix_bytes(trial: Trial, linear: Linear) -> tuple[float, ...]:
    """Tensors of one matrix.

    int8: a byte an element and a float32 scale a row (Dettmers 2022); kept beside weights that train. nf4:
    half a byte, and per 64 elements a scale of one byte, itself scaled per 256 (Dettmers 2023, double
    quantisation), or of four bytes without it.
    """
    weights = linear.weights
    wide = weights * BYTES[trial.precision.param_dtype]
    match trial.precision.quantization:
        case "int8":
            stored = (weights, 4 * linear.outputs)
            return stored if trial.quantises_weights else (wide, *stored)
        case "nf4" if trial.precision.double_quant:
            return weights / 2, weights / 64, 4 * weights / (64 * 256)
        case "nf4":
            return weights / 2, 4 * weights / 64
        case _:
            return (wide,)


def adapter_parameters(trial: Trial, shape: Shape) -> int:
    """Elements of LoRA's A [rank, in] and B [out, rank] at every linear of the blocks (Hu 2021)."""
    return sum(elements * count for elements, count in _adapter_tensors(trial, shape))


def adapter_bytes(trial: Trial, shape: Shape, platform: Platform) -> int:
    """Theirs, or those of their gradients."""
    tensors = _adapter_tensors(trial, shape)
    return sum(count * platform.allocated_bytes(elements * ADAPTER_BYTES) for elements, count in tensors)


def _adapter_tensors(trial: Trial, shape: Shape) -> Iterator[tuple[int, int]]:
    for linears, _ in shape.blocks:
        for linear in linears:
            yield trial.lora.rank * linear.inputs, shape.layers
            yield trial.lora.rank * linear.outputs, shape.layers


def estimate_columns(held: dict[str, int], phase: str, total: int, trainable: int) -> Columns:
    """The row's columns.

    Args:
        held: bytes by category at the peak; a category that is left out holds nothing.
        phase: where the peak is.
        total: parameters.
        trainable: parameters that train.
    """
    peak = sum(held.values())
    by_name = {f"{category}_bytes": held.get(category, 0) for category in CATEGORIES}
    columns: Columns = {
        "tracked_peak_bytes": peak,
        "peak_allocated_bytes": peak,
        "peak_phase": phase,
        "param_count": total,
        "trainable_param_count": trainable,
    }
    return columns | cast(Columns, by_name)
