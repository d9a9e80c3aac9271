"""Two processes: every rank quantizes alike, and as one process would; sharded weights as whole ones."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.testing import assert_close

from lightning_balq import BalancedQuantization, QuantizationConfig, quantize_
from lightning_balq.nn import activation_quantizers, quantized_layers
from tests.callback.tiny import Batches, quiet_trainer, tiny_model
from tests.compatibility.ranks import WITHOUT_FSDP2, Keep, Unused, network
from tests.helpers import ROOT, assert_equal, randn, snapshot

Ranks = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `ranks.py`, which trains in two processes, has left what each rank held."""
    root = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(ROOT / "tests" / "compatibility" / "ranks.py"), str(root)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    return root


@pytest.fixture(scope="module")
def ranks(folder: Path) -> Ranks:
    def read(name: str) -> list[dict[str, Any]]:
        skip_without_fsdp2(folder, name)
        return [torch.load(folder / f"{name}.rank{rank}.pt", weights_only=True) for rank in (0, 1)]

    return read


def skip_without_fsdp2(folder: Path, name: str) -> None:
    if (folder / WITHOUT_FSDP2).exists() and not (folder / f"{name}.rank0.pt").exists():
        pytest.skip("this torch cannot shard weights on a CPU by FSDP2")


def assert_alike(first: dict[str, Any], second: dict[str, Any]) -> None:
    """All that does not depend on the batches of a rank is the same, bit for bit."""
    for key in first.keys() - {"losses"}:
        assert_equal(first[key], second[key])


@pytest.mark.parametrize("name", ["ddp", "ddp by channel", "unit", "unused", "static", "uneven", "fsdp"])
def test_ranks_hold_equal_weights_codes_ranges_and_records(ranks: Ranks, name: str) -> None:
    first, second = ranks(name)
    assert first["losses"] != second["losses"] and len(first["losses"]) == 12  # each saw its own batches
    assert first["records"]["balq/effective_bitwidth"] > 1.9
    assert_alike(first, second)
    if name != "unit":
        assert first["batches"][:2] == [24, 24]  # of both ranks


def test_two_processes_equal_one_with_the_same_global_batch(ranks: Ranks, tmp_path: Path) -> None:
    keep, model = Keep(), network()
    quantization = BalancedQuantization(2, 2, activation_range="unit", verbose=0, record_every_n_steps=4)
    quiet_trainer(tmp_path, callbacks=[quantization, keep], max_epochs=2).fit(model, Batches())
    first, second = ranks("unit")
    assert_equal(first["codes"], keep.kept["codes"])
    # Gradients are means of two here, and sums over four there.
    assert_close(first["weights"], keep.kept["weights"], rtol=1e-5, atol=1e-6)
    means = (torch.tensor(first["losses"]) + torch.tensor(second["losses"])) / 2
    assert_close(means, torch.tensor(keep.kept["losses"]), rtol=1e-5, atol=0)


def test_an_observed_range_of_two_processes_is_near_that_of_one(ranks: Ranks, tmp_path: Path) -> None:
    keep = Keep()
    quiet_trainer(tmp_path, callbacks=[BalancedQuantization(2, 2, verbose=0), keep]).fit(network(), Batches())
    # A mean over ranks of ranges, each the largest value or a multiple of the mean, is not that of all values.
    assert_close(ranks("ddp")[0]["ranges"], keep.kept["ranges"], rtol=0.1, atol=0)


@pytest.mark.parametrize("name", ["unused", "static"])
def test_options_of_ddp_change_nothing(ranks: Ranks, name: str) -> None:
    expected, actual = ranks("ddp")[0], ranks(name)[0]
    assert actual["losses"] == expected["losses"]
    for key in ("weights", "codes"):
        assert_equal({layer: actual[key][layer] for layer in expected[key]}, expected[key])


def test_a_layer_that_is_never_called_stays_as_it_was(ranks: Ranks) -> None:
    trained = ranks("unused")[0]
    assert trained["codes"].keys() == {"net.3", "net.7", "extra"}
    assert_equal(trained["weights"]["extra.weight"], network(Unused).extra.weight.detach())
    assert trained["batches"][2] == 0 and trained["ranges"][2] == 0


