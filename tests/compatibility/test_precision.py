"""Every precision of the Trainer: what layers multiply are the levels that float32 statistics give, cast once."""

import copy
import functools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_balq import BalancedQuantization, LSQQuantization
from lightning_balq.nn import activation_quantizers, learned_parameters, quantized_layers
from tests import reference
from tests.callback.tiny import Batches, TinyModel, quiet_trainer
from tests.helpers import assert_equal

# Name -> arguments of the Trainer, type of the weights, type in which layers multiply.
PRECISIONS: dict[str, tuple[dict[str, Any], torch.dtype, torch.dtype]] = {
    "16-mixed": ({"precision": "16-mixed"}, torch.float32, torch.bfloat16),  # Lightning makes it bfloat16 on CPUs
    "16-mixed with float16": ({"plugins": [MixedPrecision("16-mixed", "cpu")]}, torch.float32, torch.float16),
    "bf16-mixed": ({"precision": "bf16-mixed"}, torch.float32, torch.bfloat16),
    "bf16-true": ({"precision": "bf16-true"}, torch.bfloat16, torch.bfloat16),
    "16-true": ({"precision": "16-true"}, torch.float16, torch.float16),
    "64-true": ({"precision": "64-true"}, torch.float64, torch.float64),
}
BITS = 2


class Mixture(TinyModel):
    """A convolution, an LSTM and a linear layer between float ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Linear(8, 8), nn.Conv1d(8, 6, 3, padding=1)
        self.rnn, self.hidden, self.head = nn.LSTM(6, 8), nn.Linear(8, 16), nn.Linear(16, 3)
        del self.net

    def forward(self, x: Tensor) -> Tensor:
        rows = F.relu(self.stem(x.squeeze(1)))
        steps = self.conv(rows.transpose(1, 2)).permute(2, 0, 1).contiguous()
        return self.head(F.relu(self.hidden(F.relu(self.rnn(steps)[0][-1]))))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.5)  # the epsilon of Adam is zero in float16


class Inputs(Callback):
    """Keeps what the quantized convolution and linear layer are given in training, batch by batch."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Tensor]] = {"conv": [], "hidden": []}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for name, values in self.seen.items():
            layer = pl_module.get_submodule(name)
            layer.register_forward_pre_hook(
                lambda layer, args, values=values: values.append(args[0].detach().clone()) if layer.training else None
            )


class Products(TorchDispatchMode):
    """Keeps what each quantized layer is given and multiplies, in the type in which it is multiplied."""

    FACTORS: ClassVar[dict[str, slice]] = {
        "aten::mm": slice(0, 2),
        "aten::addmm": slice(1, 3),
        "aten::convolution": slice(0, 2),
        "aten::mkldnn_rnn_layer": slice(0, 3),
    }

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inputs: dict[str, Tensor] = {}
        self.factors: dict[str, list[Tensor]] = {name: [] for name, _, _ in quantized_layers(model)}
        self.present = ""
        for name, layer, _ in quantized_layers(model):
            layer.register_forward_pre_hook(functools.partial(self._enter, name))
            layer.register_forward_hook(self._leave)

    def _enter(self, name: str, layer: nn.Module, args: Any) -> None:
        self.present, self.inputs[name] = name, args[0].detach().clone()

    def _leave(self, *_: Any) -> None:
        self.present = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        factors = args[self.FACTORS.get(func._schema.name, slice(0))]
        if self.present:
            self.factors[self.present] += [factor.detach().clone() for factor in factors]
        return func(*args, **kwargs or {})

    def assert_contain(self, name: str, expected: Tensor) -> None:
        """Some factor of a layer, as it is or transposed, equals these values in the type of the product."""
        seen = [view for factor in self.factors[name] for view in (factor, factor.transpose(0, 1))]
        kinds = {factor.dtype for factor in seen}
        assert len(kinds) == 1
        flat = expected.to(kinds.pop()).flatten()
        assert any(torch.equal(factor.flatten(), flat) for factor in seen), name


def weight_levels(weight: Tensor, per_channel: bool) -> Tensor:
    """Levels of a weight by the transcription of the paper, of its values in float32; in its type."""
    values = weight.detach().to(torch.float32).numpy()
    rows = values.reshape(len(values), -1) if per_channel else values.reshape(1, -1)
    levels = [
        reference.levels(reference.balanced_partition(row, BITS)[0], reference.max_scale(row, BITS), BITS)
        for row in rows
    ]
    return torch.from_numpy(np.stack(levels).reshape(values.shape)).to(weight.dtype)


def input_levels(x: Tensor, quantizer: Any) -> Tensor:
    """Levels of an activation, of its values in float32; in its type."""
    range_, signed, values = quantizer.range, bool(quantizer.signed), x.detach().to(torch.float32).numpy()
    assert range_.dtype == torch.float32
    low = np.float32(-range_.item() if signed else 0)
    scale = (np.float32(2) if signed else np.float32(1)) * np.float32(range_.item()) / np.float32(2**BITS - 1)
    codes = np.clip(np.rint((values - low) / scale), 0, 2**BITS - 1)
    levels = np.where(values == 0, np.float32(0), codes * scale + low)
    return torch.from_numpy(levels.astype(np.float32)).to(x.dtype)


