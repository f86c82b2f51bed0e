"""What a byte can be, and when: words that the tracker and the row share. Needs nothing, so both may."""

CATEGORIES = ("parameter", "gradient", "optimizer", "activation", "kv_cache", "temporary", "input")
PHASES = ("forward", "backward", "optimizer", "prefill", "decode")
