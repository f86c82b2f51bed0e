"""Precision: dtypes of weights and arithmetic, and quantised linears.

fp32, fp16_pure and bf16_pure need nothing here: the model was made in that dtype. AMP (fp16, bf16) is
autocast in the step plus, for fp16, a GradScaler; bf16_autocast and fp16_autocast are the same over weights
of 16 bits. int8 and nf4 replace the blocks' linears by
bitsandbytes' before any weight exists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bench.trial.outcome import CannotExistError
from bench.trial.spec import Trial
from bench.workload.architectures import DTYPES, blocks_of
from bench.workload.experts import Experts4bit, fused_experts, mark_for_4bit, quantised_experts
from bench.workload.state import NotInForceError, Run
from bench.workload.tensors import computes_as_linear, parameter_sizes, quantised_linears, tensors_in

_MOST_PLAIN = 0.1  # of the blocks' matrices: routers, convolutions and state matrices are never quantised

# Linears whose weight the model's own code multiplies or clamps itself, which a packed one does not allow:
# Gemma 3n's AltUp, Mamba's time steps, LongCat's router
_READ_BY_THE_MODEL = ("prediction_coefs", "correction_coefs", "dt_proj", "router.classifier")


class Int8Linear(bnb.nn.Linear8bitLt):
    """Linear8bitLt that computes in the trial's compute dtype, on inputs flattened to two dimensions.

    bitsandbytes' int8 linear is unknown to autocast and takes whatever dtype the norms leave it; its CPU
    backward with trainable weights fails on three-dimensional inputs and on mixed dtypes; and it narrows a
    bias in place to the compute dtype, which a bias that trains must not be: it is added here.
    """

    compute_dtype: torch.dtype
    bias: nn.Parameter | None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [..., in_features] -> [..., out_features] in the compute dtype."""
        flat = x.reshape(-1, x.shape[-1]).to(self.compute_dtype)
        bias = self.bias
        if bias is not None and bias.requires_grad:
            self.bias = None
            try:
                out = super().forward(flat)
            finally:
                self.bias = bias
            out = out + bias.to(out.dtype)
        else:
            out = super().forward(flat)
        return out.view(*x.shape[:-1], -1)  # type: ignore[no-any-return]


def apply(run: Run) -> None:
    """Replaces the linears of `_homes_of_linears` by quantised ones, on meta.

    Raises:
        CannotExistError: there is none.
    """
    trial = run.trial
    run.scaler = torch.amp.GradScaler(run.device.type, enabled=trial.precision.loss_scaling)
    if trial.precision.quantization == "none":
        return
    for name, block in _homes_of_linears(run.model).items():
        for inner, module in list(block.named_modules()):
            if (
                computes_as_linear(module)
                and not inner.endswith(_READ_BY_THE_MODEL)
                and not _is_kept(run.model, f"{name}.{inner}")
            ):
                quantised = _quantised(module, trial)
                run.model.set_submodule(f"{name}.{inner}".rstrip("."), quantised)
        if trial.precision.quantization == "nf4":
            storage = _storage_dtype(trial)
            mark_for_4bit(block, double_quant=trial.precision.double_quant, storage_dtype=storage)
        elif any(fused_experts(block.modules())):
            raise CannotExistError(
                "bitsandbytes stores linears in 8 bits, and transformers keeps its experts, nearly all "
                "of its weights, in other parameters; precision=nf4 reaches them"
            )
    in_experts = any(isinstance(p, Experts4bit) for p in run.model.parameters())
    if not quantised_linears(run.model) and not in_experts:
        raise CannotExistError(
            f"{run.model_config.model_type} has no linear that bitsandbytes could quantise"
        )
    # peft asks for these to pick the adapter that understands quantised linears
    run.model.is_loaded_in_8bit = trial.precision.quantization == "int8"  # type: ignore[assignment]
    run.model.is_loaded_in_4bit = trial.precision.quantization == "nf4"  # type: ignore[assignment]


def _is_kept(model: Any, name: str) -> bool:
    """Whether transformers leaves this module in 32 bits, and its quantisers leave it alone (T5's `wo`).

    T5's code casts the input to the dtype of that weight: packed to four bits, its values would be lost.
    """
    return any(f".{kept}." in f".{name}." for kept in model._keep_in_fp32_modules or ())


def _homes_of_linears(model: Any) -> dict[str, nn.Module]:
    """Where linears are quantised, by name: the blocks, without embeddings and head.

    Where transformers marks no module as a block, it is every linear by itself but the head, as in
    transformers' own quantiser (get_keys_to_not_convert in transformers/quantizers/base.py).
    """
    if blocks := blocks_of(model):
        return blocks
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and "lora_" not in name
    }


def _storage_dtype(trial: Trial) -> torch.dtype:
    """What packed 4-bit weights are stored as: fully_shard shards the dtype that it computes in."""
    return DTYPES[trial.precision.compute_dtype] if trial.fsdp.shards else torch.uint8


