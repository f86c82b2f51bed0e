"""Architectures in numbers: how many elements each matrix, norm and embedding has. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.trial.axes import Model


@dataclass(frozen=True)
class Linear:
    """One matrix of a block, [out, in], with or without a bias; one that is `kept` is never quantised."""

    inputs: int
    outputs: int
    bias: bool = False
    kept: bool = False

    @property
    def weights(self) -> int:
        """Elements of the matrix alone."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Shape:
    """What an architecture consists of, in elements."""

    outside: int  # embeddings, head and what else is in no block
    head: int  # the output matrix, tied or not
    blocks: tuple[tuple[tuple[Linear, ...], int], ...]  # for each kind: its linears, elements of its norms
    layers: int  # blocks of each kind

    @property
    def in_linears(self) -> int:
        """Elements of the matrices that quantisation and LoRA act on."""
        return self.layers * sum(linear.weights for linears, _ in self.blocks for linear in linears)

    def outer_tensors(self) -> Iterator[int]:
        """Elements of the embedding, of the head unless tied, and of all other tensors outside together."""
        matrices = self.outside // self.head
        yield from [self.head] * matrices
        yield self.outside - matrices * self.head

    def tensors(self) -> Iterator[tuple[int, int]]:
        """Pairs (elements, how many such tensors); the norms of a block count as one tensor."""
        yield from ((elements, 1) for elements in self.outer_tensors())
        for linears, norms in self.blocks:
            yield norms, self.layers
            for linear in linears:
                yield linear.weights, self.layers
                if linear.bias:
                    yield linear.outputs, self.layers

    @property
    def parameters(self) -> int:
        """All parameters, tied ones once."""
        others = sum(
            norms + sum(linear.outputs for linear in linears if linear.bias)
            for linears, norms in self.blocks
        )
        return self.outside + self.in_linears + self.layers * others


def shape_of(model: Model) -> Shape:
    """The architecture in numbers.

    Sources: Touvron 2023 (LLaMA), Zhang 2022 (OPT), Radford 2019 (GPT-2), Xue 2021 (mT5), as transformers
    builds them.
    """
    h, i, width, kv = (
        model.hidden_size,
        model.intermediate_size,
        model.heads * model.head_dim,
        model.kv_heads * model.head_dim,
    )
    head = 0 if model.tie_embeddings else model.vocab_size * h
    embeddings = model.vocab_size * h
    attention: tuple[Linear, ...]
    mlp: tuple[Linear, ...]
    match model.family:
        case "llama":
            attention = (Linear(h, width), Linear(h, kv), Linear(h, kv), Linear(width, h))
            mlp = (Linear(h, i), Linear(h, i), Linear(i, h))
            return Shape(embeddings + head + h, embeddings, ((attention + mlp, 2 * h),), model.layers)
        case "opt":
            attention = tuple(Linear(h, h, bias=True) for _ in range(4))
            mlp = (Linear(h, i, bias=True), Linear(i, h, bias=True))
            positions = (model.max_positions + 2) * h
            outside = embeddings + head + positions + 2 * h
            return Shape(outside, embeddings, ((attention + mlp, 4 * h),), model.layers)
        case "gpt2":
            attention = (Linear(h, 3 * h, bias=True), Linear(h, h, bias=True))
            mlp = (Linear(h, i, bias=True), Linear(i, h, bias=True))
            outside = embeddings + head + model.max_positions * h + 2 * h
            return Shape(outside, embeddings, ((attention + mlp, 4 * h),), model.layers)
        case _:
            attention = (Linear(h, width), Linear(h, width), Linear(h, width), Linear(width, h))
            mlp = (Linear(h, i), Linear(h, i), Linear(i, h, kept=True))
            biases = 2 * 32 * model.heads  # relative positions, once in the encoder, once in the decoder
            outside = embeddings + head + biases + 2 * h
            blocks = ((attention + mlp, 2 * h), (2 * attention + mlp, 3 * h))
            return Shape(outside, embeddings, blocks, model.layers)
