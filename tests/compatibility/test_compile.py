"""Compilers and tracers see the quantized network, train it as eager mode does, and compile it once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import Callback
from packaging.version import Version
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from lightning_balq import BalancedQuantization, unquantize_
from tests.callback.tiny import Batches, examples, quiet_trainer, tiny_net
from tests.helpers import assert_equal, randn

IMAGES = (5, 1, 8, 8)


@pytest.fixture(autouse=True)
def _dynamo() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Silent(LightningModule):
    """A small CNN that logs nothing: in a compiled step, ``self.log`` fails without this package too."""

    compile_in = ""
    backend: Any = "eager"

    def __init__(self) -> None:
        super().__init__()
        self.net: Any = tiny_net()

    def setup(self, stage: str) -> None:
        if self.compile_in == "setup":
            self.net = torch.compile(self.net, backend=self.backend)

    def on_fit_start(self) -> None:
        if self.compile_in == "on_fit_start":
            self.net.compile(backend=self.backend)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


class Losses(Callback):
    def __init__(self) -> None:
        self.training: list[Tensor] = []
        self.validation: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.training.append(outputs["loss"].detach())

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.validation.append(outputs.detach())


def silent(compile_in: str = "", backend: Any = "eager") -> Silent:
    seed_everything(0, verbose=False)
    model = Silent()
    model.compile_in, model.backend = compile_in, backend
    return model


def fit(root: Path, model: Any, callback: Callback | None, **options: Any) -> dict[str, Any]:
    """Losses and final weights of a run with a validation after each epoch."""
    losses = Losses()
    callbacks = [losses] if callback is None else [callback, losses]
    few = {"max_epochs": 1, "limit_train_batches": 4, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    trainer = quiet_trainer(root, callbacks=callbacks, **few | options)
    trainer.fit(model, Batches(), Batches(examples(8, seed=1)))
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    return {"training": losses.training, "validation": losses.validation, "weights": weights}


def quantization(**options: Any) -> BalancedQuantization:
    return BalancedQuantization(2, 2, verbose=0, **options)


def compiled(model: Any, **options: Any) -> Any:
    return torch.compile(model, **options)


def in_place(model: Any, **options: Any) -> Any:
    model.compile(**options)
    return model


def part(model: Any, **options: Any) -> Any:
    model.net = torch.compile(model.net, **options)
    return model


def part_in_place(model: Any, **options: Any) -> Any:
    model.net.compile(**options)
    return model


def layer(model: Any, **options: Any) -> Any:
    model.net[3] = torch.compile(model.net[3], **options)
    return model


BEFORE_FIT = {
    "torch.compile(model)": compiled,
    "model.compile()": in_place,
    "torch.compile(part)": part,
    "part.compile()": part_in_place,
    "torch.compile(layer)": layer,
}


@pytest.fixture(scope="module")
def in_eager_mode(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return fit(tmp_path_factory.mktemp("eager"), silent(), quantization())


@pytest.mark.parametrize("how", BEFORE_FIT.values(), ids=BEFORE_FIT)
def test_a_model_compiled_before_fit_trains_as_in_eager_mode(
    tmp_path: Path, how: Any, in_eager_mode: dict[str, Any]
) -> None:
    counter = CompileCounterWithBackend("eager")
    actual = fit(tmp_path, how(silent(), backend=counter), quantization())
    assert counter.frame_count > 0  # it did compile
    assert_equal(actual, in_eager_mode)


def test_gradients_compiled_ahead_of_time_train_as_in_eager_mode(tmp_path: Path, in_eager_mode: dict[str, Any]) -> None:
    actual = fit(tmp_path, part(silent(), backend="aot_eager"), quantization())
    # Gradients are added in another order.
    torch.testing.assert_close(actual, in_eager_mode, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hook", ["setup", "on_fit_start"])
def test_a_model_that_compiles_itself_in_fit_trains_as_in_eager_mode(
    tmp_path: Path, hook: str, in_eager_mode: dict[str, Any]
) -> None:
    counter = CompileCounterWithBackend("eager")
    actual = fit(tmp_path, silent(hook, counter), quantization())
    assert counter.frame_count > 0
    assert_equal(actual, in_eager_mode)


@pytest.mark.slow
def test_inductor_trains_as_eager_mode_does(tmp_path: Path, in_eager_mode: dict[str, Any]) -> None:
    actual = fit(tmp_path, part(silent(), backend="inductor"), quantization())
    # Fused operations round less often.
    torch.testing.assert_close(actual["training"], in_eager_mode["training"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["torch.compile(part)", "model.compile()"])
def test_nothing_is_compiled_anew_while_the_schedule_moves(tmp_path: Path, how: str) -> None:
    counts = {}
    for blend_steps in (2, 6):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("eager")
        options = {"start_step": 2, "blend_steps": blend_steps}
        expected = fit(tmp_path, silent(), quantization(**options), max_epochs=3, limit_val_batches=0)
        model = BEFORE_FIT[how](silent(), backend=counter)
        actual = fit(tmp_path, model, quantization(**options), max_epochs=3, limit_val_batches=0)
        assert_equal(actual, expected)
        counts[blend_steps] = counter.frame_count
    # Float before and after the first batch has shown the ranges, blended, quantized.
    assert counts == {2: 4, 6: 4}


def test_steps_and_records_compile_nothing_anew(tmp_path: Path) -> None:
    counts = []
    for epochs in (1, 3):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("eager")
        model = part(silent(), backend=counter)
        fit(tmp_path, model, quantization(record_every_n_steps=2), max_epochs=epochs)
        counts.append(counter.frame_count)
    assert counts == [3, 3]  # the first batch, those after it, validation


@pytest.mark.parametrize("how", ["torch.compile(part)", "part.compile()", "model.compile()"])
def test_a_model_compiled_and_trained_in_float_is_quantized_afterwards(tmp_path: Path, how: str) -> None:
    results = []
    for compile_ in (BEFORE_FIT[how], lambda model, **_: model):
        model = compile_(silent(), backend="eager")
        first = fit(tmp_path, model, None)
        with pytest.warns(UserWarning, match="was trained before"):
            second = fit(tmp_path, model, quantization())
        quantized = model(randn(*IMAGES)).detach()
        unquantize_(model)
        results.append([first, second, quantized, model(randn(*IMAGES)).detach()])
        assert not torch.equal(results[-1][2], results[-1][3])
    assert_equal(*results)


# ---- export and tracing ---------------------------------------------------------------------------------------------


class Rows(nn.Module):
    """A convolution and an LSTM over the rows of what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.rnn, self.last = nn.LSTM(32, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.first(x).relu()).relu()
        return self.last(self.rnn(x.transpose(1, 2).flatten(2))[0][:, -1])