def _quantised(module: nn.Module, trial: Trial) -> nn.Module:
    precision = trial.precision
    if isinstance(module, Conv1D):
        in_features, out_features = module.weight.shape
    else:
        in_features, out_features = module.in_features, module.out_features
    dtype = DTYPES[precision.param_dtype]
    has_bias = module.bias is not None
    with torch.device("meta"):
        if precision.quantization == "nf4":
            linear = bnb.nn.Linear4bit(
                in_features,
                out_features,
                has_bias,
                compute_dtype=DTYPES[precision.compute_dtype],
                compress_statistics=precision.double_quant,
                quant_type="nf4",
                quant_storage=_storage_dtype(trial),
            )
            # On CPUs with AVX512-BF16 bitsandbytes repacks weights for inference, and fails where a row is
            # not a whole number of blocks; what is measured must not depend on that.
            linear.support_avx512bf16_for_cpu = False
        else:
            trainable = not trial.quantises_weights
            linear = Int8Linear(
                in_features,
                out_features,
                has_bias,
                has_fp16_weights=trainable,
                threshold=precision.int8_threshold,
            )
            # without autocast it takes and returns the stream's dtype, as bitsandbytes' own does
            stream_dtype = precision.compute_dtype if precision.runs_autocast else precision.param_dtype
            linear.compute_dtype = DTYPES[stream_dtype]
            if trainable:
                linear.weight = bnb.nn.Int8Params(
                    linear.weight.data.to(dtype), requires_grad=True, has_fp16_weights=True
                )
        if has_bias:
            linear.bias = nn.Parameter(linear.bias.data.to(dtype))
    return linear  # type: ignore[no-any-return]


def _quantised_share(run: Run) -> dict[str, float]:
    """The base model's weights, in elements, and how many of them are stored or multiplied quantised.

    Raises:
        NotInForceError: most of the blocks' matrices are not.
    """
    sizes = parameter_sizes(run.model)
    quantised = {m.weight for m in quantised_linears(run.model)}
    quantised |= {experts.packed for experts in quantised_experts(run.model)}
    names = {p: n for n, p in run.model.named_parameters() if "lora_" not in n}
    total = sum(sizes[p] for p in names)
    share = sum(sizes[p] for p in names if p in quantised)
    homes = _homes_of_linears(run.model).values()
    matrices = {
        p
        for home in homes
        for p in home.parameters()
        if p in names and (p.ndim > 1 or p in quantised) and not _is_kept(run.model, names[p])
    }
    plain = sorted(matrices - quantised, key=lambda p: -sizes[p])
    if sum(sizes[p] for p in plain) > _MOST_PLAIN * sum(sizes[p] for p in matrices):
        raise NotInForceError(
            f"precision={run.trial.precision.name}: {share / total:.0%} of the weights are quantised; "
            f"{names[plain[0]]} and others of the blocks are not"
        )
    return {"base_params": total, "quantised_params": share, "quantised_share": share / total}


def _outliers(modules: list[nn.Module]) -> dict[str, float]:
    """The share of columns that LLM.int8 multiplied in 16 bits, of those that its kernels looked at."""
    looked = [m for m in modules if isinstance(m, Int8Linear) and m.state.idx is not None]
    if not looked:
        return {}
    columns = sum(m.in_features for m in looked)
    return {"int8_outlier_share": sum(m.state.idx.numel() for m in looked) / columns}


def _dtype_of(output: Any) -> str:
    """The dtype of a module's output; of several tensors, as a router returns them, the first one's."""
    return _name_of(next(tensors_in((output,))).dtype)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def watch(run: Run) -> Callable[[], dict[str, Any]]:
    """Dtypes of the parameters, of what the blocks' linears put out and of autocast; quantised modules."""
    precision, device_type = run.trial.precision, run.device.type
    seen: set[str] = set()
    autocast_seen: set[str] = set()
    homes = _homes_of_linears(run.model).values()
    linears = [m for home in homes for m in home.modules() if isinstance(m, nn.Linear | Conv1D)]

    def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen.add(_dtype_of(output))
        if torch.is_autocast_enabled(device_type):
            autocast_seen.add(_name_of(torch.get_autocast_dtype(device_type)))

    hooks = [module.register_forward_hook(look) for module in linears]

    def evidence() -> dict[str, Any]:
        for hook in hooks:
            hook.remove()
        expected = {precision.compute_dtype} if run.trial.runs_autocast and linears else set()
        if autocast_seen != expected:
            raise NotInForceError(
                f"precision={precision.name}: autocast to {sorted(autocast_seen)}, not {sorted(expected)}"
            )
        modules = quantised_linears(run.model)
        asked = precision.quantization
        if asked != "none" and not modules and not any(quantised_experts(run.model)):
            raise NotInForceError(f"precision={precision.name}: no module was quantised")
        dtypes = Counter(_name_of(p.dtype) for p in run.model.parameters() if p.numel())
        found: dict[str, Any] = {
            "parameter_dtypes": dict(dtypes),
            "linear_output_dtypes": sorted(seen),
        }
        if autocast_seen:
            found["autocast_dtypes"] = sorted(autocast_seen)
        if asked != "none":
            found[f"{asked}_modules"] = len(modules)
            if experts := list(quantised_experts(run.model)):
                found[f"{asked}_experts"] = len(experts)
            found |= _quantised_share(run)
            stored: set[Any] = {m.weight.dtype for m in modules}
            found["quantised_weight_dtypes"] = sorted(_name_of(dtype) for dtype in stored)
            found |= _outliers(modules)
        if precision.loss_scaling:
            found["loss_scaling"] = run.scaler.is_enabled()
        return found

    return evidence