@pytest.mark.parametrize("granularity", ["", " by channel"], ids=["after setup", "by hand before"])
def test_sharded_weights_are_quantized_as_whole_ones(ranks: Ranks, granularity: str) -> None:
    whole, sharded = ranks(f"ddp{granularity}"), ranks(f"fsdp{granularity}")
    for rank in (0, 1):
        assert sharded[rank]["local"] == [count // 2 for count in whole[rank]["local"]]
        assert_equal({**sharded[rank], "local": None}, {**whole[rank], "local": None})


@pytest.mark.parametrize("name", ["fsdp", "fsdp by channel"], ids=["distributed checkpoint", "full checkpoint"])
def test_a_sharded_run_resumes_as_if_uninterrupted(ranks: Ranks, folder: Path, name: str) -> None:
    skip_without_fsdp2(folder, name)
    assert (folder / name / "step=6.ckpt").is_dir() == (name == "fsdp")
    for whole, resumed in zip(ranks(name), ranks(f"{name} resumed"), strict=True):
        assert resumed["losses"] == whole["losses"][6:]
        assert_equal({**resumed, "losses": None}, {**whole, "losses": None})


def test_a_full_checkpoint_of_a_sharded_run_is_one_of_the_float_model(folder: Path) -> None:
    skip_without_fsdp2(folder, "fsdp by channel")
    checkpoint = torch.load(folder / "fsdp by channel" / "step=6.ckpt", weights_only=True)
    model = network(seed=1)
    model.load_state_dict(checkpoint["state_dict"], strict=True)
    quantize_(model, QuantizationConfig(activation_bits=2))
    model.on_load_checkpoint(checkpoint)
    assert all(quantizer.ready and quantizer.batches == 12 for quantizer in activation_quantizers(model))


def test_what_is_learned_is_refused_where_it_would_be_sharded(ranks: Ranks) -> None:
    for name, quantized in (("learned", []), ("learned by hand", ["net.3", "net.7"])):
        for refused in ranks(name):
            assert "LSQQuantization learns scales or ranges, which ModelParallelStrategy would" in refused["message"]
            assert refused["quantized"] == quantized and refused["steps"] == 0


def test_nan_in_the_shard_of_one_rank_stops_all_ranks(ranks: Ranks) -> None:
    for stopped in ranks("poisoned"):
        assert "`weight` of layer 'net.7' holds NaN" in stopped["message"] and stopped["steps"] == 4


def test_tensor_parallelism_of_a_quantized_layer_is_refused(ranks: Ranks) -> None:
    for refused in ranks("parallel"):
        assert "`weight` of Linear(" in refused["message"] and "by tensor parallelism" in refused["message"]
        assert refused["steps"] == 0


def test_sync_batchnorm_converts_beside_quantized_layers(ranks: Ranks) -> None:
    model = tiny_model()
    quantize_(model.net, QuantizationConfig(activation_bits=2))
    model.net(randn(4, 1, 8, 8))
    expected, layers = model.net.eval()(randn(4, 1, 8, 8, seed=1)), list(quantized_layers(model.net))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model.net)
    assert isinstance(converted[1], nn.SyncBatchNorm)
    assert [(name, layer) for name, layer, _ in quantized_layers(converted)] == [layer[:2] for layer in layers]
    assert_equal(converted(randn(4, 1, 8, 8, seed=1)), expected)
    for refused in ranks("sync"):  # by torch, which synchronizes on GPUs alone
        assert "SyncBatchNorm" in refused["message"] and "GPU" in refused["message"] and refused["steps"] == 0


def deepspeed(stage: int) -> Any:
    """Look like Lightning's strategy, which cannot be made where deepspeed is not installed."""
    members = {"zero_stage_3": stage == 3, "restore_checkpoint_after_setup": True}
    return type("DeepSpeedStrategy", (SingleDeviceStrategy,), members)(device=torch.device("cpu"))


def test_deepspeed_is_refused_where_it_shards_weights(tmp_path: Path) -> None:
    model = network()
    before = snapshot(model.net)
    trainer = quiet_trainer(tmp_path, callbacks=[BalancedQuantization(2, verbose=0)], strategy=deepspeed(3))
    with pytest.raises(MisconfigurationException, match="cannot be combined with stage 3 of DeepSpeed"):
        trainer.fit(model, Batches())
    assert snapshot(model.net) == before and not vars(model).keys() & {"setup", "configure_optimizers"}
    trainer = quiet_trainer(tmp_path, callbacks=[BalancedQuantization(2, verbose=0)], strategy=deepspeed(2))
    trainer.fit(model, Batches())
    assert len(model.losses) == 6


@pytest.mark.parametrize("name", ["BitsandbytesPrecision", "TransformerEnginePrecision"])
@pytest.mark.parametrize("is_subclass", [False, True])
def test_precisions_that_replace_layers_are_refused(tmp_path: Path, name: str, is_subclass: bool) -> None:
    plugin = type(name, (Precision,), {})  # those of Lightning need what they call
    plugin = type("Own", (plugin,), {}) if is_subclass else plugin
    model = network()
    before = snapshot(model.net)
    trainer = quiet_trainer(tmp_path, callbacks=[BalancedQuantization(2, verbose=0)], plugins=[plugin()])
    with pytest.raises(MisconfigurationException, match=f"cannot be combined with {name}, which replaces the linear"):
        trainer.fit(model, Batches())
    assert snapshot(model.net) == before and not vars(model).keys() & {"setup", "configure_optimizers"}