def trained(root: Path, net: Callable[[], nn.Module]) -> Silent:
    model = silent()
    model.net = net()
    exclude = ["net.rnn.state"] if net is Rows else []  # the code for states takes long to compile
    fit(root, model, quantization(exclude=exclude), limit_train_batches=2)
    return model.eval()


@pytest.mark.parametrize(
    ("net", "strict"), [(tiny_net, False), (tiny_net, True), (Rows, False)], ids=["not strict", "strict", "recurrent"]
)
def test_an_exported_model_is_the_quantized_one(tmp_path: Path, net: Any, strict: bool) -> None:
    model = trained(tmp_path, net)
    program = torch.export.export(model.net, (randn(*IMAGES),), strict=strict)
    x = randn(*IMAGES, seed=1)
    assert_equal(program.module()(x), model(x))
    assert set(program.state_dict) == set(model.net.state_dict())


@pytest.mark.skipif(Version(torch.__version__) < Version("2.6"), reason="torch 2.5 exports it")
def test_a_recurrent_layer_is_not_exported_strictly(tmp_path: Path) -> None:
    model = trained(tmp_path, Rows)
    with pytest.raises(Exception, match=r"QuantizedRecurrent.forward .*torch.compiler.disable"):
        torch.export.export(model.net, (randn(*IMAGES),), strict=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("net", [tiny_net, Rows])
def test_a_traced_model_is_the_quantized_one_also_from_a_file(tmp_path: Path, net: Any) -> None:
    model = trained(tmp_path, net)
    x = randn(*IMAGES, seed=1)
    expected = model(x)
    for traced in (
        torch.jit.trace(model.net, (randn(*IMAGES),)),
        model.to_torchscript(method="trace", example_inputs=x),
    ):
        torch.jit.save(traced, tmp_path / "traced.pt")
        assert_equal(torch.jit.load(tmp_path / "traced.pt")(x), expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_scripting_is_refused_until_the_model_is_float_again(tmp_path: Path) -> None:
    model = trained(tmp_path, tiny_net)
    for script in (lambda: torch.jit.script(model.net), model.to_torchscript):
        with pytest.raises(RuntimeError, match=r"torch.jit.script cannot .* use torch.jit.trace"):
            script()
    unquantize_(model)
    x = randn(*IMAGES)
    assert_equal(torch.jit.script(model.net)(x), model(x))


def test_a_functional_transform_refuses_layers_that_observe(tmp_path: Path) -> None:
    model = silent()
    model.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    fit(tmp_path, model, quantization())
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (sample[None],)).square().sum()

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    with pytest.raises(RuntimeError, match="mutate a captured Tensor"):
        gradients(parameters, randn(*IMAGES))
    model.eval()
    assert gradients(parameters, randn(*IMAGES))["net.2.weight"].shape == (5, 8, 8)