def expected_range(batches: list[Tensor]) -> float:
    """Running mean of the range of each batch, in float64."""
    mean = None
    for batch in batches:
        size = np.abs(batch.to(torch.float64).numpy())
        seen = min(size.max(), 2 * np.sqrt(2**BITS - 1) * size.mean())
        mean = seen if mean is None else mean + 0.1 * (seen - mean)
    assert mean is not None
    return float(mean)


@pytest.mark.parametrize(
    ("granularity", "activation_bits"), [("per_tensor", BITS), ("per_channel", BITS), ("per_tensor", None)]
)
@pytest.mark.parametrize("name", PRECISIONS)
def test_layers_multiply_the_levels_of_float32_statistics(
    tmp_path: Path, name: str, granularity: Any, activation_bits: int | None
) -> None:
    options, weight_type, product_type = PRECISIONS[name]
    torch.manual_seed(0)
    model, inputs = Mixture(), Inputs()
    quantization = BalancedQuantization(BITS, activation_bits, granularity=granularity, verbose=0)
    trainer = quiet_trainer(tmp_path, callbacks=[quantization, inputs], deterministic=False, **options)
    before = copy.deepcopy(model.state_dict())
    trainer.fit(model, Batches())
    assert len(model.losses) == 6 and all(np.isfinite(model.losses))
    assert not any(torch.equal(value.to(torch.float32), before[key]) for key, value in model.state_dict().items())

    products = Products(model)
    with torch.no_grad(), trainer.precision_plugin.forward_context(), products:
        model.eval()(trainer.precision_plugin.convert_input(Batches().batches[0][0]))
    assert list(products.inputs) == ["conv", "rnn", "hidden"]
    for path, layer, state in quantized_layers(model):
        for weight_name in state.weights:
            weight = getattr(layer, weight_name)
            assert weight.dtype == weight_type
            products.assert_contain(path, weight_levels(weight, per_channel=granularity == "per_channel"))
        if activation_bits is not None:
            levels = input_levels(products.inputs[path], state.inputs["input"])
            products.assert_contain(path, levels)
            if granularity == "per_tensor":  # beside zero, which stays zero
                assert all(len(factor[factor != 0].unique()) <= 2**BITS for factor in products.factors[path])
    # The steps of a recurrent layer with quantized states run in the type of the weights.
    for path in ("conv", "hidden"):
        assert {factor.dtype for factor in products.factors[path]} == {product_type}
    for path, batches in inputs.seen.items() if activation_bits is not None else ():
        _, _, state = next(found for found in quantized_layers(model) if found[0] == path)
        # sums in another order
        assert state.inputs["input"].range.item() == pytest.approx(expected_range(batches), rel=1e-5)


def test_learned_parameters_move_by_small_steps_in_bf16_true(tmp_path: Path) -> None:
    class Adam(Mixture):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 1e-4)

    class Values(Callback):
        def __init__(self) -> None:
            self.values: list[Tensor] = []

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.values.append(torch.cat([value.detach() for _, value, _ in learned_parameters(pl_module)]))

    runs = {}
    for precision in ("bf16-true", "32-true"):
        torch.manual_seed(0)
        kept = Values()
        quantization = LSQQuantization(2, 2, activation_range="lsq", verbose=0)
        trainer = quiet_trainer(tmp_path, callbacks=[quantization, kept], precision=precision, deterministic=False)
        trainer.fit(Adam(), Batches())
        runs[precision] = torch.stack(kept.values)
    assert runs["bf16-true"].dtype == torch.float32
    # In the beginning every step of Adam is of the size of the learning rate; bfloat16 has three digits.
    for values in runs.values():
        steps = values.diff(dim=0).abs()
        assert (steps.amax(dim=0) > 0).all() and steps.max() < 2e-4
    # What scales begin with is that of weights that were rounded to 8 bits.
    assert_close(runs["bf16-true"][0], runs["32-true"][0], rtol=0, atol=0.03)


@pytest.mark.parametrize("method", [BalancedQuantization, LSQQuantization])
def test_a_run_in_bf16_true_resumes_as_if_uninterrupted(tmp_path: Path, method: Any) -> None:
    def fit(seed: int, **options: Any) -> Mixture:
        torch.manual_seed(seed)
        model = Mixture()
        learned = "observed" if method is BalancedQuantization else "lsq"
        callbacks = [
            method(2, 2, activation_range=learned, verbose=0),
            ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1),
        ]
        trainer = quiet_trainer(
            tmp_path,
            callbacks=callbacks,
            precision="bf16-true",
            enable_checkpointing=True,
            max_epochs=2,
            deterministic=False,
        )
        trainer.fit(model, Batches(), **options)
        return model

    whole, resumed = fit(0), fit(1, ckpt_path=tmp_path / "step=5.ckpt")
    assert resumed.losses == whole.losses[5:]
    assert_equal(dict(resumed.state_dict()), dict(whole.state_dict()))
    ranges = [[quantizer.range for quantizer in activation_quantizers(model)] for model in (resumed, whole)]
    assert_equal(*ranges)
