"""Which tensors the CUDA kernels are given, and what is said where there are none."""

import sys
import warnings

import pytest
import torch

from lightning_balq.kernels import gpu
from tests.helpers import randn


@pytest.fixture
def on_gpu(monkeypatch):
    """Tensors of the CPU pass for those of a GPU of a capability: ``on_gpu(7, 5)``."""

    def pretend(*capability):
        is_plain = gpu.is_plain
        monkeypatch.setattr(gpu, "is_plain", lambda tensor, device: device == "cuda" and is_plain(tensor, "cpu"))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    gpu._has_bfloat16.cache_clear()
    gpu._module.cache_clear()
    yield pretend
    gpu._has_bfloat16.cache_clear()
    gpu._module.cache_clear()


def test_tensors_of_a_cpu_need_the_plain_form():
    assert gpu.weight_kernels([randn(3)]) is None
    assert gpu.activation_kernels(randn(3)) is None


def test_kernels_are_those_of_weights_and_of_activations(on_gpu):
    pytest.importorskip("triton", "3.2", reason="the kernels need triton 3.2")
    on_gpu(9, 0)
    weights, activations = gpu.weight_kernels([randn(3), randn(2, 2)]), gpu.activation_kernels(randn(3))
    assert weights.__name__ == "lightning_balq.kernels.cuda.weights"
    assert activations.__name__ == "lightning_balq.kernels.cuda.activations"


def test_one_tensor_that_they_cannot_take_leaves_all_to_the_plain_form(on_gpu):
    on_gpu(9, 0)
    assert gpu.weight_kernels([randn(3), randn(3).to_sparse()]) is None
    assert gpu.weight_kernels([]) is None


@pytest.mark.parametrize(("capability", "taken"), [((7, 5), False), ((8, 0), True)], ids=str)
def test_bfloat16_is_taken_by_gpus_that_have_it(on_gpu, capability, taken):
    pytest.importorskip("triton", "3.2", reason="the kernels need triton 3.2")
    on_gpu(*capability)
    assert gpu.activation_kernels(randn(3)) is not None
    assert (gpu.activation_kernels(randn(3, dtype=torch.bfloat16)) is not None) == taken


def assert_warned_once(match):
    with pytest.warns(RuntimeWarning, match=match):
        assert gpu.activation_kernels(randn(3)) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gpu.activation_kernels(randn(3)) is None


def test_switch_turns_them_off_after_one_warning(on_gpu, monkeypatch):
    on_gpu(9, 0)
    monkeypatch.setenv("LIGHTNING_BALQ_KERNELS", "0")
    assert_warned_once("for activations, and is slower: they are turned off by LIGHTNING_BALQ_KERNELS=0")


def test_triton_that_is_missing_is_named_in_one_warning(on_gpu, monkeypatch):
    on_gpu(9, 0)
    monkeypatch.delenv("LIGHTNING_BALQ_KERNELS", raising=False)
    monkeypatch.delitem(sys.modules, "lightning_balq.kernels.cuda.activations", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)  # cannot be imported
    assert_warned_once("for activations, and is slower: triton cannot be imported .*; install it")


def test_triton_that_is_too_old_is_named_in_one_warning(on_gpu, monkeypatch):
    triton = pytest.importorskip("triton", reason="the kernels need triton")
    on_gpu(9, 0)
    monkeypatch.delenv("LIGHTNING_BALQ_KERNELS", raising=False)
    monkeypatch.setattr(triton, "__version__", "3.1.0")
    assert_warned_once("for activations, and is slower: triton 3.1.0 is older than 3.2, .*; update torch")
