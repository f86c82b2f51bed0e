"""Inference, whole: a prompt and new tokens after it, greedily; what is timed, and what prediction runs.

As transformers' `generate` does it, without what surrounds it (stopping, sampling, streaming): the prompt
in one forward that fills the cache and makes logits of its last position alone, then one forward a token.
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
    """The numbers of the forwards; of a simulated decoding the prompt's, the first token's and the last's.

    Each token is one more of the same, and the last holds most: those between are passed over, unless
    `whole` asks for them.
    """
    passes_over = run.imagined and not run.trial.whole and count > 3
    return (0, 1, count - 1) if passes_over else range(count)


@torch.no_grad()
def generate(
    run: Run, enter: Enter = _nothing, mark: Callable[[], None] = _nothing, look: Look = _nothing
) -> torch.Tensor:
    """The prompt's first new token (`prefill`), or `decode_tokens` of them (`decode`).

    Args:
        run: a built trial.
        enter: told the phase about to begin (prefill, each decode, what is passed over, done); for watchers
            only.
        mark: called when a token has been made, without waiting for the device.
        look: shown each token's logits, [micro_batch_size, vocab_size]; for watchers only.

    Returns:
        The tokens, [micro_batch_size, 1 or decode_tokens], on the device: reading them would synchronise.
    """
    workload = run.trial.workload
    count = workload.decode_tokens if workload.name == "decode" else 1
    run.cache = run.new_cache()
    given = run.batches[0]["input_ids"]
    tokens: list[torch.Tensor] = []
    for number in _forwards(run, count):
        between = number - len(tokens)
        if between:
            enter("passed over")
            run.pass_over(run.cache, between)
            tokens += [torch.empty_like(given) for _ in range(between)]
        enter("decode" if number else "prefill")
        output = run.model(input_ids=given, past_key_values=run.cache, use_cache=True, logits_to_keep=1)
        logits = output.logits[:, -1]
        look(logits)
        given = logits.argmax(-1, keepdim=True)
        tokens.append(given)
        del output, logits
        mark()
    generated = torch.cat(tokens, dim=1)
    enter("done")
    run.cache = None
    return generated
