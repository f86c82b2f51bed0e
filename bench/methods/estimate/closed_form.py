"""method=estimate: memory by arithmetic alone, in microseconds, by either of two formulas.

`rule_of_thumb` is what people reckon on paper; `closed_form` counts what the simulated step allocates, by
dtype, technique and architecture. Both are graded beside simulation and measurement (bench/grade.py).
Nothing here needs torch. Bytes throughout; GB and MB in docstrings are powers of ten.
"""

from __future__ import annotations

from bench.methods.estimate import inference
from bench.methods.estimate.activations import activation_bytes, autocast_copy_bytes, loss_bytes
from bench.methods.estimate.weights import (
    BYTES,
    adapter_bytes,
    adapter_parameters,
    estimate_columns,
    weight_bytes,
)
from bench.trial.columns import Columns
from bench.trial.platform import Platform
from bench.trial.spec import Trial
from bench.workload.shapes import Shape, shape_of


def closed_form(trial: Trial, platform: Platform) -> Columns:
    """Memory at the end of the forward, in the backward of the loss and in the optimizer, whichever is
    most; of inference, see `estimate_inference`.

    The parts are documented where they are computed. What it leaves out, and simulation counts: temporaries
    inside blocks, and the order in which tensors come and go.

    Args:
        trial: what to estimate.
        platform: what it would run on: CPU or CUDA.
    """
    if trial.workload.inference:
        return inference.closed_form(trial, platform)
    shape = shape_of(trial.model)
    ranks = trial.world_size if trial.fsdp.shards else 1
    weights = weight_bytes(trial, shape, platform)
    trainable = adapter_parameters(trial, shape) if trial.lora.enabled else shape.parameters
    gradients = _gradient_bytes(trial, shape, platform)
    states = _state_bytes(trial, shape, trainable, gradients)
    on_host = trial.offload.name == "params" and not platform.host_is_device
    owned = [0 if on_host else part // ranks for part in (weights, gradients, states)]
    parameter, gradient, optimizer = owned
    gathered = _gathered_bytes(trial, shape, weights)
    kept = activation_bytes(trial, shape, platform) + autocast_copy_bytes(trial, shape)
    if trial.offload.name == "activations" and not platform.host_is_device:
        kept = 0
    log_softmax, loss = loss_bytes(trial, platform)
    phases = {
        "backward": {
            "parameter": parameter,
            "gradient": gradient if trial.grad_accum_steps > 1 or trial.fsdp.name == "no_shard" else 0,
            "optimizer": optimizer,
            "activation": kept + log_softmax,
            "temporary": gathered + loss,
        },
        "optimizer": {
            "parameter": parameter,
            "gradient": gradient,
            "optimizer": optimizer,
            "activation": 0,
            "temporary": 0 if on_host else _update_bytes(trial, shape, gradient, trainable, platform),
        },
    }
    phase = max(phases, key=lambda name: sum(phases[name].values()))
    tokens = trial.micro_batch_size * trial.seq_len * trial.grad_accum_steps
    held = phases[phase] | {"input": 8 * tokens * (2 if trial.model.encoder_decoder else 1)}
    total = shape.parameters + (trainable if trial.lora.enabled else 0)
    return estimate_columns(held, phase, total, trainable)


def _gradient_bytes(trial: Trial, shape: Shape, platform: Platform) -> int:
    """A gradient for each tensor that trains, in its dtype."""
    if trial.lora.enabled:
        return adapter_bytes(trial, shape, platform)
    each = BYTES[trial.precision.param_dtype]
    return sum(count * platform.allocated_bytes(elements * each) for elements, count in shape.tensors())


def _state_bytes(trial: Trial, shape: Shape, trainable: int, gradients: int) -> int:
    """Optimizer state: AdamW two moments in the parameters' dtype (Loshchilov 2019); 8-bit AdamW a byte
    each and a float32 scale per 256 (Dettmers 2022, 8-bit optimizers); Adafactor a row and a column
    (Shazeer 2018); SGD a momentum, if any."""
    name = trial.optimizer.name
    if name.startswith("adamw_8bit"):
        return 0 if name.endswith("paged") else int(trainable * 2 * (1 + 4 / 256))
    if name == "sgd":
        return gradients if trial.optimizer.momentum else 0
    if name == "adafactor":
        edges = sum(linear.inputs + linear.outputs for group, _ in shape.blocks for linear in group)
        return shape.layers * edges * 4 + (trial.model.vocab_size + trial.model.hidden_size) * 8
    return 2 * gradients


def _update_bytes(trial: Trial, shape: Shape, gradient: int, trainable: int, platform: Platform) -> int:
    """Temporaries of the update: foreach makes the whole denominator at once, the loop that of the largest
    tensor, fused none."""
    name = trial.optimizer.name
    if name == "adamw_foreach" or (name == "adamw" and platform.foreach_by_default):
        return gradient
    if name in ("adamw_fused", "sgd"):
        return 0
    if trial.lora.enabled:
        largest = trial.lora.rank * trial.model.intermediate_size
    else:
        largest = max(shape.head, *(linear.weights for linears, _ in shape.blocks for linear in linears))
    if name.startswith("adamw_8bit"):
        expanded = 5 * largest * 4  # all that an update in Python touches, in float32
        return expanded if platform.bitsandbytes_in_python else 0
    return 2 * largest * gradient // max(trainable, 1)


def _gathered_bytes(trial: Trial, shape: Shape, weights: int) -> int:
    """What FSDP holds beside its shards (Zhao 2023): with full_shard the outside and two blocks, with
    shard_grad_op everything; in the compute dtype."""
    if not trial.fsdp.shards:
        return 0
    narrow = BYTES[trial.precision.compute_dtype] / BYTES[trial.precision.param_dtype]
    scale = narrow if trial.precision.autocast else 1.0
    outside = int(shape.outside * BYTES[trial.precision.param_dtype])
    if trial.fsdp.name == "shard_grad_op":
        return int(weights * scale)
    return int((outside + 2 * (weights - outside) / max(shape.layers * len(shape.blocks), 1)) * scale)
