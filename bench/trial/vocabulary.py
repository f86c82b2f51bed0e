"""What a byte can be, and when, and how a trial can end: words that many share. Needs nothing."""

from __future__ import annotations

CATEGORIES = ("parameter", "gradient", "optimizer", "activation", "kv_cache", "temporary", "input")
PHASES = ("forward", "backward", "optimizer", "prefill", "decode")
