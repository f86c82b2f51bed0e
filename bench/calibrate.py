"""Calibration: `python bench/calibrate.py` times this device, so that bench/run.py can predict times on it.

It times operations, products of matrices and the host's own part of a step, which takes about a minute on
a device that nobody else uses, and writes one small file. `bench/run.py method=simulate gpu=NAME`
and `bench/plan.py gpu=NAME` then predict with it.
  name=NAME            what to call it; default the device's own name
  device=auto          cpu, cuda, cuda:1
  threads=N            of a CPU; default all cores. It predicts trials with as many threads
  results_dir=DIR      the file is DIR/calibrations/NAME.json; default results
  drift=0.1            how much a fixed product's time may change meanwhile; beyond it nothing is written,
                       since something else ran on the device, or it grew hot
  brief=false          true: a few operations, in seconds; it shows that all works, and predicts badly
Exit codes: 0; 1 if the device was not steady; 2 if the command line is wrong.
"""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of what is imported before `door.enter`

import logging
import re
import warnings
from pathlib import Path

sys.path[0:1] = [str(Path(__file__).resolve().parents[1])]

_SHAPES = (
    "model.layers=1 model.hidden_size=64 model.heads=2 model.head_dim=32 model.kv_heads=2 "
    "model.intermediate_size=128 model.vocab_size=256 micro_batch_size=2 seq_len=16",
    "model.layers=1 model.hidden_size=256 model.heads=4 model.head_dim=64 model.kv_heads=4 "
    "model.intermediate_size=512 model.vocab_size=2000 micro_batch_size=2 seq_len=128",
    "model.layers=1 model.hidden_size=1024 model.heads=16 model.head_dim=64 model.kv_heads=16 "
    "model.intermediate_size=2048 model.vocab_size=4000 micro_batch_size=4 seq_len=256",
)
_OPERATIONS = (
    "model=llama-tiny",
    "model=llama-tiny precision=bf16 optimizer=adamw_foreach",
    "model=llama-tiny precision=bf16_pure optimizer=adamw_fused",
    "model=llama-tiny precision=int8 lora=on",
    "model=llama-tiny precision=nf4 lora=on optimizer=adamw_fused",
    "model=gpt2 precision=bf16 optimizer=adafactor",
    "model=llama-tiny workload=decode workload.decode_tokens=4 kv_cache=static precision=bf16_pure",
)
_RARER_OPERATIONS = (  # at the outer shapes alone
    "model=llama-tiny precision=fp16 optimizer=sgd optimizer.momentum=0.9",
    "model=llama-tiny precision=int8 optimizer=adamw_8bit",
    "model=gpt2",
    "model=opt-125m precision=bf16",
    "model=mt0-small precision=bf16",
    "model=llama-tiny workload=decode workload.decode_tokens=4",
)
_MINUTE = (
    "model.layers=2 model.hidden_size=64 model.heads=2 model.head_dim=32 model.kv_heads=2 "
    "model.intermediate_size=64 model.vocab_size=64 micro_batch_size=1 seq_len=8"
)
_HOST = (
    *(
        f"model=llama-tiny {words}".strip()
        for words in (
            "",
            "lora=on",
            "precision=bf16",
            "precision=bf16 lora=on",
            "precision=int8 lora=on",
            "precision=nf4 lora=on",
            "checkpointing=on",
            "checkpointing=selective",
            "optimizer=adamw_fused",
            "optimizer=adamw_foreach",
            "optimizer=adamw_8bit",
            "optimizer=sgd",
            "optimizer=adafactor",
            "fsdp=full_shard fsdp.world_size=1",
            "fsdp=full_shard fsdp.world_size=1 optimizer=adamw_fused",
            "fsdp=shard_grad_op fsdp.world_size=1",
            "fsdp=no_shard fsdp.world_size=1",
            "workload=decode workload.decode_tokens=8",
            "workload=decode workload.decode_tokens=8 precision=int8",
            "workload=decode workload.decode_tokens=8 precision=nf4",
        )
    ),
    *(
        f"model={name}{words}"
        for name in ("gpt2", "opt-125m", "mt0-small")
        for words in ("", " precision=bf16")
    ),
)


def main(arguments: list[str]) -> int:
    """Calibrates, writes the file, and returns the exit code."""
    from bench.config.compose import CommandError, trial_from
    from bench.config.key_values import KeyValueError, read_key_values
    from bench.paths import RESULTS

    defaults = {
        "name": "",
        "device": "auto",
        "threads": 0,
        "results_dir": RESULTS,
        "drift": 0.1,
        "brief": False,
    }
    try:
        words = read_key_values(arguments, defaults)
        common = [f"device={words['device']}", "method=simulate"]
        shapes: list[tuple[str, tuple[str, ...]]] = [(shape, _OPERATIONS) for shape in _SHAPES]
        shapes += [(shape, _RARER_OPERATIONS) for shape in (_SHAPES[0], _SHAPES[-1])]
        small = [
            trial_from([*one.split(), *shape.split(), *common]) for shape, ones in shapes for one in ones
        ]
        minute = [trial_from([*one.split(), *_MINUTE.split(), *common[:1]]) for one in _HOST]
    except (KeyValueError, CommandError) as error:
        print(f"bench/calibrate.py: {error}", file=sys.stderr)
        return 2
    grid: tuple[tuple[int, ...], ...] | None = None
    if words["brief"]:
        small, minute, grid = small[:1], minute[:1], ((1, 64),) * 3
    from rich.console import Console

    from bench.machine import accelerator, host
    from bench.methods.calibrate import calibrate

    try:
        device = accelerator.resolve(words["device"])
    except ValueError as error:
        print(f"bench/calibrate.py: {error}", file=sys.stderr)
        return 2
    threads = words["threads"] or len(host.cores())
    name = words["name"] or _name(accelerator.hardware(device)["device_name"])
    warnings.simplefilter("ignore")  # libraries' own, which would break into the line of progress
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    console = Console(stderr=True)
    with console.status("calibrating") as status:
        found = calibrate(
            name, device, threads, small, minute, lambda what: status.update(f"calibrating: {what}"), grid
        )
    drift = found.made_with["drift"]
    if drift > words["drift"]:
        print(
            f"bench/calibrate.py: a fixed product took {drift:.0%} longer once than another time: "
            f"something else runs on this device, or it is too hot. Nothing was written; try again, or say "
            f"drift={drift + 0.05:.2f}",
            file=sys.stderr,
        )
        return 1
    path = words["results_dir"] / "calibrations" / f"{name}.json"
    found.write(path)
    counts = f"{len(found.operations)} operations, {len(found.products)} products"
    print(f"{counts}, {len(found.host)} host samples: {path}")
    for failed, reason in found.failed.items():
        print(f"not timed: {failed}: {reason}", file=sys.stderr)
    print(f"Use it: python bench/run.py method=simulate device={device.type} gpu={path} ...")
    return 0


def _name(device_name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")


if __name__ == "__main__":
    from bench.config import door

    sys.exit(door.enter(main, __doc__))
