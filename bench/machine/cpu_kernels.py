"""How the libraries compute on this processor, where that changes what they allocate.

Out: two facts about kernels that the libraries choose by the processor's instructions. They need torch, so
they are not in `host.py`, which every door imports.
"""

from __future__ import annotations

import torch


def onednn_multiplies(dtype: str) -> bool:
    """Whether torch hands products of a 16-bit type, bfloat16 or float16, to oneDNN on this CPU: not where
    it lacks the instructions (use_mkldnn_matmul in ATen/native/mkldnn/Matmul.cpp)."""
    supported = {
        "bfloat16": torch.ops.mkldnn._is_mkldnn_bf16_supported,
        "float16": torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype in supported and bool(supported[dtype]())


def int8_is_widened() -> bool:
    """Whether bitsandbytes multiplies int8 on this CPU in float32: where it lacks AVX-512
    (bitsandbytes/backends/cpu/ops.py)."""
    return torch.backends.cpu.get_cpu_capability() != "AVX512"
