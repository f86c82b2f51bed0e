"""One generation: a prompt and new tokens after it, chosen greedily. Measurement and simulation run it.

It does what transformers' `generate` does, without stopping, sampling and streaming: one forward of the
prompt fills the cache and makes the logits of the last position only, then one forward makes each token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from bench.workload.state import Run

Enter = Callable[[str], None]
Look = Callable[[torch.Tensor], None]


def _nothing(*_: object) -> None:
    pass


def _forwards(run: Run, count: int) -> Iterable[int]:
    """The numbers of the forwards to run.

    In a simulated decoding these are the prompt's, the first decoded token's and the last one's. The last
    token holds most, and those between differ only in the cache's length: they are passed over, unless the
    trial is to be simulated `whole`.
    """
    passes_over = run.is_fake and not run.trial.whole and count > 3
    return (0, 1, count - 1) if passes_over else range(count)


@torch.no_grad()
def generate(
    run: Run, enter: Enter = _nothing, mark: Callable[[], None] = _nothing, look: Look = _nothing
) -> torch.Tensor:
    """The prompt's first new token (`prefill`), or `decode_tokens` of them (`decode`).

    Args:
        run: a built trial.
        enter: called with the phase that begins (prefill, each decode, passed over, done); for watchers
            only.
        mark: called when a token has been made, without waiting for the device.
        look: called with each token's logits, [micro_batch_size, vocab_size]; for watchers only.

    Returns:
        The tokens, [micro_batch_size, 1 or decode_tokens], on the device: reading them would synchronise.
    """
    workload = run.trial.workload
    count = workload.decode_tokens if workload.name == "decode" else 1
    run.cache = run.new_cache()
    input_ids = run.batches[0]["input_ids"]
    tokens: list[torch.Tensor] = []
    for number in _forwards(run, count):
        skipped = number - len(tokens)
        if skipped:
            enter("passed over")
            run.pass_over(run.cache, skipped)
            tokens += [torch.empty_like(input_ids) for _ in range(skipped)]
        enter("decode" if number else "prefill")
        output = run.model(input_ids=input_ids, past_key_values=run.cache, use_cache=True, logits_to_keep=1)
        logits = output.logits[:, -1]
        look(logits)
        input_ids = logits.argmax(-1, keepdim=True)
        tokens.append(input_ids)
        del output, logits
        mark()
    generated = torch.cat(tokens, dim=1)
    enter("done")
    run.cache = None
    return generated
