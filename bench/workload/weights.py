"""Gives values to a model on the meta device, one parameter at a time, on the device where it will live.

A parameter's random values depend on the seed and on the parameter's own name alone. So the base
weights are equal with and without adapters, whole or sharded, checkpointed or not, and losses can be
compared between techniques. Quantised parameters are quantised as they are made: never does more than
one of them exist in full precision, and no checkpoint is written.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from bench.trial.spec import Trial
from bench.workload import experts
from bench.workload.architectures import DTYPES, auto_class, config_of

Values = Callable[[str, torch.Size, torch.device], torch.Tensor]

# 0.02 as GPT-2 and LLaMA initialise; less in wide models, so that a matrix' output for a normed input has a
# standard deviation of a half. With more, nearly every input column of the next matrix has a value beyond 6
# (at 0.02, in 2048 tokens of LLaMA-7B, 99.9 % of the down projection's). A trained model has one such
# column in a thousand (Dettmers 2022); with more, int8 would be measured multiplying in 16 bits.
_STANDARD_DEVIATION = 0.02
_OUTPUT_DEVIATION = 0.5


def canonical_name(name: str) -> str:
    """The parameter's name in the plain model, whatever wraps it: peft, checkpointing, DDP."""
    for wrapper in ("base_model.model.", ".base_layer", "._checkpoint_wrapped_module"):
        name = name.replace(wrapper, "")
    return name


def random_values(seed: int) -> Values:
    """Initial values: normal matrices, scales of one, zero biases; adapters as peft initialises them."""

    def values(name: str, shape: torch.Size, device: torch.device) -> torch.Tensor:
        if "lora_B" in name or name.endswith("bias"):
            return torch.zeros(shape, device=device)
        if len(shape) == 1:
            return torch.ones(shape, device=device)
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
        tensor = torch.empty(shape, device=device)
        if "lora_A" in name:  # Kaiming uniform with a = sqrt(5), as peft does
            bound = 1 / math.sqrt(shape[1])
            return tensor.uniform_(-bound, bound, generator=generator)
        deviation = min(_STANDARD_DEVIATION, _OUTPUT_DEVIATION / math.sqrt(shape[-1]))
        return tensor.normal_(0.0, deviation, generator=generator)

    return values


def pretrained_values(trial: Trial) -> Values:
    """Values from `model.pretrained`; what the checkpoint does not hold (adapters) is random.

    The checkpoint is held once on the host while the model is built.
    """
    config = config_of(trial.model)
    loaded = auto_class(config).from_pretrained(
        trial.model.pretrained, dtype=DTYPES[trial.precision.param_dtype]
    )
    state = dict(loaded.named_parameters(remove_duplicate=False))
    fresh = random_values(trial.seed)

    def values(name: str, shape: torch.Size, device: torch.device) -> torch.Tensor:
        if name not in state:
            return fresh(name, shape, device)
        tensor = state[name].detach()
        if tensor.shape != shape:  # a Conv1D that became a quantised Linear
            tensor = tensor.t()
        copied: torch.Tensor = tensor.to(device, copy=True)  # on a CPU it is mapped from the file
        return copied

    return values


def values_of(trial: Trial) -> Values:
    """Where the trial's weights come from; only a measurement reads pretrained ones."""
    real = trial.model.reads_weights and trial.method == "measure"
    return pretrained_values(trial) if real else random_values(trial.seed)


def materialise(
    root: nn.Module,
    *,
    names: dict[nn.Parameter, str],
    made: dict[nn.Parameter, nn.Parameter],
    values: Values,
    device: torch.device,
    compute_dtype: torch.dtype,
) -> None:
    """Replaces every meta parameter under `root` by a real one on `device`.

    Args:
        root: a module, whole model or single block.
        names: the names of the model's parameters, by meta parameter.
        made: the parameters made so far, by meta parameter, so that tied parameters stay tied.
        values: where values come from, by canonical name.
        device: where the parameters will live.
        compute_dtype: what 4-bit weights are quantised from and computed in.
    """
    for module in list(root.modules()):  # quantised experts become modules of their own
        for key, meta in list(module._parameters.items()):
            if meta is None or meta.device.type != "meta":
                continue
            if meta not in made:
                shape = _unquantised_shape(module, meta)
                tensor = values(canonical_name(names[meta]), shape, device)
                if isinstance(meta, experts.Experts4bit):
                    made[meta] = experts.quantise(module, key, tensor.to(compute_dtype), meta)
                    continue
                made[meta] = _parameter(module, meta, tensor, compute_dtype)
            module._parameters[key] = made[meta]
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = buffer.to(device)


def _unquantised_shape(module: nn.Module, meta: nn.Parameter) -> torch.Size:
    if isinstance(meta, bnb.nn.Params4bit):
        return torch.Size((module.out_features, module.in_features))  # type: ignore[arg-type]
    return meta.shape


def _parameter(
    module: nn.Module, meta: nn.Parameter, tensor: torch.Tensor, compute_dtype: torch.dtype
) -> nn.Parameter:
    if isinstance(meta, bnb.nn.Params4bit):
        packed, state = bnb.functional.quantize_4bit(
            tensor.to(compute_dtype),
            blocksize=meta.blocksize,
            compress_statistics=meta.compress_statistics,
            quant_type=meta.quant_type,
            quant_storage=meta.quant_storage,
        )
        module.quant_state = state
        return _subclassed(
            bnb.nn.Params4bit,
            packed,
            requires_grad=False,
            quant_state=state,
            blocksize=meta.blocksize,
            compress_statistics=meta.compress_statistics,
            quant_type=meta.quant_type,
            quant_storage=meta.quant_storage,
            module=module,
            bnb_quantized=True,
        )
    if isinstance(meta, bnb.nn.Int8Params):
        if meta.has_fp16_weights:
            wide = tensor.to(meta.dtype)
            return _subclassed(
                bnb.nn.Int8Params,
                wide,
                requires_grad=meta.requires_grad,
                has_fp16_weights=True,
                CB=None,
                SCB=None,
            )
        int8, scales, _ = bnb.functional.int8_vectorwise_quant(tensor.to(torch.float16))
        return _subclassed(
            bnb.nn.Int8Params,
            int8,
            requires_grad=False,
            has_fp16_weights=False,
            CB=int8,
            SCB=scales,
        )
    return nn.Parameter(tensor.to(meta.dtype), requires_grad=meta.requires_grad)


def _subclassed(kind: Any, data: torch.Tensor, *, requires_grad: bool, **attributes: Any) -> nn.Parameter:
    """`data` as bitsandbytes' kind of parameter.

    A fake tensor cannot become one: for it a plain parameter carries the attributes, and bitsandbytes'
    linears ask for nothing more.
    """
    if not isinstance(data, FakeTensor):
        return kind(data, requires_grad=requires_grad, **attributes)  # type: ignore[no-any-return]
    parameter = nn.Parameter(data, requires_grad=requires_grad)
    for name, value in attributes.items():
        setattr(parameter, name, value)
    return parameter
