"""loop=trainer: the same step by transformers' Trainer, and each thing that is known to differ.

A test that begins with `test_library` holds what a release of transformers, accelerate or peft may change:
where it fails, what README and `bench/analysis/loops.py` say of the Trainer is no longer true.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import bitsandbytes as bnb
import pytest
import torch
import torch.distributed as dist
import transformers
from accelerate import Accelerator, DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.tensor import DTensor

from bench.methods.measure import allocator_pass
from bench.methods.simulate import simulate
from bench.trial.columns import Columns
from bench.trial.platform import CPU, CUDA
from bench.trial.skip_rules import skip_reason
from bench.workload.build import build
from bench.workload.loops.plan import Plan, unwatched
from bench.workload.loops.train_step import carry_out
from bench.workload.loops.trainer import _forget
from bench.workload.state import NotInForceError, Run
from bench.workload.techniques import checkpointing, loop
from tests.conftest import SHORT, make_trial

DEVICE = torch.device("cpu")
EMBEDDING, NORMS = (
    1024 * 128,
    5 * 128,
)  # parameters of llama-tiny: one of its two large matrices, and its norms


def losses(run: Run, steps: int = 3) -> list[float]:
    def plan() -> Plan[list[float]]:
        found = []
        for _ in range(steps):
            found.append((yield unwatched).item())
        return found

    return carry_out(run, plan())


def simulated(*words: str) -> Columns:
    return simulate(make_trial("method=simulate", SHORT, *words), CPU).columns


@pytest.mark.parametrize(
    "words",
    [
        "grad_accum_steps=2 max_grad_norm=0.5",
        "precision=bf16 lora=on checkpointing=on",
        "loss=chunked grad_accum_steps=3 optimizer=adamw_fused",
        "optimizer.in_backward=true optimizer=sgd",
    ],
)
def test_the_losses_are_those_of_the_bare_loop(words: str) -> None:
    """Later steps' losses hang on the gradients of earlier ones, and on the tokens' order."""
    bare, trainer = (
        losses(build(make_trial(SHORT, "optimizer.weight_decay=0", f"loop={name}", *words.split()), DEVICE))
        for name in ("bare", "trainer")
    )
    assert trainer == pytest.approx(bare, rel=1e-5)
    assert trainer[2] < trainer[0]


def test_library_peft_widens_what_is_not_quantised_and_the_peak_is_the_allocators() -> None:
    """No parameter stays in 16 bits. Other simulated peaks are graded (`accuracy_grid.py`)."""
    words = ("loop=trainer", "precision=nf4", "precision.param_dtype=bfloat16", "lora=on")
    counted = allocator_pass(make_trial(SHORT, *words), DEVICE, 0, steps=1)["peak_allocated_bytes"]
    found = simulated(*words)
    assert found["tracked_peak_bytes"] == pytest.approx(counted, rel=1e-3)
    assert found["evidence"]["parameter_dtypes"] == {"float32": 7 + 28, "uint8": 14}


def test_the_arguments_of_a_row_can_be_pasted() -> None:
    run = build(make_trial("loop=trainer", "precision=bf16", "checkpointing=on", "max_grad_norm=2"), DEVICE)
    pasted = transformers.TrainingArguments(**json.loads(json.dumps(run.trainer.arguments)))
    ours, theirs = vars(run.trainer.trainer.args), vars(pasted)
    own = ("output_dir", "accelerator_config", "distributed_state", "logging_dir")
    assert {k: v for k, v in ours.items() if k not in own} == {
        k: v for k, v in theirs.items() if k not in own
    }
    assert pasted.bf16
    assert pasted.max_grad_norm == 2.0
    assert "output_dir" not in run.trainer.arguments


def test_a_loop_that_did_not_step_is_not_in_force() -> None:
    run = build(make_trial(SHORT, "loop=trainer", "optimizer=adamw_foreach"), DEVICE)
    with pytest.raises(NotInForceError, match="did not run the step"):
        loop.watch(run)()

    def plan() -> Plan[dict[str, Any]]:
        yield unwatched
        evidence = loop.watch(run)
        recomputed = checkpointing.watch(run)
        yield unwatched
        return evidence() | recomputed()

    found = carry_out(run, plan())
    assert found["loop_class"] == "Trainer"
    assert found["optimizer_passed"] is True, "TrainingArguments have no word for adamw_foreach"
    assert found["outputs_copied_to_float32"] is False, "they are in 32 bits"
    assert found["recomputed_blocks"] == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("precision=fp16", "accelerate ignores fp16=True on device=cpu"),
        ("fsdp=full_shard fsdp.world_size=2", "replicates the model"),
        ("checkpointing=selective", "no word for checkpointing=selective"),
        ("offload=activations", "no word for offload=activations"),
        ("keep_outputs=true", "no word for keep_outputs"),
        ("workload=prefill", "loop=trainer is of workload=train"),
        ("method=estimate", "method=simulate runs the Trainer's code"),
    ],
)
def test_what_the_trainer_cannot_be_told_is_skipped(words: str, reason: str) -> None:
    assert reason in (skip_reason(make_trial("loop=trainer", *words.split()), CPU, 2) or "")


def test_fp16_scales_losses_where_it_is_simulated_for_a_gpu() -> None:
    trial = make_trial("method=simulate", "loop=trainer", "precision=fp16", SHORT)
    assert skip_reason(trial, CUDA, 0) is None
    evidence = simulate(trial, CUDA).columns["evidence"]
    assert evidence["loss_scaling"] is True
    assert evidence["autocast_dtypes"] == ["float16"]


def test_fsdp_of_a_gpu_shards_and_widens_16_bit_weights() -> None:
    """Half of the weights in float32, though they were made in 16 bits; one block at a time is gathered."""
    words = ("method=simulate", SHORT, "precision=bf16_autocast", "fsdp=full_shard", "fsdp.world_size=2")
    trial = make_trial("loop=trainer", *words)
    assert skip_reason(trial, CUDA, 0) is None
    found = simulate(trial, CUDA).columns
    assert found["evidence"]["sharded_blocks"] == 2
    assert found["evidence"]["parameter_dtypes"] == {"float32": 21}
    assert found["evidence"]["parameter_bytes_held"] * 2 == found["param_count"] * 4
    assert found["gathered_max_bytes"] == pytest.approx((4 * 128 * 128 + 3 * 128 * 352) * 2, rel=0.01)


def test_library_defaults_that_change_memory() -> None:
    """Whoever says nothing gets these: max_grad_norm=1 optimizer=adamw_fused."""
    arguments = transformers.TrainingArguments(use_cpu=True)
    assert arguments.max_grad_norm == 1.0
    assert arguments.optim == transformers.training_args.OptimizerNames.ADAMW_TORCH_FUSED
    alias = transformers.TrainingArguments(use_cpu=True, gradient_checkpointing=True)
    assert alias.activation_checkpointing is True


def test_library_outputs_in_16_bits_are_copied_and_a_16_bit_checkpoint_is_not() -> None:
    """Bare logits stay in 16 bits. Weights do so under both loops, on one device: see the last test."""
    evidence = simulated("loop=trainer", "precision=bf16_autocast")["evidence"]
    assert evidence["outputs_copied_to_float32"] is True
    assert evidence["logits_dtypes"] == ["float32"]
    assert set(evidence["parameter_dtypes"]) == {"bfloat16"}


def test_library_batches_of_two_accumulations_are_held_while_one_is_fetched() -> None:
    """Tokens and labels, 8 bytes each, and the number of labels that every micro-step is given."""
    batch = 2 * 4 * 32 * 8
    found = simulated("loop=trainer", "grad_accum_steps=3")["input_max_bytes"]
    assert found is not None
    assert 2 * 3 * batch <= found <= 2 * 3 * batch + 16


def test_library_state_of_embeddings_stays_in_32_bits() -> None:
    """8 bytes in place of 2, and no scale for each block of 256 elements and moment."""
    bare, trainer = (
        simulated(f"loop={name}", "optimizer=adamw_8bit")["optimizer_max_bytes"]
        for name in ("bare", "trainer")
    )
    assert bare is not None
    assert trainer is not None
    assert trainer - bare == EMBEDDING * 6 - 2 * EMBEDDING // 256 * 4
    manager = bnb.optim.GlobalOptimManager.get_instance()
    assert not manager.module_weight_config_triple, (
        "the process forgets it: it would be the next trial's, too"
    )


def test_library_norms_are_not_decayed() -> None:
    run = build(make_trial(SHORT, "loop=trainer"), DEVICE)
    losses(run, steps=1)
    decayed, others = run.optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    assert sum(parameter.numel() for parameter in others["params"]) == NORMS


def test_library_ddp_holds_every_gradient_twice() -> None:
    words = ("fsdp=no_shard", "fsdp.world_size=2")
    bare, trainer = (
        simulated(f"loop={name}", *words)["gradient_max_bytes"] for name in ("bare", "trainer")
    )
    assert bare is not None
    assert trainer == 2 * (2 * EMBEDDING + NORMS + 2 * (4 * 128 * 128 + 3 * 128 * 352)) * 4


def test_library_fp16_is_ignored_on_a_cpu() -> None:
    accelerator = Accelerator(mixed_precision="fp16", cpu=True)
    try:
        assert accelerator.mixed_precision == "fp16"
        assert not accelerator.native_amp
        assert accelerator.scaler is None
    finally:
        _forget()


@contextmanager
def one_rank() -> Iterator[None]:
    """This process as the only rank of a launched training."""
    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    with mock.patch.dict(os.environ, launched):
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()
            _forget()


def test_library_fsdp_is_ddp_on_a_cpu() -> None:
    with one_rank():
        arguments = transformers.TrainingArguments(use_cpu=True, fsdp=True, report_to="none")
        trainer = transformers.Trainer(nn.Linear(2, 2), arguments)
        assert trainer.accelerator.distributed_type == DistributedType.MULTI_CPU
        assert trainer.is_fsdp_enabled is False
        prepared = trainer.accelerator.prepare_model(trainer.model)
        assert isinstance(prepared, nn.parallel.DistributedDataParallel)


def test_library_fsdp_widens_what_trains_and_replicates_4_bit_weights() -> None:
    """bf16=True on a 16-bit checkpoint means other weights than on one device; uint8 weights are not
    sharded (accelerate issue 3983)."""
    plain = nn.Sequential(nn.Linear(64, 64, dtype=torch.bfloat16))
    packed = nn.Sequential(bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4").to("cpu"))
    packed[0].weight.requires_grad = False
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap")
    state = SimpleNamespace(fsdp_plugin=plugin)
    accelerator = SimpleNamespace(state=state, mixed_precision="bf16", is_main_process=False)
    with one_rank():
        for model in (plain, packed):
            fsdp2_prepare_model(accelerator, model)
        assert isinstance(plain[0].weight, DTensor)
        assert plain[0].weight.dtype == torch.float32
        assert not isinstance(packed[0].weight, DTensor)
