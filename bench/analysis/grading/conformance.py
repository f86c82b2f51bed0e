"""Conformance: every architecture of the installed transformers, trained, measured and simulated.

In: names of architectures. Out: a `Verdict` for each on each axis, one JSON a line, so that a walk that was
interrupted goes on. Each architecture is shrunk (`shrunken_configs.py`). Plain transformers trains it for a
step; then it is measured by the last pass of method=measure, in which torch's CPU allocator counts, and
simulated, with and without techniques. `conformance_table.py` makes a table of the verdicts.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.trial.outcome import in_one_line

if TYPE_CHECKING:
    from bench.trial.spec import Trial

AXES = {
    "fp32": ("precision=fp32",),
    "bf16_pure, LoRA, checkpointing": ("precision=bf16_pure", "lora=on", "checkpointing=on"),
    "nf4, LoRA": ("precision=nf4", "precision.param_dtype=bfloat16", "lora=on"),
}
# A dense model, experts, a state space, a hybrid, an encoder with a decoder, latent attention, a sliding
# window, learned positions.
DIVERSE = ("qwen3", "mixtral", "mamba2", "lfm2", "bart", "deepseek_v3", "gemma3_text", "openai-gpt")
TOKENS = ("micro_batch_size=2", "seq_len=32")
WITHIN = 0.01  # an error beyond this does not conform
_PROCESSES = 2


@dataclass(frozen=True)
class Verdict:
    """What came of one architecture on one axis.

    Attributes:
        architecture: its `model_type`.
        axis: a key of `AXES`; empty where plain transformers does not train it.
        status: `ok` where both peaks are known, `skipped` where the two cannot be combined in plain
            transformers, peft or bitsandbytes either, `untrained` where plain transformers does not train
            it on a CPU, `unmeasured` or `unsimulated`.
        reason: why it is not `ok`.
        measured_bytes: the CPU allocator's peak in a steady step.
        simulated_bytes: the simulated peak.
    """

    architecture: str
    axis: str = ""
    status: str = "ok"
    reason: str = ""
    measured_bytes: int = 0
    simulated_bytes: int = 0

    @property
    def error(self) -> float:
        """The simulation's error, as a fraction of the measured peak."""
        return self.simulated_bytes / self.measured_bytes - 1

    @property
    def conforms(self) -> bool:
        """Whether it is measured and simulated, and the two agree."""
        return self.status == "ok" and abs(self.error) <= WITHIN


def untrained(model_type: str, dtype: str = "float32") -> str | None:
    """Why plain transformers does not train the shrunken architecture on a CPU; None if it does."""
    import torch

    from bench.analysis.grading.shrunken_configs import shrunken
    from bench.workload.architectures import auto_class

    try:
        config = shrunken(model_type)
        config.use_cache = False
        model = auto_class(config).from_config(config, dtype=getattr(torch, dtype)).train()
        tokens = torch.randint(config.get_text_config(decoder=True).vocab_size, (2, 32))
        optimizer = torch.optim.AdamW(model.parameters())
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    except Exception as error:  # of whatever kind an architecture raises
        return in_one_line(error)
    return None


def verdict(model_type: str, axis: str) -> Verdict:
    """Measures and simulates an architecture that plain transformers trains, on one axis."""
    import torch

    from bench.analysis.grading.shrunken_configs import shrunken
    from bench.methods.measure import allocator_pass
    from bench.methods.simulate import simulate
    from bench.trial.outcome import CannotExistError
    from bench.trial.platform import CPU

    found = Verdict(model_type, axis)
    stage = "unmeasured"
    try:
        trial = _trial_of(shrunken(model_type), axis)
        columns = allocator_pass(trial, torch.device("cpu"), 0, 1)
        found = replace(found, measured_bytes=columns["peak_allocated_bytes"] or 0)
        stage = "unsimulated"
        columns = simulate(replace(trial, method="simulate"), CPU).columns
        return replace(found, simulated_bytes=columns["peak_allocated_bytes"] or 0)
    except CannotExistError as error:
        status = "skipped" if stage == "unmeasured" else stage
        return replace(found, status=status, reason=str(error))
    except Exception as error:  # of whatever kind an architecture raises
        if stage == "unmeasured" and axis != "fp32" and (reason := untrained(model_type, "bfloat16")):
            said = f"plain transformers does not train it in bfloat16: {reason}"
            return replace(found, status="skipped", reason=said)
        return replace(found, status=stage, reason=in_one_line(error))


def _trial_of(config: Any, axis: str) -> Trial:
    """What `run.py model=FOLDER` and the axis' words would execute, with one step to warm up."""
    from bench.analysis.grading.accuracy_grid import BRIEF
    from bench.config.compose import trial_from

    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        trial = trial_from([*BRIEF, "timing.warmup_steps=1", *TOKENS, f"model={folder}", *AXES[axis]])
    return replace(trial, model=replace(trial.model, name=config.model_type))


def verdicts(model_type: str, axes: list[str]) -> list[Verdict]:
    """The verdicts on one architecture: one if plain transformers does not train it, else one an axis."""
    reason = untrained(model_type)
    if reason is not None:
        return [Verdict(model_type, status="untrained", reason=reason)]
    return [verdict(model_type, axis) for axis in axes]


def walk(names: list[str], path: Path) -> Iterator[str]:
    """Adds the verdicts that `path` does not hold yet; yields each architecture's name when it is done.

    Args:
        names: architectures.
        path: one verdict a line, as JSON; made if it is missing.
    """
    known = {(found.architecture, found.axis) for found in read(path)}
    missing = {name: [axis for axis in AXES if (name, axis) not in known] for name in names}
    path.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")  # README: what CI grades
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(_PROCESSES, context, set_up) as pool:
        tasks = {
            pool.submit(verdicts, name, axes): name
            for name, axes in missing.items()
            if axes and (name, "") not in known
        }
        for done in as_completed(tasks):
            with path.open("a") as file:
                file.writelines(json.dumps(asdict(found)) + "\n" for found in done.result())
            yield tasks[done]


def read(path: Path) -> list[Verdict]:
    """The verdicts of a walk; none if there was no walk."""
    if not path.exists():
        return []
    return [Verdict(**json.loads(line)) for line in path.read_text().splitlines()]


def set_up() -> None:
    """In each process: one thread, as the trials say, and none of the architectures' own warnings."""
    import torch
    import transformers

    from bench.config.compose import register_resolvers

    register_resolvers()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("torch").setLevel(logging.CRITICAL)
