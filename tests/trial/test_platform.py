"""The platform that a trial is about."""

from __future__ import annotations

import pickle

import pytest

from bench.trial.platform import CPU, CUDA, platform_of


def test_a_platform_is_found_by_torchs_name() -> None:
    assert platform_of("cpu") is CPU
    assert platform_of("cuda") is CUDA


@pytest.mark.parametrize("device_type", ["xpu", "mps"])
def test_another_accelerator_counts_memory_like_cuda_under_its_own_name(device_type: str) -> None:
    platform = platform_of(device_type)
    assert platform.device_type == device_type
    assert platform.allocated_bytes(1000) == 1024
    assert not platform.host_is_device
    assert not platform.is_modelled


def test_an_unknown_device_type_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no platform vulkan: there are cpu, cuda, xpu, mps"):
        platform_of("vulkan")


def test_a_platform_travels_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(CUDA)) == CUDA
