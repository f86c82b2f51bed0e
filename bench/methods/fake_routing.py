"""Which tokens go to which expert, where tensors have no data: equally many to each.

In: the operations of a step over fake tensors. Out: what `nonzero` would find in the masks of a loop over
experts. Where an architecture has no grouped product in transformers (DBRX, LongCat, NLLB-MoE, Switch), its
code makes a mask [experts, choices, tokens] of zeros and ones, asks which experts were chosen at all, and
for each of them which tokens chose it. Every choice of a token falls on one expert, so that of the elements
of an expert's slice the share of ones is 1 / experts.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

_ATEN = torch.ops.aten
_NONZERO = _ATEN.nonzero.default
_TOP = _ATEN.topk.default
_KEEP_THE_RANGE = (
    _ATEN.unsqueeze.default,
    _ATEN.eq.Tensor,
    _ATEN._to_copy.default,
    _ATEN.permute.default,
    _ATEN.view.default,
    _ATEN.gt.Scalar,
    _ATEN.squeeze.dim,
)
_OF_A_MASK = (_ATEN.select.int, _ATEN.index.Tensor, _ATEN.sum.dim_IntList)
_WATCHED = frozenset((_TOP, *_KEEP_THE_RANGE, *_OF_A_MASK))


class BalancedRouting:
    """Follows experts' masks through a step, and answers `nonzero` about them."""

    def __init__(self) -> None:
        self._experts: dict[int, int] = {}  # by id of a tensor: how many experts its values tell apart
        self._slices: dict[int, int] = {}  # by id of an expert's slice of a mask: among how many
        self._chosen: dict[int, int] = {}  # by id of a vector that says who was chosen: how many experts

    def follow(self, func: Any, args: Any, result: Any) -> None:
        """Looks at an operation that was carried out."""
        if func not in _WATCHED:
            return
        source = args[0]
        if func is _TOP:
            self._note(self._experts, result[1], source.shape[-1])
        elif func in _OF_A_MASK and source.dtype == torch.int64 and source.dim() == 3:
            experts = self._experts.get(id(source), source.shape[0])
            self._note(self._chosen if func is _ATEN.sum.dim_IntList else self._slices, result, experts)
        elif func in _KEEP_THE_RANGE:
            for known in (self._experts, self._slices, self._chosen):
                if id(source) in known:
                    self._note(known, result, known[id(source)])

    def _note(self, known: dict[int, int], tensor: torch.Tensor, experts: int) -> None:
        known[id(tensor)] = experts
        weakref.finalize(tensor, known.pop, id(tensor), None)

    def nonzero(self, func: Any, args: Any) -> torch.Tensor | None:
        """What `nonzero` finds in an expert's mask, or in the vector of chosen experts; None elsewhere.

        The chosen experts are real numbers, since the model's code picks weights by them.
        """
        if func is not _NONZERO:
            return None
        mask = args[0]
        if id(mask) in self._chosen:
            with unset_fake_temporarily():
                return torch.arange(self._chosen[id(mask)]).unsqueeze(1)
        if id(mask) in self._slices:
            ones = round(mask.numel() / self._slices[id(mask)])
            return torch.empty(ones, mask.dim(), dtype=torch.int64, device=mask.device)
        return None


def are_real_numbers(func: Any, args: Any) -> bool:
    """Whether an operation reads or splits the real numbers that `nonzero` found."""
    if func not in (_ATEN.unbind.int, _ATEN.select.int, _ATEN._local_scalar_dense.default):
        return False
    tensor = args[0]
    return (
        not isinstance(tensor, FakeTensor) and tensor.device.type == "cpu" and tensor.dtype == torch.int64
    )
