"""The memory categories, and the phases of a step: words that many modules share. Needs nothing."""

from __future__ import annotations

CATEGORIES = ("parameter", "gradient", "optimizer", "activation", "kv_cache", "temporary", "input")
PHASES = ("forward", "backward", "optimizer", "prefill", "decode")
