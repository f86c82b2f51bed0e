"""How much arithmetic a step needs, and how much of the device's peak that is.

MFU counts what the mathematics needs; HFU counts what the hardware did, recomputation included
(Chowdhery 2022, PaLM, appendix B; Korthikanti 2022, section 6). Both are undefined where the arithmetic
is quantised or the device's peak is unknown.
"""

from __future__ import annotations

from bench.trial.spec import Trial


def attention_flops(trial: Trial) -> float:
    """Forward FLOPs of one rank's step in attention: scores, and values weighted by them.

    For each head two matmuls of [seq, head_dim] x [head_dim, seq], 2 FLOPs a multiply-add: 4 s^2 h a
    layer and sequence, half of that where attention is causal.
    """
    model, seq = trial.model, trial.seq_len
    width = model.heads * model.head_dim
    full = 4 * seq * seq * width
    # encoder layers see everything; a decoder's self-attention is causal, its cross-attention is not
    per_layer = full + (full / 2 + full) if model.encoder_decoder else full / 2
    return per_layer * model.layers * trial.micro_batch_size * trial.grad_accum_steps


def step_flops(
    trial: Trial, *, matmul_params: int, trainable_matmul_params: int, block_matmul_params: int
) -> tuple[float, float]:
    """FLOPs of one rank's step: what the model needs, and what the hardware does.

    Args:
        trial: the configuration.
        matmul_params: parameters that multiply activations (embedding look-ups are not arithmetic).
        trainable_matmul_params: matmul parameters that need a weight gradient.
        block_matmul_params: matmul parameters of the blocks, which full checkpointing multiplies twice.

    Returns:
        (model FLOPs, hardware FLOPs). Per parameter and token the forward takes 2, the backward 2 for the
        gradient of the activation and 2 for that of the weight if it trains: 6N if everything trains,
        4 N_frozen + 6 N_lora under LoRA. Full checkpointing repeats the forward of the blocks, selective
        checkpointing no matmul, and a chunked loss that of the head.
    """
    if trial.workload.inference:
        return (_inference_flops(trial, matmul_params, block_matmul_params),) * 2
    sides = 2 if trial.model.encoder_decoder else 1
    tokens = trial.tokens_per_step / sides  # each parameter of an encoder-decoder sees one side
    forward = 2 * matmul_params * tokens
    weights = 2 * trainable_matmul_params * tokens
    attention = attention_flops(trial)
    model_flops = 2 * forward + weights + 3 * attention
    hardware_flops = model_flops
    if trial.loss.chunked:
        hardware_flops += 2 * (matmul_params - block_matmul_params) * tokens
    if trial.checkpointing.name == "on":
        hardware_flops += 2 * block_matmul_params * tokens + attention
    return model_flops, hardware_flops


def _inference_flops(trial: Trial, matmul_params: int, block_matmul_params: int) -> float:
    """FLOPs of a prompt's forward, or of one decoded token (with average context) for each sequence.

    The head multiplies the last position only; a decoded token attends to all tokens before it.
    """
    model, batch = trial.model, trial.micro_batch_size
    head = 2 * (matmul_params - block_matmul_params) * batch
    if trial.workload.name == "prefill":
        return 2 * block_matmul_params * batch * trial.seq_len + head + attention_flops(trial)
    context = trial.seq_len + trial.workload.decode_tokens / 2
    attention = 4 * context * model.heads * model.head_dim * model.layers * batch
    return 2 * block_matmul_params * batch + head + attention
