"""The arithmetic that people do on paper, kept as they do it, to be graded beside the others.

In: a Trial. Out: the row's memory columns, in bytes. Must not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.methods.estimate import inference
from bench.methods.estimate.weights import (
    BYTES,
    estimate_columns,
)
from bench.trial.columns import Columns
from bench.trial.spec import Trial
from bench.workload.shapes import shape_of

RULE_OF_THUMB_CONTEXT_BYTES = 1_300_000_000  # HF "Model memory anatomy": 1.3 GB of kernels on a V100
_QUANTISED_BYTES = {"int8": 1.0, "nf4": 0.5}


def rule_of_thumb(trial: Trial) -> Columns:
    """The arithmetic that goes round: everything in the precision's own bytes, AdamW twice the weights.

    Parameters in whole billions, rounded down, as the rule counts LLaMA's 6.7 as "6B": 24 GB in float32,
    6 GB in int8. Gradients the same, AdamW twice as much (48 GB, 12 GB). A CUDA context of 1.3 GB: 25.3
    GB in int8 without activations. Activations (hidden + ffn) x context x layers x bytes: 990 MB a
    sequence of 2048 in int8. It knows no LoRA, no checkpointing, no sharding and no logits. Of inference:
    weights and key-value cache.
    """
    model = trial.model
    whole = shape_of(model).parameters
    count = whole // 10**9 * 10**9 or whole
    quantised = _QUANTISED_BYTES.get(trial.precision.quantization)
    each = quantised or BYTES[trial.precision.compute_dtype]
    weights = int(count * each)
    context: Columns = {"context_bytes": RULE_OF_THUMB_CONTEXT_BYTES}
    if trial.workload.inference:
        held = {
            "parameter": weights,
            "kv_cache": inference.cache_bytes(trial, trial.cached_tokens),
        }
        return estimate_columns(held, trial.workload.name, whole, 0) | context
    activations = int(
        (model.hidden_size + model.intermediate_size)
        * trial.seq_len
        * model.layers
        * each
        * trial.micro_batch_size
    )
    held = {
        "parameter": weights,
        "gradient": weights,
        "optimizer": 2 * weights,
        "activation": activations,
        "temporary": 0,
        "input": 0,
    }
    return estimate_columns(held, "backward", whole, whole) | context


def rule_of_thumb_batch(trial: Trial, device_bytes: int) -> int:
    """Sequences that fit a device by the rule: what is left after the rest, over one sequence's share.

    LLaMA "6B" in int8 on 80 GB: (80 - 25.3) / 0.99, which the rule calls about 50.
    """
    found: Mapping[str, Any] = rule_of_thumb(trial)
    one = found["activation_bytes"] // trial.micro_batch_size
    rest = found["peak_allocated_bytes"] - found["activation_bytes"] + found["context_bytes"]
    return max(0, int((device_bytes - rest) // one))
