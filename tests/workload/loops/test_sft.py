"""loop=sft: the same step by TRL's SFTTrainer, an extra: but for one test they run where TRL is installed.

A test that begins with `test_library` holds what a release of TRL may change.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from bench.analysis.loops import mechanisms
from bench.analysis.studies import step_words
from bench.machine import provenance
from bench.methods.measure import allocator_pass
from bench.methods.simulate import simulate
from bench.trial import skip_rules
from bench.trial.columns import Columns
from bench.trial.platform import CPU, CUDA
from bench.trial.skip_rules import skip_reason
from bench.workload.build import build
from bench.workload.loops.plan import Plan, unwatched
from bench.workload.loops.train_step import carry_out
from tests.conftest import SHORT, make_trial

DEVICE = torch.device("cpu")
SFT = ("loop=sft", "loss=chunked", SHORT)

with_trl = pytest.mark.skipif(find_spec("trl") is None, reason="needs pip install -e '.[sft]'")


def losses(*words: str) -> list[float]:
    def plan() -> Plan[list[float]]:
        found = []
        for _ in range(3):
            found.append((yield unwatched).item())
        return found

    return carry_out(build(make_trial(SHORT, *words), DEVICE), plan())


def simulated(*words: str) -> Columns:
    return simulate(make_trial("method=simulate", *SFT, *words), CPU).columns


def test_without_trl_it_is_skipped_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skip_rules, "find_spec", lambda _name: None)
    assert "pip install -e '.[sft]'" in (skip_reason(make_trial(*SFT), CPU, 1) or "")
    assert skip_reason(make_trial("loop=trainer", SHORT), CPU, 1) is None


def test_a_row_that_was_skipped_does_not_stand_once_trl_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provenance.software()  # is kept: with the versions that there really are
    versions: dict[str, str | None] = {"trl": None}
    monkeypatch.setattr(provenance, "_version", versions.get)
    before = provenance.fingerprint(2)
    versions["trl"] = "1.16.0"
    assert provenance.fingerprint(2) != before


def test_the_report_tells_its_mechanisms_from_the_trainers() -> None:
    found = {"outputs_copied_to_float32": True}
    row = {
        "evidence": json.dumps(found),
        "facts": {"max_grad_norm": 1.0},
        "optimizer": "adamw",
        "fsdp": "off",
    }
    trainer, sft = (
        " ".join(mechanisms(row | {"loop": name}, row | {"loop": name})) for name in ("trainer", "sft")
    )
    assert "copies 16-bit outputs" in trainer
    assert "copies 16-bit outputs" not in sft
    assert "mask of ones" in sft
    assert step_words("loop", {"loop.name": "sft"}) == "SFTTrainer"
    assert (
        step_words("loss", {"loss.name": "chunked", "loss.chunks": 8, "loop.name": "sft"})
        == "loss in TRL's chunks"
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("loss=full", "choose loss=chunked"),
        ("loss=full model=mt0-xl", "an encoder-decoder does not"),
        ("loss=chunked checkpointing=selective", "TRL's own"),
        ("loss=chunked offload=activations", "TRL's own"),
        ("loss=chunked precision=nf4 lora=on", "adapters of a quantised base in bfloat16"),
        ("loss=chunked precision=fp16", "accelerate ignores fp16=True"),
        ("loss=chunked workload=prefill", "loop=sft is of workload=train"),
    ],
)
def test_what_it_does_otherwise_is_skipped(
    words: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skip_rules, "find_spec", lambda _name: "found")
    assert reason in (skip_reason(make_trial("loop=sft", *words.split()), CPU, 1) or "")


def test_its_kernels_on_a_gpu_are_measured_not_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skip_rules, "find_spec", lambda _name: "found")
    assert "Triton" in (skip_reason(make_trial("method=simulate", *SFT), CUDA, 1) or "")
    assert skip_reason(make_trial(*SFT), CUDA, 1) is None


@with_trl
@pytest.mark.parametrize(
    ("words", "tolerance"),
    [
        ("grad_accum_steps=2 max_grad_norm=0.5", 1e-5),
        ("precision=bf16 lora=on checkpointing=on", 1e-4),  # TRL's backward sums its tiles in float32
    ],
)
def test_the_losses_are_those_of_the_bare_loop(words: str, tolerance: float) -> None:
    """With other micro-steps and gradients later losses differ, and so they do with another order."""
    same = ("loss=chunked", "optimizer.weight_decay=0", *words.split())
    bare, sft = (losses(f"loop={name}", *same) for name in ("bare", "sft"))
    assert sft == pytest.approx(bare, rel=tolerance)
    assert sft[2] < sft[0]


@with_trl
@pytest.mark.parametrize(
    "words",
    [
        "precision=bf16 lora=on checkpointing=on",
        "precision=nf4 precision.compute_dtype=bfloat16 lora=on lora.dtype=auto",
        "fsdp=no_shard fsdp.world_size=2",
    ],
)
def test_the_simulated_peak_is_the_allocators(words: str) -> None:
    found = simulated(*words.split())
    assert found["evidence"]["loop_class"] == "SFTTrainer"
    assert found["evidence"]["logits_dtypes"] == []
    if "fsdp" not in words:
        counted = allocator_pass(make_trial(*SFT, *words.split()), DEVICE, 0, steps=1)
        assert found["tracked_peak_bytes"] == pytest.approx(counted["peak_allocated_bytes"], rel=1e-3)


@with_trl
def test_the_arguments_of_a_row_can_be_pasted() -> None:
    import trl

    run = build(make_trial(*SFT, "max_grad_norm=2"), DEVICE)
    kept = json.loads(json.dumps(run.trainer.arguments))
    ours, theirs = vars(run.trainer.trainer.args), vars(trl.SFTConfig("folder", **kept))
    own = ("output_dir", "accelerator_config", "distributed_state", "logging_dir")
    assert {k: v for k, v in ours.items() if k not in own} == {
        k: v for k, v in theirs.items() if k not in own
    }
    assert theirs["bf16"] is theirs["gradient_checkpointing"] is False


@with_trl
def test_library_defaults_that_change_memory() -> None:
    """Where nothing is said bf16 and checkpointing are on: a trial that has neither says so."""
    import trl

    said: dict[str, Any] = {"use_cpu": True, "report_to": "none"}
    config = trl.SFTConfig("folder", **said)
    assert config.bf16
    assert config.gradient_checkpointing
    assert config.packing is False


@with_trl
def test_library_buffer_is_wider_than_a_small_vocabulary() -> None:
    """32,768 words for each of the tokens that have a next one, though llama-tiny has 1,024."""
    found = simulated("micro_batch_size=2")
    buffer = 2 * (make_trial(*SFT).seq_len - 1) * 32768 * 4
    held = found["temporary_max_bytes"] or 0
    assert buffer <= held < 1.5 * buffer
