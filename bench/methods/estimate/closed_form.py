"""The closed form: a trial's memory by arithmetic alone, by dtype, technique and architecture.

In: a Trial and its Platform. Out: the row's memory columns, in bytes. Owns the sum of training, and its
gradients, optimizer states, temporaries of the update and what FSDP gathers; weights, activations and
inference are in modules of their own. Graded beside simulation and measurement (bench/grade.py). Must not
import torch.
"""

from __future__ import annotations

from dataclasses import replace

from bench.machine.gpu_catalogue import workspaces_bytes
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
from bench.trial.platform import CPU, CUDA, Platform
from bench.trial.skip_rules import skip_reason
from bench.trial.spec import Trial
from bench.workload.shapes import Shape, shape_of


def closed_form(trial: Trial, platform: Platform) -> Columns:
    """The row's memory columns: the larger of the backward of the loss and the optimizer's update.

    Each part is documented where it is computed. Inference has a closed form of its own (`inference.py`).
    Simulation also counts what this leaves out: temporaries inside blocks, and the order in which tensors
    come and go.

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
    rank_shares = [0 if on_host else whole // ranks for whole in (weights, gradients, states)]
    parameter, gradient, optimizer = rank_shares
    if trial.optimizer.in_backward:  # one at a time
        gradient = 0
    gathered = _gathered_bytes(trial, shape, weights)
    activation = activation_bytes(trial, shape, platform) + autocast_copy_bytes(trial, shape)
    if trial.offload.name == "activations" and not platform.host_is_device:
        activation = 0
    log_softmax, loss_temporaries = loss_bytes(trial, platform)
    phases = {
        "backward": {
            "parameter": parameter,
            "gradient": gradient if trial.grad_accum_steps > 1 or trial.fsdp.name == "no_shard" else 0,
            "optimizer": optimizer,
            "activation": activation + log_softmax,
            "temporary": gathered + loss_temporaries,
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
    token_ids_bytes = 8 * tokens * (2 if trial.model.encoder_decoder else 1)  # int64
    total = shape.parameters + (trainable if trial.lora.enabled else 0)
    return estimate_columns(phases[phase] | {"input": token_ids_bytes}, phase, total, trainable)


def _gradient_bytes(trial: Trial, shape: Shape, platform: Platform) -> int:
    """A gradient for each tensor that trains, in the tensor's own dtype."""
    if trial.lora.enabled:
        return adapter_bytes(trial, shape, platform)
    bytes_per_element = BYTES[trial.precision.param_dtype]
    return sum(
        count * platform.allocated_bytes(elements * bytes_per_element)
        for elements, count in shape.tensors()
    )


def _state_bytes(trial: Trial, shape: Shape, trainable: int, gradients: int) -> int:
    """Bytes of the optimizer's state.

    AdamW keeps two moments in the parameters' dtype (Loshchilov 2019). 8-bit AdamW keeps them in a byte
    for each element and a float32 scale for every 256 (Dettmers 2022, 8-bit optimizers); the paged one
    keeps them in unified memory, which counts 0 here. Adafactor keeps a row and a column of each matrix in
    float32 (Shazeer 2018). SGD keeps a momentum, if it has one.
    """
    name = trial.optimizer.name
    if name.startswith("adamw_8bit"):
        return 0 if name.endswith("paged") else int(trainable * 2 * (1 + 4 / 256))
    if name == "sgd":
        return gradients if trial.optimizer.momentum else 0
    if name == "adafactor":
        rows_and_columns = sum(
            linear.inputs + linear.outputs for linears, _ in shape.blocks for linear in linears
        )
        return shape.layers * rows_and_columns * 4 + (trial.model.vocab_size + trial.model.hidden_size) * 8
    return 2 * gradients


def _update_bytes(trial: Trial, shape: Shape, gradient: int, trainable: int, platform: Platform) -> int:
    """Bytes of the temporaries that the optimizer's update makes.

    foreach makes the denominators of all tensors at once; the loop over tensors makes two temporaries as
    large as the largest tensor's gradient; fused AdamW and SGD make none.
    """
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
        expanded = 5 * largest * 4  # an update in Python widens five tensors to float32
        return expanded if platform.bitsandbytes_in_python else 0
    return 2 * largest * gradient // max(trainable, 1)


def _gathered_bytes(trial: Trial, shape: Shape, weights: int) -> int:
    """Bytes of the weights that FSDP gathers beside its shards (Zhao 2023), in the compute dtype.

    full_shard gathers what lies outside the blocks, and two blocks; shard_grad_op gathers everything.
    """
    if not trial.fsdp.shards:
        return 0
    compute_share = BYTES[trial.precision.compute_dtype] / BYTES[trial.precision.param_dtype]
    scale = compute_share if trial.precision.casts_weights else 1.0
    outside = int(shape.outside * BYTES[trial.precision.param_dtype])
    if trial.fsdp.name == "shard_grad_op":
        return int(weights * scale)
    blocks = max(shape.layers * len(shape.blocks), 1)
    return int((outside + 2 * (weights - outside) / blocks) * scale)


def expected_peak_bytes(trial: Trial, device_name: str) -> int | None:
    """The closed form's peak of a trial on a device, with the workspaces of its card.

    None where there is no closed form of the model.
    """
    platform = CPU if device_name.startswith("CPU") else CUDA
    if skip_reason(replace(trial, method="estimate", formula="closed_form"), platform, 0):
        return None
    tensors = closed_form(trial, platform)["peak_allocated_bytes"]
    return None if tensors is None else tensors + workspaces_bytes(device_name, trial)
