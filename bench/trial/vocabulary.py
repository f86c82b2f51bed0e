"""The memory categories, the phases of a step, and what a precision means in words. Needs nothing."""

from __future__ import annotations

CATEGORIES = ("parameter", "gradient", "optimizer", "activation", "kv_cache", "temporary", "input")
PHASES = ("forward", "backward", "optimizer", "prefill", "decode")


def precision_words(param_dtype: str, compute_dtype: str, quantization: str) -> str:
    """What a precision means: in what weights are kept, and in what the arithmetic is done.

    The name alone misleads: under `bf16` weights stay in 32 bits, as in the literature on mixed precision,
    and `bf16_pure` is what others call a model in bf16.
    """
    arithmetic = f"{compute_dtype} arithmetic"
    if quantization != "none":
        kept = {"int8": "8-bit where frozen", "nf4": "4-bit"}[quantization]
        return f"{kept} weights in the blocks' linears, {param_dtype} elsewhere, {arithmetic}"
    if param_dtype == compute_dtype:
        return f"{param_dtype} weights and arithmetic"
    return f"{param_dtype} weights, {arithmetic} (mixed precision, autocast)"
