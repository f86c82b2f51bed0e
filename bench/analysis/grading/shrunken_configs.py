"""Tiny configurations of whatever transformers can train: an architecture's own code at a size that a CPU
steps in a moment.

In: the name of an architecture (`model_type`). Out: its configuration, shrunk. Everything follows from the
default configuration by the names of its keys: widths, heads, layers, experts and ranks become small and
stay consistent, in nested configurations too; lists with an entry for each layer keep a layer of each kind.
Where the names do not say enough, `_EXCEPTIONS` does, each with its reason.
"""

from __future__ import annotations

import re
from typing import Any

from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

_HIDDEN, _HEADS, _HEAD_DIM, _VOCABULARY, _EXPERTS, _POSITIONS = 64, 4, 16, 512, 4, 128
_LEAST_LAYERS, _MOST_LAYERS = 2, 6

_LAYERS = re.compile(r"(\w+_)?num_hidden_layers|n_layers?|num_layers|\w*(en|de)coder_layers|depth")
_SIZES: tuple[tuple[str, int], ...] = (  # the first pattern that matches a whole key says its value
    (r"(type|task_type|segment)_vocab_size|zero_expert_num", 2),
    (r"\w*vocab_size\w*|\w+_group_vocab|codebook_size", _VOCABULARY),
    (r"moe_\w*intermediate_size|\w*expert\w*_intermediate_size|expert_ffn_hidden_size", _HIDDEN),
    (r"\w*intermediate_size(_mlp)?|\w*ffn_dim|\w*ffn_hidden_size|d_ff|dim_ff|dff", 2 * _HIDDEN),
    (r"n_inner|d_inner|feed_forward_size|mlp_dim|hidden_dim", 2 * _HIDDEN),
    (r"hidden_size_per_layer_input", _HEAD_DIM),
    (r"hidden_size|d_model|n_embd|dim|emb(ed)?_dim|embedding_(size|dim)|word_embed_proj_dim", _HIDDEN),
    (r"attention_hidden_size", 2 * _HIDDEN),
    (r"attention_head_dim", 2 * _HEAD_DIM),
    (r"\w+_hidden_size|hidden_size_\w+|lru_width|(input|output)_embedding_size|dim_model_base", _HIDDEN),
    (r"linear_num_key_heads", _HEADS // 2),
    (r"\w*attention_heads|num_heads|n_heads?|linear_num(_value)?_heads|index_n_heads", _HEADS),
    (r"qk_rope_head_dim|rotary_dim", _HEAD_DIM // 2),
    (r"qk_head_dim", _HEAD_DIM + _HEAD_DIM // 2),
    (r"(\w+_)?head_dim|d_kv|d_head|dim_head|kv_channels|(attention_)?head_size", _HEAD_DIM),
    (r"\w*lora_rank|laurel_rank|adapter_rank|gated_norm_rank", _HEAD_DIM),
    (r"(moe_)?num_(local_)?experts|n_routed_experts", _EXPERTS),
    (r"topk_group", 1),
    (r"(moe_)?n(um)?_shared_experts|first_k_dense_replace|num_dense_layers", 1),
    (r"state_size|mamba_d_state|ssm_state_size", _HEAD_DIM),
    (r"mamba_n(um)?_heads|n_mamba_heads", 2 * _HIDDEN // _HEAD_DIM),
    (r"mamba_d_head|mamba_headdim", _HEAD_DIM),
    (r"mamba_d_ssm", 2 * _HIDDEN),
    (r"mamba_dt_rank|time_step_rank", _HEADS),
    (r"chunk_size|mamba_chunk_size|attention_chunk_size", 16),
    (r"sliding_window(_size)?|(local_)?attention_window(_size)?|local_attention|window_size", 16),
    (r"index_topk", 8),
    (r"rel_extent", 32),
)
_CAPPED: tuple[tuple[str, int], ...] = (  # what only shrinks
    (r"\w*position_embeddings|n_positions|n_ctx|max_(source|target)_positions", _POSITIONS),
    (r"context_length|max_seq_len|model_max_length", _POSITIONS),
    (r"n_groups?|mamba_n_groups|num_expert_group", 2),
    (r"num_experts_per_tok(en)?|moe_top_?k|moe_k|top_k_experts", 2),
)
_KEY_VALUE_HEADS = re.compile(r"\w*num_key_value_heads|num_kv_heads|kv_n_heads|num_query_groups")
_TOKEN = re.compile(r"\w+(?<!per)_token(_id|_index)?")

# None stands for "as published"; a tiny model needs a number
_UNSAID = re.compile(r"(\w+_)?head_dim|num_experts_per_tok|n_routed_experts")

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_STARTS = {"shrunken": {"decoder_start_token_id": 0}}  # transformers has no default for it

_TWO_HYBRIDS = {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2}

# in a sliding layer a head is its plain and its rotary part, of which it names only the plain one
_DOTS3 = {
    "head_dim": 32,
    "per_layer_config": {
        2: {
            "num_attention_heads": _HEADS,
            "num_key_value_heads": _HEADS,
            "kv_lora_rank": _HEAD_DIM,
            "qk_nope_head_dim": 24,
        }
    },
}

_SLIDING = ("sliding_attention", "mlp")

_EXCEPTIONS: dict[str, dict[str, Any]] = {
    "blt": {"shrunken": {"encoder_config": {"vocab_size": 512}}},
    # the default has no rotary parameters for its kinds of layers
    "cohere_compass_text": {
        "shrunken": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}}
    },
    # asked for, and not in the default
    "dbrx": {"shrunken": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}}},
    # hyper-connections, which nothing quantises, are small beside experts: not beside those of a tiny model
    "deepseek_v4": {"shrunken": {"moe_intermediate_size": 8 * _HIDDEN}},
    # input, recurrent and output layers sum to all layers; an attention and an mlp are one layer
    "dory": {
        "shrunken": {
            "num_hidden_layers": 6,
            "layer_types": [*_SLIDING, "full_attention", "mlp", *_SLIDING],
            "n_input_layers": 2,
            "n_recurrent_layers": 2,
            "n_output_layers": 2,
        }
    },
    "dots1": {"shrunken": {"n_shared_experts": 1}},  # the default has none, and its code wants one
    "dots3_note": {
        "shrunken": {
            "text_config": _DOTS3,
            "vision_config": {"adapter_in_dim": _HIDDEN, "adapter_out_dim": _HIDDEN},
            "audio_config": {"adapter_input_size": _HIDDEN, "adapter_out_dim": _HIDDEN},
        }
    },
    "dots3_note_text": {"shrunken": _DOTS3},
    "encoder-decoder": {"shrunken": {"decoder_start_token_id": 0, "pad_token_id": 0}},
    "hrm_text": {"shrunken": {"num_layers_per_stack": 2}},
    "lfm2_moe": {"shrunken": {"layer_types": ["conv", "full_attention"]}},  # the default has none
    "longt5": _STARTS,
    "mamba2": {"shrunken": {"num_heads": 2 * _HIDDEN // _HEAD_DIM}},  # heads of the doubled width
    # its positions are a grid that must hold exactly the tokens of a sequence
    "reformer": {
        "shrunken": {
            "is_decoder": True,
            "axial_pos_shape": [4, 8],
            "axial_pos_embds_dim": [16, 48],
            "local_attn_chunk_length": 16,
            "lsh_attn_chunk_length": 16,
        }
    },
    "switch_transformers": _STARTS,
    "t5": _STARTS,
    # the first convolutions' width, which doubles with each downsampling
    "vibevoice_asr": {
        "shrunken": {
            key: {"num_filters": 1, "depths": [1] * 7}
            for key in ("acoustic_tokenizer_encoder_config", "semantic_tokenizer_encoder_config")
        }
    },
    "xmod": {"shrunken": {"default_language": "en_XX"}},  # adapters are chosen by language
    # the shared block is tied between hybrid layers, of which there must be two
    "zamba": {"shrunken": _TWO_HYBRIDS},
    "zamba2": {"shrunken": _TWO_HYBRIDS | {"hybrid_layer_ids": [1, 3]}},
}


def causal() -> list[str]:
    """Every architecture with a causal language model in the installed transformers."""
    return sorted(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def sequence_to_sequence() -> list[str]:
    """Every architecture with a sequence-to-sequence language model that is not also a causal one."""
    return sorted(set(modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES) - set(causal()))


def shrunken(model_type: str) -> Any:
    """The tiny configuration of an architecture.

    Raises:
        Exception: transformers cannot make its default configuration, or refuses the shrunken one; of
            whatever kind it raises.
    """
    kind = CONFIG_MAPPING[model_type]
    exception = _EXCEPTIONS.get(model_type, {})
    numbers = _shrunken(kind(**exception.get("default", {})).to_dict())
    return kind(**_merged(numbers, exception.get("shrunken", {})))


def _merged(numbers: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return numbers | {
        key: _merged(numbers[key], value) if isinstance(value, dict) and key in numbers else value
        for key, value in changes.items()
    }


def _shrunken(numbers: dict[str, Any]) -> dict[str, Any]:
    picked = _picked_layers(numbers)
    small = {key: _value(key, value, numbers, picked) for key, value in numbers.items()}
    small.pop("transformers_version", None)
    return small


def _picked_layers(numbers: dict[str, Any]) -> list[int]:
    """Which layers stay: of each kind the first, and two at least."""
    counts = [n for key, n in numbers.items() if _LAYERS.fullmatch(key) and isinstance(n, int) and n]
    if not counts:
        return list(range(_LEAST_LAYERS))
    per_layer = [v for v in numbers.values() if isinstance(v, list) and len(v) == counts[0]]
    others = {int(layer): v for layer, v in (numbers.get("per_layer_config") or {}).items()}
    per_layer.append([others.get(layer) for layer in range(counts[0])])
    kinds: dict[str, int] = {}
    for layer in range(counts[0]):
        kinds.setdefault(str([values[layer] for values in per_layer]), layer)
    picked = sorted(kinds.values())[:_MOST_LAYERS]
    more = [layer for layer in range(counts[0]) if layer not in picked]
    return sorted(picked + more[: max(0, _LEAST_LAYERS - len(picked))])


def _value(key: str, value: Any, numbers: dict[str, Any], picked: list[int]) -> Any:
    """The small value of one key."""
    if key in ("id2label", "label2id"):
        return value
    if key == "per_layer_config":
        return {picked.index(int(layer)): v for layer, v in (value or {}).items() if int(layer) in picked}
    if isinstance(value, dict):
        return _shrunken(value)
    layers = [n for k, n in numbers.items() if _LAYERS.fullmatch(k) and isinstance(n, int)]
    if isinstance(value, list):
        if layers and len(value) == layers[0]:
            return [_value(key, value[layer], numbers, picked) for layer in picked]
        return value
    if isinstance(value, float) and "drop" in key:
        return 0.0
    if key == "num_kv_shared_layers":  # they would have to be the last of each kind
        return 0
    if value is None and _UNSAID.fullmatch(key):
        value = 2**20
    if value is None and _KEY_VALUE_HEADS.fullmatch(key):
        return _HEADS
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if key == "head_dim" and numbers.get("qk_rope_head_dim"):  # there it is that of the rotary part
        return _HEAD_DIM // 2
    if _TOKEN.fullmatch(key):
        return value if value < _VOCABULARY else value % 97 + 3
    if _LAYERS.fullmatch(key):
        return len(picked) if value else 0
    if _KEY_VALUE_HEADS.fullmatch(key):
        heads = next((n for k, n in numbers.items() if re.fullmatch(r"num_attention_heads|n_heads?", k)), 0)
        return _HEADS if value == heads else min(value, 2)
    for pattern, size in _SIZES:
        if value and re.fullmatch(pattern, key):
            return size
    for pattern, most in _CAPPED:
        if re.fullmatch(pattern, key):
            return min(value, most)
    return value
