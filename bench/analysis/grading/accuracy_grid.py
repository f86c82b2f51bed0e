"""The configurations whose predictions are graded: picked by hand, or drawn at random.

Out: lists of command-line overrides, small enough for a CPU. `accuracy.py` computes the errors.
"""

from __future__ import annotations

import random

from bench.config.compose import trial_from
from bench.formatting import markdown_table as markdown_table
from bench.trial.platform import CPU
from bench.trial.skip_rules import skip_reason

BRIEF = ("timing.warmup_steps=2", "timing.min_steps=2", "timing.max_steps=2", "device=cpu", "threads=1")
TIMED = ("timing.min_steps=9", "timing.max_steps=9")  # where the time is graded, too
Overrides = tuple[str, ...]
_OPTIMIZERS = ("adamw", "adamw_fused", "adamw_foreach", "adamw_8bit", "sgd", "adafactor")
_SMALL = ("model.hidden_size=128", "model.heads=4", "model.head_dim=32", "model.vocab_size=2000")


ARCHITECTURES: dict[str, Overrides] = {
    "llama": ("model=llama-tiny",),
    "llama, grouped-query": (
        "model=llama3-8b",
        "model.layers=2",
        *_SMALL,
        "model.kv_heads=1",
        "model.intermediate_size=320",
    ),
    "opt": ("model=opt-125m", "model.layers=2", *_SMALL, "model.kv_heads=4", "model.intermediate_size=512"),
    "gpt2": ("model=gpt2", "model.layers=2", *_SMALL, "model.kv_heads=4", "model.intermediate_size=512"),
    "mt5": (
        "model=mt0-small",
        "model.layers=2",
        *_SMALL,
        "model.kv_heads=4",
        "model.intermediate_size=256",
    ),
}


_EVERYWHERE = (
    "",
    "precision=bf16",
    "precision=fp16_pure lora=on",
    "precision=int8 lora=on",
    "precision=nf4 lora=on checkpointing=on",
    "checkpointing=selective",
    "optimizer=adamw_8bit seq_len=16",
    "fsdp=full_shard fsdp.world_size=2 precision=bf16 seq_len=32",
)


_LLAMA_ALONE = (
    "precision=fp16",
    "precision=bf16_pure",
    "precision=fp16_pure",
    "precision=int8",
    "lora=on",
    "lora=on lora.rank=64 lora.targets=q_proj+v_proj",
    "precision=bf16 lora=on",
    "precision=bf16_pure lora=on checkpointing=on",
    "precision=nf4 lora=on optimizer=adamw_8bit",
    "precision=nf4 lora=on precision.double_quant=false",
    "checkpointing=on",
    "checkpointing=on precision=bf16 seq_len=512 micro_batch_size=1",
    "precision=int8 lora=on checkpointing=on",
    "checkpointing=selective precision=bf16",
    "optimizer=adamw_fused",
    "optimizer=adamw_foreach seq_len=8",
    "optimizer=sgd optimizer.momentum=0.9",
    "optimizer=adafactor seq_len=8",
    "grad_accum_steps=3",
    "offload=activations",
    "offload=activations checkpointing=on precision=bf16",
    "fsdp=full_shard fsdp.world_size=2",
    "fsdp=full_shard fsdp.world_size=2 lora=on",
    "fsdp=full_shard fsdp.world_size=2 precision=nf4 lora=on checkpointing=on",
    "fsdp=full_shard fsdp.world_size=2 offload=params",
    "fsdp=shard_grad_op fsdp.world_size=2 grad_accum_steps=2 checkpointing=on",
    "fsdp=shard_grad_op fsdp.world_size=2 offload=params precision=bf16",
    "fsdp=no_shard fsdp.world_size=2 precision=fp16",
    "fsdp=no_shard fsdp.world_size=2 grad_accum_steps=2 lora=on",
)


_INFERENCE = (
    "workload=prefill",
    "workload=decode precision=bf16_pure",
    "workload=decode precision=int8 seq_len=40",
)


