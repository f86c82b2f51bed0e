"""Names that people bring from other tools, and the nearest of ours to one that is unknown.

In: a word that is no axis, key or level. Out: a hint for the end of an error message. Needs nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# What transformers' TrainingArguments, peft, bitsandbytes, DeepSpeed and torchtune call what is here ...
ELSEWHERE = {
    "activation_checkpointing": "checkpointing=on",
    "batch_size": "micro_batch_size",
    "context_length": "seq_len",
    "cutoff_len": "seq_len",
    "gradient_accumulation_steps": "grad_accum_steps",
    "gradient_checkpointing": "checkpointing=on",
    "load_in_4bit": "precision=nf4",
    "load_in_8bit": "precision=int8",
    "lora.lora_alpha": "lora.alpha",
    "lora.lora_dropout": "lora.dropout",
    "lora.r": "lora.rank",
    "lora.target_modules": "lora.targets",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_r": "lora.rank",
    "lora_rank": "lora.rank",
    "lora_target": "lora.targets",
    "max_length": "seq_len",
    "max_seq_len": "seq_len",
    "max_seq_length": "seq_len",
    "model_name": "model",
    "model_name_or_path": "model",
    "num_processes": "fsdp.world_size",
    "optim": "optimizer",
    "per_device_train_batch_size": "micro_batch_size",
    "quantization": "precision=nf4 or precision=int8",
    "sequence_length": "seq_len",
    "target_modules": "lora.targets",
    "torch_dtype": "precision",
    "bf16": "precision=bf16_autocast for a 16-bit checkpoint, or precision=bf16 for 32-bit weights",
    "fp16": "precision=fp16_autocast for a 16-bit checkpoint, or precision=fp16 for 32-bit weights",
    # ... and levels of an axis.
    "optimizer=adamw_bnb_8bit": "optimizer=adamw_8bit",
    "optimizer=adamw_torch": "optimizer=adamw_foreach",
    "optimizer=adamw_torch_8bit": "optimizer=adamw_8bit",
    "optimizer=adamw_torch_fused": "optimizer=adamw_fused",
    "optimizer=paged_adamw_8bit": "optimizer=adamw_8bit_paged",
    "precision=4bit": "precision=nf4",
    "precision=8bit": "precision=int8",
    "precision=bfloat16": "precision=bf16_pure for 16-bit weights, or precision=bf16 for 32-bit weights",
    "precision=float16": "precision=fp16_pure for 16-bit weights, or precision=fp16 for 32-bit weights",
    "precision=float32": "precision=fp32",
    "precision=int4": "precision=nf4",
    "precision=qlora": "precision=nf4 lora=on",
    "fsdp=ddp": "fsdp=no_shard",
    "fsdp=on": "fsdp=full_shard",
    "fsdp=zero2": "fsdp=shard_grad_op",
    "fsdp=zero3": "fsdp=full_shard",
    "offload=cpu": "offload=params",
    "offload=nvme": "offload=disk",
}


def nearest(word: str, words: list[str], axis: str = "") -> str:
    """A hint at what was probably meant, for the end of a message; empty if nothing is close.

    Args:
        word: what was given, and is none of `words`.
        words: what may be given.
        axis: the axis whose levels `words` are.
    """
    here = ELSEWHERE.get(f"{axis}={word}" if axis else word)
    if here is not None:
        return f" (here it is {here})"
    return closest(word, words)


def closest(word: str, words: Iterable[str]) -> str:
    """A hint at the word that is spelt most alike, for the end of a message; empty if none is close."""
    return "".join(f" (did you mean {close}?)" for close in difflib.get_close_matches(word, words, n=1))
