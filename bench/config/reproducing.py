"""The words of a job that define its trial, and make the command that reproduces its row.

In: the overrides of one job, those included that the door adds.
"""

from __future__ import annotations

import shlex

from bench.config.job_options import NOT_REPRODUCED

LAUNCHER = "hydra/launcher"


def reproducing_words(overrides: list[str]) -> list[str]:
    """The overrides that define the trial, without those that the door adds or that say where it runs."""
    keys = (o.lstrip("+").partition("=")[0] for o in overrides)
    return [
        override
        for override, key in zip(overrides, keys, strict=True)
        if key not in {*NOT_REPRODUCED, "hydra.mode", LAUNCHER} and not key.startswith("hydra.launcher.")
    ]


def reproducing_command(overrides: list[str]) -> str:
    """The command of which a job with these overrides is one trial, without its replicate."""
    return shlex.join(["python", "bench/run.py", *reproducing_words(overrides)])


def replicate_of(overrides: list[str]) -> int:
    """Which execution of its trial a job with these overrides is."""
    numbers = [word.partition("=")[2] for word in overrides if word.startswith("replicate=")]
    return int(numbers[0]) if numbers else 0
