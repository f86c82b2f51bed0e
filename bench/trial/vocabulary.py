"""The memory categories, the phases of a step, and what a precision means in words. Needs nothing."""

from __future__ import annotations

CATEGORIES = ("parameter", "gradient", "optimizer", "activation", "kv_cache", "temporary", "input")
PRECISION_COLUMNS = ("param_dtype", "compute_dtype", "quantization", "autocast")  # of `precision_words`
TECHNIQUE_AXES = (
    "precision",
    "lora",
    "checkpointing",
    "fsdp",
    "offload",
    "optimizer",
    "loss",
    "loop",
    "kv_cache",
)
PHASES = ("forward", "backward", "optimizer", "prefill", "decode")


def precision_words(
    param_dtype: str, compute_dtype: str, quantization: str, autocast: bool | None = None
) -> str:
    """What a precision means: in what weights are kept, and in what the arithmetic is done.

    The name alone misleads: under `bf16` weights stay in 32 bits, as in the literature on mixed precision,
    and `bf16_pure` is what others call a model in bf16.

    Args:
        param_dtype: of the weights that are not quantised.
        compute_dtype: of the matrix products.
        quantization: of the blocks' linears.
        autocast: whether the forward runs under autocast; None in rows of before there was the column.
    """
    arithmetic = f"{compute_dtype} arithmetic"
    expected = param_dtype != compute_dtype
    if autocast not in (None, expected):
        arithmetic += " under autocast" if autocast else " without autocast"
    if quantization != "none":
        kept = {"int8": "8-bit where frozen", "nf4": "4-bit"}[quantization]
        return f"{kept} weights in the blocks' linears, {param_dtype} elsewhere, {arithmetic}"
    if not expected:
        and_arithmetic = f", {arithmetic}" if autocast else " and arithmetic"
        return f"{param_dtype} weights{and_arithmetic}"
    return f"{param_dtype} weights, {arithmetic} (mixed precision, autocast)"
