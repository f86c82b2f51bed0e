"""The rule of thumb: the arithmetic that people do on paper, to be graded beside the closed form.

In: a Trial. Out: the row's memory columns, in bytes; GB and MB in docstrings are powers of ten. Must not
import torch.
"""

from __future__ import annotations

from bench.methods.estimate import inference
from bench.methods.estimate.weights import BYTES, estimate_columns
from bench.trial.columns import Columns
from bench.trial.spec import Trial
from bench.workload.shapes import shape_of

RULE_OF_THUMB_CONTEXT_BYTES = 1_300_000_000  # HF "Model memory anatomy": 1.3 GB of kernels on a V100
_QUANTISED_BYTES = {"int8": 1.0, "nf4": 0.5}


def rule_of_thumb(trial: Trial) -> Columns:
    """The row's memory columns by the common rule: everything in the precision's own bytes.

    Parameters are counted in whole billions, rounded down, as the rule calls LLaMA's 6.7 billion "6B":
    24 GB in float32, 6 GB in int8. Gradients take as much, AdamW's state twice as much (48 GB, 12 GB).
    A CUDA context takes 1.3 GB, which makes 25.3 GB in int8 without activations. Activations take
    (hidden + ffn) x context x layers x bytes: 990 MB for a sequence of 2048 tokens in int8. The rule knows
    no LoRA, no checkpointing, no sharding and no logits. For inference it counts weights and the key-value
    cache.
    """
    model = trial.model
    whole = shape_of(model).parameters
    parameters = whole // 10**9 * 10**9 or whole
    quantised = _QUANTISED_BYTES.get(trial.precision.quantization)
    bytes_per_element = quantised or BYTES[trial.precision.compute_dtype]
    weights = int(parameters * bytes_per_element)
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
        * bytes_per_element
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
    """How many sequences fit a device by the rule of thumb: the bytes left for activations, over those of
    one sequence.

    LLaMA "6B" in int8 on 80 GB: (80 - 25.3) / 0.99, which the rule calls about 50.
    """
    columns = rule_of_thumb(trial)
    activations, peak = columns["activation_bytes"], columns["peak_allocated_bytes"]
    assert activations is not None and peak is not None, "the rule fills both"
    sequence_bytes = activations // trial.micro_batch_size
    other_bytes = peak - activations + RULE_OF_THUMB_CONTEXT_BYTES
    return max(0, (device_bytes - other_bytes) // sequence_bytes)
