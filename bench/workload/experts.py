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


def active_share(config: Any, experts: int) -> float:
    """The share of `experts` that work on a token, by the configuration of the text model."""
    text = config.get_text_config(decoder=True)
    chosen = next(
        (n for key in _EXPERTS_A_TOKEN if isinstance(n := getattr(text, key, None), int)), experts
    )
    return min(1.0, chosen / experts)
