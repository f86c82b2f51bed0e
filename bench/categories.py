"""What a byte can be, and when, and how a trial can end: words that many share. Needs nothing."""

CATEGORIES = ("parameter", "gradient", "optimizer", "activation", "kv_cache", "temporary", "input")
PHASES = ("forward", "backward", "optimizer", "prefill", "decode")
FINISHED = ("ok", "oom", "skipped")  # what will not change when it runs again
STATUSES = ("ok", "oom", "skipped", "timeout", "error")  # better first
