"""Inference: the tokens are the model's own, whatever the cache, the precision or the weights' place."""

from __future__ import annotations

import pytest
import torch

from bench.trial.platform import CPU
from bench.trial.skip_rules import skip_reason
from bench.workload.build import build
from bench.workload.loops.generate import generate
from bench.workload.state import Run
from tests.conftest import SHORT, make_trial
from tests.sweeps import Here

SMALL = ("device=cpu", "threads=1", "seq_len=24", "micro_batch_size=2", "workload.decode_tokens=8")
_NUMBERS = (
    "model.layers=2",
    "model.hidden_size=128",
    "model.heads=4",
    "model.head_dim=32",
    "model.vocab_size=500",
    "model.intermediate_size=256",
)
MODELS = {
    "llama": ("model=llama-tiny",),
    "grouped-query": ("model=llama3-8b", *_NUMBERS, "model.kv_heads=1"),
    "opt": ("model=opt-125m", *_NUMBERS, "model.kv_heads=4"),
    "gpt2": ("model=gpt2", *_NUMBERS, "model.kv_heads=4"),
}


def built(*overrides: str) -> Run:
    return build(make_trial("workload=decode", *SMALL, *overrides), torch.device("cpu"))


def without_cache(run: Run) -> torch.Tensor:
    """The same tokens the slow way: the whole sequence again for each of them."""
    sequence = run.batches[0]["input_ids"]
    prompt = sequence.shape[1]
    with torch.no_grad():
        for _ in range(run.trial.workload.decode_tokens):
            logits = run.model(input_ids=sequence, use_cache=False).logits[:, -1]
            sequence = torch.cat([sequence, logits.argmax(-1, keepdim=True)], dim=1)
    return sequence[:, prompt:]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_cache_changes_no_token(model: str, cache: str) -> None:
    run = built(*MODELS[model], f"kv_cache={cache}")
    tokens = generate(run)
    assert tokens.shape == (2, 8)
    assert torch.equal(tokens, without_cache(run))


@pytest.mark.parametrize("level", ["params", "disk"])
def test_offloaded_weights_make_the_same_logits(level: str) -> None:
    here, elsewhere = built(), built(f"offload={level}")
    seen: dict[str, list[torch.Tensor]] = {"here": [], "elsewhere": []}
    for name, run in (("here", here), ("elsewhere", elsewhere)):
        generate(run, look=seen[name].append)
    assert len(seen["here"]) == 8
    assert all(torch.equal(a, b) for a, b in zip(seen["here"], seen["elsewhere"], strict=True))
    assert all(parameter.device.type == "meta" for parameter in elsewhere.model.parameters())


# NF4 rounds normal values, in blocks of 64, by about 9 % of their root mean square: in each of 14 matrices.
@pytest.mark.parametrize(("precision", "most"), [("bf16_pure", 0.02), ("int8", 0.02), ("nf4", 0.20)])
def test_narrow_weights_stay_near_fp32(precision: str, most: float) -> None:
    def logits(level: str) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        generate(built(f"precision={level}"), look=seen.append)
        return seen[0].float()  # of the prompt: later ones follow from tokens that may differ

    wide = logits("fp32")
    distance = (logits(precision) - wide).norm() / wide.norm()
    assert 0 < distance < most


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("lora=on", "adapters are merged"),
        ("checkpointing=on", "nothing to recompute"),
        ("optimizer=sgd", "no optimizer"),
        ("grad_accum_steps=2", "no gradients to accumulate"),
        ("fsdp=full_shard fsdp.world_size=2", "divide the work of training"),
        ("offload=activations", "saves no activations"),
        ("precision=bf16", "choose fp16_pure or bf16_pure"),
        ("model=mt0-small", "two kinds of cache"),
        ("offload=disk precision=int8", "quantisation state"),
        ("model=gpt2 seq_len=1000", "1024 learned positions, fewer than 1031"),
    ],
)
def test_what_belongs_to_training_is_skipped_with_its_reason(overrides: str, said: str) -> None:
    trial = make_trial("workload=decode", "workload.decode_tokens=32", *overrides.split())
    assert said in str(skip_reason(trial, CPU, 0))
    assert skip_reason(make_trial("offload=disk"), CPU, 0) is not None


def test_what_does_not_matter_defines_no_trial() -> None:
    assert make_trial("workload.decode_tokens=9").trial_id == make_trial().trial_id
    decode = make_trial("workload=decode")
    assert make_trial("workload=decode", "kv_cache=static").trial_id != decode.trial_id
    assert make_trial("workload=decode", "workload.decode_tokens=9").trial_id != decode.trial_id
    prefill = make_trial("workload=prefill")
    assert make_trial("workload=prefill", "workload.decode_tokens=9").trial_id == prefill.trial_id


def test_rows_of_inference(here: Here) -> None:
    words = ("workload=prefill,decode", "precision=bf16_pure,nf4", "workload.decode_tokens=6", SHORT)
    assert here.run(*words) == 0
    rows = here.frame().set_index(["workload", "precision"])
    assert set(rows["status"]) == {"ok"}
    for (workload, _), row in rows.iterrows():  # type: ignore[misc]
        tokens = 4 * 32 if workload == "prefill" else 4
        assert row["tokens_per_step"] == tokens
        assert row["tokens_per_sec_per_device"] == pytest.approx(tokens / row["step_seconds_median"])
        assert row["step_seconds_p95"] >= row["step_seconds_median"]
        assert row["first_token_seconds"] > 0
        assert row["trainable_param_count"] == 0
        assert len(row["losses"]) == 0
        # 2 of layers, keys and values, 4 heads of 32, two bytes each
        kept = 32 if workload == "prefill" else 32 + 5
        assert f'"cache_bytes": {2 * 2 * 4 * 32 * 2 * 4 * kept}' in row["evidence"]
    decoded = rows.loc[("decode", "bf16_pure")]
    # Where the processor has avx512_bf16, oneDNN's 16-bit products take scratch memory that no tensor owns.
    assert decoded["peak_allocated_bytes"] == pytest.approx(decoded["tracked_peak_bytes"], rel=0.01)
    assert decoded["kv_cache_bytes"] > 0
    assert rows.loc[("decode", "nf4"), "parameter_bytes"] < 0.6 * decoded["parameter_bytes"]
