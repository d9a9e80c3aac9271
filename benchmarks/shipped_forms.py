"""A trained network in each form that it can be shipped in."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn

from benchmarks.bench_export import open_session
from benchmarks.harness import Case
from lightning_balq.cli.engines import run_onnx, run_program
from lightning_balq.cli.runs import Exported
from lightning_balq.export import compile_deploy, load_packed, pack, to_deploy
from lightning_balq.export.onnx import export_onnx
from lightning_balq.export.onnx.graph import OPSET
from recipes.models.classifier import ImageClassifier

FLOAT, PYTORCH, PACKED, PROGRAM = "float, ONNX", "quantized, PyTorch", "packed", "int8, .pt2 compiled"
PORTABLE, INTEGER = "ONNX, portable", "ONNX, integer"


@dataclass(frozen=True)
class Form:
    """A network as it is shipped.

    Attributes:
        size: bytes of its file; of float32 values where there is none.
        forward: the forward of the model.
        program: what is called to time it; ``forward`` by default.
        run: runs the file, noting what goes into layers and comes out of them; ``None`` if layers are not told apart.
    """

    size: int
    forward: Callable[..., Any]
    program: Callable[..., Any] | None = None
    run: Callable[[tuple[Any, ...]], Exported] | None = None

    def case(self, inputs: tuple[Any, ...]) -> Case:
        """One call, to be timed."""
        return partial(torch.no_grad()(self.program or self.forward), *inputs)


@dataclass(frozen=True)
class Network:
    """A trained network, and the data to test it on.

    Attributes:
        plain: the float model, untrained.
        quantized: the model of the checkpoint.
        rebuild: makes the float model anew.
        data: set up for a test.
    """

    plain: LightningModule
    quantized: LightningModule
    rebuild: Callable[[], LightningModule]
    data: LightningDataModule

    def inputs(self, count: int) -> tuple[Any, ...]:
        """Inputs of a forward: some images, or the first steps of some texts and the state before them."""
        batch, _ = next(iter(self.data.test_dataloader()))
        if isinstance(self.plain, ImageClassifier):
            return (batch[:count].clone(),)  # else the file of a program would hold all of the batch
        texts = batch[:, :count].clone()
        return texts, zero_state(self.plain, texts.shape[1])

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """Free dimensions of the inputs."""
        batch, steps = torch.export.Dim("batch"), torch.export.Dim("steps")
        if isinstance(self.plain, ImageClassifier):
            return ({0: batch},)
        lstm = isinstance(self.plain.rnn, nn.LSTM)
        return {0: steps, 1: batch}, ({1: batch}, {1: batch}) if lstm else {1: batch}


def make_forms(network: Network, folder: Path) -> dict[str, Form]:
    """All forms of a network, with their files in a folder."""
    few, dynamic = network.inputs(2), network.dynamic_shapes()
    names = (FLOAT, PACKED, PORTABLE, INTEGER, PROGRAM)
    paths = {name: folder / f"{index}.file" for index, name in enumerate(names)}
    torch.onnx.export(
        network.plain, few, str(paths[FLOAT]), dynamo=True, opset_version=OPSET, dynamic_shapes=dynamic,
        external_data=False, verbose=False,
    )  # fmt: skip
    pack(network.quantized, paths[PACKED])
    for name, mode in ((PORTABLE, "portable"), (INTEGER, "integer")):
        export_onnx(network.quantized, paths[name], few, mode=mode, integer_convolutions=True, dynamic_shapes=dynamic)
    packed = load_packed(paths[PACKED], network.rebuild()).forward
    forms = {name: (Session(paths[name]), None) for name in (FLOAT, PORTABLE, INTEGER)} | {PACKED: (packed, None)}
    if isinstance(network.quantized, ImageClassifier):
        program = torch.export.export(to_deploy(network.quantized), few, dynamic_shapes=dynamic)
        torch.export.save(program, paths[PROGRAM])
        module = torch.export.load(paths[PROGRAM]).module()
        forms[PROGRAM] = module, compile_deploy(module)
    size = sum(value.nbytes for value in [*network.plain.parameters(), *network.plain.buffers()])
    runs: dict[str, Callable[..., Exported]] = {
        name: partial(run_onnx, paths[name], kwargs={}) for name in (PORTABLE, INTEGER)
    }
    runs[PROGRAM] = partial(run_program, paths[PROGRAM], kwargs={}, model=network.quantized)
    found = {name: Form(paths[name].stat().st_size, *forms[name], runs.get(name)) for name in names if name in forms}
    return {PYTORCH: Form(size, network.quantized.forward), **found}


def zero_state(model: Any, count: int) -> Any:
    """State of a language model before the first step of some texts."""
    zeros = torch.zeros(model.rnn.num_layers, count, model.rnn.hidden_size)
    return (zeros, zeros.clone()) if isinstance(model.rnn, nn.LSTM) else zeros


class Session:
    """A file in ONNX Runtime, called as the model is that was exported.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._session = open_session(path)
        self._names = [(given.name, given.shape) for given in self._session.get_inputs()]

    def __call__(self, inputs: Tensor, state: Any = None) -> Any:
        """Logits, and the state after them where the model has one; it begins with zeros."""
        (first, _), *others = self._names
        feeds = {first: inputs.numpy()}
        for place, (name, shape) in enumerate(others):
            part = torch.zeros(shape[0], inputs.shape[1], shape[2]) if state is None else _parts(state)[place]
            feeds[name] = part.numpy()
        logits, *after = (torch.from_numpy(value) for value in self._session.run(None, feeds))
        if not others:
            return logits
        return logits, tuple(after) if len(after) > 1 else after[0]


def _parts(state: Any) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else state
