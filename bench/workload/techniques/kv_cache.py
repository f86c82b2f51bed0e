"""The key-value cache: keys and values of all tokens so far, which later tokens attend to.

`dynamic` copies keys and values at each step into tensors that are one token longer; `static` allocates
them at their final size with the prompt. Both are transformers' own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import DynamicCache, StaticCache

from bench.workload.state import NotInForceError, Run
from bench.workload.tensors import cache_tensors

_KINDS = {"dynamic": DynamicCache, "static": StaticCache}


def apply(run: Run) -> None:
    """Sets the function that makes a cache; every generation has its own."""
    trial = run.trial
    if not trial.workload.inference:
        return
    config = run.model_config
    run.pass_over = _pass_over
    if trial.kv_cache.name == "static":
        run.new_cache = lambda: StaticCache(config, max_cache_len=trial.cached_tokens)
    else:
        run.new_cache = lambda: DynamicCache(config=config)


def _pass_over(cache: Any, more: int) -> None:
    """Brings the cache to the size that it has after `more` tokens, without running their forwards."""
    for layer in cache.layers:
        if isinstance(cache, StaticCache):
            layer.cumulative_length.add_(more)
            continue
        sequences, heads, tokens, width = layer.keys.shape
        layer.keys = layer.keys.new_empty(sequences, heads, tokens + more, width)
        layer.values = layer.values.new_empty(sequences, heads, tokens + more, width)


def watch(run: Run) -> Callable[[], dict[str, Any]]:
    """The cache's class, and the bytes that one generation's cache held at its end."""
    if not run.trial.workload.inference:
        return dict
    made: list[Any] = []
    make = run.new_cache

    def kept() -> Any:
        made.append(make())
        return made[-1]

    run.new_cache = kept

    def evidence() -> dict[str, Any]:
        run.new_cache = make
        held = sum(tensor.nbytes for tensor in cache_tensors(made[-1])) if made else 0
        if not held or type(made[-1]) is not _KINDS[run.trial.kv_cache.name]:
            raise NotInForceError(f"kv_cache={run.trial.kv_cache.name}: no such cache was filled")
        return {"cache_class": type(made[-1]).__name__, "cache_bytes": held}

    return evidence
