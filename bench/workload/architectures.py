"""Architecture numbers to a transformers model whose parameters exist only as shapes.

Every model starts on the meta device, so that no memory is spent on weights that are about to be quantised
or sharded. `weights.py` gives the parameters their values later, module by module. Dropout is zero
everywhere: its masks take memory that differs between devices and would blur comparisons.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from bench.trial.axes import Model
from bench.trial.spec import Trial

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# No special tokens: the tokens are random, and the default ids may lie outside a small vocabulary.
_NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def _llama(model: Model) -> Any:
    return transformers.LlamaConfig(
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        head_dim=model.head_dim,
        vocab_size=model.vocab_size,
        max_position_embeddings=model.max_positions,
        tie_word_embeddings=model.tie_embeddings,
        **_NO_TOKENS,
    )


def _opt(model: Model) -> Any:
    return transformers.OPTConfig(
        hidden_size=model.hidden_size,
        word_embed_proj_dim=model.hidden_size,
        ffn_dim=model.intermediate_size,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        vocab_size=model.vocab_size,
        max_position_embeddings=model.max_positions,
        tie_word_embeddings=model.tie_embeddings,
        dropout=0.0,
        attention_dropout=0.0,
        **_NO_TOKENS,
    )


def _gpt2(model: Model) -> Any:
    return transformers.GPT2Config(
        n_embd=model.hidden_size,
        n_inner=model.intermediate_size,
        n_layer=model.layers,
        n_head=model.heads,
        vocab_size=model.vocab_size,
        n_positions=model.max_positions,
        tie_word_embeddings=model.tie_embeddings,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **_NO_TOKENS,
    )


def _mt5(model: Model) -> Any:
    return transformers.MT5Config(
        d_model=model.hidden_size,
        d_ff=model.intermediate_size,
        num_layers=model.layers,
        num_decoder_layers=model.layers,
        num_heads=model.heads,
        d_kv=model.head_dim,
        vocab_size=model.vocab_size,
        tie_word_embeddings=model.tie_embeddings,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )


_CONFIGS = {"llama": _llama, "opt": _opt, "gpt2": _gpt2, "mt5": _mt5}


def config_of(model: Model) -> Any:
    """The transformers configuration of `model`.

    Raises:
        OSError: `model.pretrained` names neither a directory nor a hub id that can be read.
    """
    if model.pretrained:
        config = transformers.AutoConfig.from_pretrained(model.pretrained)
    else:
        config = _CONFIGS[model.family](model)
    config.use_cache = False
    return config


_FAMILIES = {"opt": "opt", "gpt2": "gpt2", "mt5": "mt5", "t5": "mt5"}  # every other decoder is like llama


def resolved(model: Model) -> Model:
    """The model with the numbers of the checkpoint that `pretrained` names; without one, the model itself.

    Raises:
        OSError: `model.pretrained` names neither a directory, nor a config.json, nor a readable hub id.
        ValueError: its configuration lacks the numbers of a transformer.
    """
    if not model.pretrained:
        return model
    config = config_of(model)
    try:
        hidden, heads = config.hidden_size, config.num_attention_heads
        numbers = {
            "hidden_size": hidden,
            "layers": config.num_hidden_layers,
            "heads": heads,
            "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
            "head_dim": getattr(config, "head_dim", None)
            or getattr(config, "d_kv", None)
            or hidden // heads,
            "vocab_size": config.vocab_size,
        }
    except AttributeError as error:
        raise ValueError(f"model.pretrained={model.pretrained}: {error}") from None
    widths = (getattr(config, name, None) for name in ("intermediate_size", "d_ff", "ffn_dim", "n_inner"))
    return replace(
        model,
        family=_FAMILIES.get(config.model_type, "llama"),
        intermediate_size=next(filter(None, widths), 4 * hidden),
        max_positions=getattr(config, "max_position_embeddings", None) or model.max_positions,
        tie_embeddings=bool(config.tie_word_embeddings),
        **numbers,
    )


def auto_class(config: Any) -> Any:
    """The transformers class that trains `config` with a language-modelling loss."""
    if config.is_encoder_decoder:
        return transformers.AutoModelForSeq2SeqLM
    return transformers.AutoModelForCausalLM


def on_meta(trial: Trial) -> nn.Module:
    """The model in training mode: parameters on the meta device in the trial's parameter dtype.

    Buffers are real, on the CPU: they are small, and some (rotary frequencies) are computed only when the
    model is constructed.
    """
    config = config_of(trial.model)
    with init_empty_weights(include_buffers=False):
        model: nn.Module = auto_class(config).from_config(config, dtype=DTYPES[trial.precision.param_dtype])
    model.tie_weights()  # type: ignore[operator]  # constructing on meta unties what was tied
    if not trial.model.pretrained and not trial.model.tie_embeddings:
        _untie_head(model)
    return model.train()


def _untie_head(model: Any) -> None:
    """transformers 5 ties mT5's head whatever its config says; the published models have their own."""
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(torch.empty_like(head.weight))


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The repeated transformer blocks by their names: what is checkpointed and sharded one by one."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, GradientCheckpointingLayer)
    }


def attention_of(config: Any) -> str:
    """The attention implementation transformers chose: sdpa, eager, ..."""
    return str(config._attn_implementation)
