"""What every formula needs: bytes by dtype, weights and adapters as they are stored, the row's columns.

In: a Trial, its architecture in numbers, its Platform. Out: bytes. Must not import torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from bench.trial.columns import Columns
from bench.trial.platform import Platform
from bench.trial.spec import Trial
from bench.trial.vocabulary import CATEGORIES
from bench.workload.shapes import Linear, Shape

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def weight_bytes(trial: Trial, shape: Shape, platform: Platform) -> int:
    """Bytes of all weights, adapters included: by dtype, and the blocks' matrices as they are quantised."""
    bytes_per_element = BYTES[trial.precision.param_dtype]
    outside_bytes = sum(
        platform.allocated_bytes(elements * bytes_per_element) for elements in shape.outer_tensors()
    )
    layer_bytes = 0
    for linears, norms in shape.blocks:
        layer_bytes += norms * bytes_per_element
        for linear in linears:
            layer_bytes += sum(platform.allocated_bytes(size) for size in _matrix_bytes(trial, linear))
            layer_bytes += linear.outputs * bytes_per_element if linear.bias else 0
    adapters = adapter_bytes(trial, shape, platform) if trial.lora.enabled else 0
    return outside_bytes + adapters + shape.layers * layer_bytes


def _matrix_bytes(trial: Trial, linear: Linear) -> tuple[float, ...]:
    """Bytes of each tensor that stores one matrix.

    int8: one byte for each element and a float32 scale for each row (Dettmers 2022); weights that train
    stay beside them. nf4: half a byte for each element, and a scale for every 64. With double quantisation
    (Dettmers 2023) that scale has one byte, and every 256 scales have a float32 scale of their own; without
    it the scale is a float32.
    """
    weights = linear.weights
    unquantised = weights * BYTES[trial.precision.param_dtype]
    match trial.precision.quantization:
        case _ if linear.kept:
            return (unquantised,)
        case "int8":
            stored = (weights, 4 * linear.outputs)
            return stored if trial.quantises_weights else (unquantised, *stored)
        case "nf4" if trial.precision.double_quant:
            return weights / 2, weights / 64, 4 * weights / (64 * 256)
        case "nf4":
            return weights / 2, 4 * weights / 64
        case _:
            return (unquantised,)


def adapter_parameters(trial: Trial, shape: Shape) -> int:
    """Elements of LoRA's A [rank, in] and B [out, rank] at every linear of the blocks (Hu 2021)."""
    return sum(elements * count for elements, count in _adapter_tensors(trial, shape))


def adapter_bytes(trial: Trial, shape: Shape, platform: Platform) -> int:
    """Bytes of LoRA's A and B at every linear of the blocks; their gradients take as many."""
    tensors = _adapter_tensors(trial, shape)
    bytes_per_element = BYTES[trial.adapter_dtype]
    return sum(
        count * platform.allocated_bytes(elements * bytes_per_element) for elements, count in tensors
    )


def _adapter_tensors(trial: Trial, shape: Shape) -> Iterator[tuple[int, int]]:
    """Elements of each adapter tensor of one layer, and how many layers have it."""
    for linears, _ in shape.blocks:
        for linear in linears:
            yield trial.lora.rank * linear.inputs, shape.layers
            yield trial.lora.rank * linear.outputs, shape.layers


def estimate_columns(held: dict[str, int], phase: str, total: int, trainable: int) -> Columns:
    """The row's columns of an estimate.

    Args:
        held: bytes by category at the peak; a category that is left out holds nothing.
        phase: the phase of the step that the peak is in.
        total: number of parameters.
        trainable: number of parameters that train.
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
