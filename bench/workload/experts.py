"""Fused experts: the weights of a mixture of experts, as one parameter of three dimensions a projection.

transformers 5 keeps experts so, [experts, rows, columns], and not as linears. What replaces linears passes
over them (bitsandbytes issue 1849), though they are nearly all of such a model's weights. bitsandbytes can
store a parameter of any module in 4 bits, by a parametrization that dequantises all of it when it is read
(bitsandbytes.nn.parametrize); it has no 8-bit form of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import bitsandbytes as bnb
import torch
from bitsandbytes.nn import parametrize as bnb_parametrize
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_A_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k")


class Experts4bit(nn.Parameter):
    """On the meta device: fused experts that will be stored in 4 bits."""

    double_quant: bool
    storage_dtype: torch.dtype


class Quantised(NamedTuple):
    """Fused experts that are stored in 4 bits: the packed parameter, and what dequantises it."""

    packed: nn.Parameter
    state: Any  # bitsandbytes.functional.QuantState

    @property
    def elements(self) -> int:
        """Elements before they were packed."""
        return int(self.state.shape.numel())


def fused_experts(modules: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """The fused experts of `modules` that are not quantised: module, name of the parameter, parameter."""
    for module in modules:
        if isinstance(module, _ConvNd):  # whose kernels have three dimensions, too
            continue
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.ndim == 3:
                yield module, name, parameter


def mark_for_4bit(block: nn.Module, *, double_quant: bool, storage_dtype: torch.dtype) -> None:
    """Replaces the fused experts of a block on meta by parameters that `quantise` knows."""
    for module, name, parameter in list(fused_experts(block.modules())):
        marked = Experts4bit(parameter.data, requires_grad=False)
        marked.double_quant, marked.storage_dtype = double_quant, storage_dtype
        module._parameters[name] = marked


def quantise(module: nn.Module, name: str, values: torch.Tensor, marked: Experts4bit) -> nn.Parameter:
    """Stores `values` [experts, rows, columns] packed in `module`, and dequantises them at each access.

    Returns:
        The packed parameter, which does not train.
    """
    packed, state = bnb.functional.quantize_4bit(
        values,
        compress_statistics=marked.double_quant,
        quant_type="nf4",
        quant_storage=marked.storage_dtype,
    )
    module._parameters[name] = nn.Parameter(packed, requires_grad=False)
    dequantised = bnb_parametrize.Bnb4bitParametrization(state)
    parametrize.register_parametrization(module, name, dequantised, unsafe=True)
    bnb_parametrize._register_parametrization_hooks(module, name)
    kept: nn.Parameter = module.parametrizations[name].original  # type: ignore[index,union-attr]
    return kept


def quantised_experts(model: nn.Module) -> Iterator[Quantised]:
    """The fused experts that are stored in 4 bits."""
    for module in model.modules():
        if isinstance(module, parametrize.ParametrizationList):
            first = module[0]
            if isinstance(first, bnb_parametrize.Bnb4bitParametrization):
                yield Quantised(module.original, first.quant_state)  # type: ignore[arg-type]


def active_shares(model: nn.Module, config: Any) -> dict[nn.Parameter, float]:
    """Of each fused expert parameter, packed or not, the share that works on a token."""
    sizes = {parameter: parameter.shape[0] for _, _, parameter in fused_experts(model.modules())}
    sizes |= {experts.packed: experts.state.shape[0] for experts in quantised_experts(model)}
    text = config.get_text_config(decoder=True)
    experts_of_a_token = _first_number(text, _EXPERTS_A_TOKEN)
    if experts_of_a_token is None:
        return {}
    known = {getattr(text, name, None) for name in _EXPERTS}
    return {p: min(1.0, experts_of_a_token / count) for p, count in sizes.items() if count in known}


def _first_number(config: Any, names: Iterable[str]) -> int | None:
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int)), None)