_INFERENCE_OF_LLAMA = (
    "workload=decode",
    "workload=decode kv_cache=static",
    "workload=prefill precision=fp16_pure",
    "workload=decode precision=bf16_pure kv_cache=static",
    "workload=prefill precision=int8",
    "workload=decode precision=int8",
    "workload=prefill precision=nf4",
    "workload=decode precision=nf4",
    "workload=decode precision=nf4 seq_len=16 workload.decode_tokens=20",
    "workload=decode seq_len=8 workload.decode_tokens=40",
    "workload=decode seq_len=8 workload.decode_tokens=40 kv_cache=static precision=fp16_pure",
    "workload=prefill micro_batch_size=1 seq_len=500",
    "workload=decode micro_batch_size=8 seq_len=64 precision=bf16_pure",
    "workload=decode model.layers=4 precision=int8 micro_batch_size=1 seq_len=200",
    "workload=decode model.layers=3 precision=fp16_pure micro_batch_size=2 seq_len=33 kv_cache=static",
)


_AUTOCAST = (
    "precision=bf16_autocast",
    "precision=bf16_autocast lora=on",
    "precision=bf16_autocast lora=on checkpointing=on",
    "precision=fp16_autocast lora=on",
    "precision=nf4 lora=on precision.autocast=off",
    "precision=int8 lora=on precision.autocast=off",
    "precision=bf16_pure lora=on lora.dtype=auto",
    "precision=nf4 lora=on lora.dtype=auto checkpointing=on",
)


_LOSS = (
    "loss=chunked",
    "loss=chunked model.vocab_size=5000 precision=bf16 checkpointing=on",
    "loss=chunked model.vocab_size=5000 precision=nf4 lora=on grad_accum_steps=2",
    "loss=chunked model.vocab_size=5000 fsdp=full_shard fsdp.world_size=2",
)


_LOOP = (
    "max_grad_norm=1 precision=bf16",
    "keep_outputs=true model.vocab_size=5000",
    "optimizer.in_backward=true optimizer=adamw_fused seq_len=8",
    "optimizer.in_backward=true precision=bf16_pure checkpointing=on",
)


_TRAINER = (
    "loop=trainer precision=bf16 max_grad_norm=1 grad_accum_steps=2 checkpointing=on",
    "loop=trainer optimizer=adamw_8bit seq_len=16",
    "loop=trainer fsdp=no_shard fsdp.world_size=2 grad_accum_steps=2",
)


def grid() -> list[Overrides]:
    """The configurations that were picked: every level of every axis, on every architecture."""
    picked = [(*base, *also.split()) for base in ARCHITECTURES.values() for also in _EVERYWHERE]
    decoders = [base for name, base in ARCHITECTURES.items() if name != "mt5"]
    picked += [(*base, *also.split()) for base in decoders for also in _INFERENCE]
    alone = (*_LLAMA_ALONE, *_INFERENCE_OF_LLAMA, *_AUTOCAST, *_LOSS, *_LOOP, *_TRAINER)
    return picked + [(*ARCHITECTURES["llama"], *also.split()) for also in alone]


def sample(count: int, seed: int) -> list[Overrides]:
    """`count` configurations that nobody picked, the same for the same `seed`."""
    draw = random.Random(seed)
    return [_drawn(draw) for _ in range(count)]


def _drawn(draw: random.Random) -> Overrides:
    while True:
        base = ARCHITECTURES[draw.choice(list(ARCHITECTURES))]
        heads = draw.choice((1, 2, 4))
        grouped = draw.choice([n for n in (1, 2, 4) if heads % n == 0]) if "llama" in base[0] else heads
        overrides = (
            base[0],
            f"model.layers={draw.randint(1, 4)}",
            f"model.hidden_size={64 * heads}",
            f"model.heads={heads}",
            "model.head_dim=64",
            f"model.kv_heads={grouped}",
            f"model.intermediate_size={64 * draw.randint(1, 8)}",
            f"model.vocab_size={draw.randint(100, 5000)}",
            f"micro_batch_size={draw.randint(1, 5)}",
            f"seq_len={draw.randint(2, 200)}",
            f"grad_accum_steps={draw.choice((1, 1, 2))}",
            f"precision={draw.choice(('fp32', 'fp16', 'bf16', 'bf16_pure', 'int8', 'nf4'))}",
            f"lora={draw.choice(('off', 'on'))}",
            f"lora.rank={draw.choice((2, 8, 64))}",
            f"checkpointing={draw.choice(('off', 'on', 'selective'))}",
            f"fsdp={draw.choice(('off', 'off', 'off', 'full_shard', 'shard_grad_op', 'no_shard'))}",
            f"fsdp.world_size={draw.choice((1, 2))}",
            f"offload={draw.choice(('off', 'off', 'activations', 'params'))}",
            f"optimizer={draw.choice(_OPTIMIZERS)}",
        )
        if skip_reason(trial_from([*BRIEF, *overrides]), CPU, 0) is None:
            return overrides
