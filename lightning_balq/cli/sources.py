"""Where the command line gets checkpoints, models and inputs from. Nothing in a file is executed."""

import importlib
import inspect
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_balq.nn import restore_


def is_checkpoint(path: Path) -> bool:
    """Whether a file is one that :func:`torch.save` wrote, and not a packed one."""
    with path.open("rb"):  # what is missing or a folder is an OSError that names it
        pass
    return zipfile.is_zipfile(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint of Lightning, with ``weights_only=True``.

    Raises:
        ValueError: if it is not one.
        OSError: if it cannot be read.
    """
    if not is_checkpoint(path):
        raise ValueError(f"{str(path)!r} is not a checkpoint, or not a whole one")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of pickle, zip and torch
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{str(path)!r} cannot be loaded with `weights_only=True`: {reason}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise ValueError(f'{str(path)!r} holds no "state_dict"; expected a checkpoint as Lightning writes it')
    return checkpoint


def quantized_model(factory: str, arguments: Mapping[str, Any], path: Path) -> nn.Module:
    """Build the model of a checkpoint, quantized and in evaluation mode."""
    checkpoint = read_checkpoint(path)
    model = build_model(factory, arguments, checkpoint)
    try:
        restore_(model, checkpoint)
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error
    return model.eval()


def build_model(factory: str, arguments: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> nn.Module:
    """Build a float model.

    Args:
        factory: ``package.module:Name`` of a class or function that returns it.
        arguments: for its call; they override the hyper-parameters of the checkpoint.
        checkpoint: holds hyper-parameters, of which a LightningModule gets those that it takes.

    Raises:
        ValueError: if it cannot be built.
    """
    make = import_name(factory)
    is_lightning = isinstance(make, type) and issubclass(make, LightningModule)
    options = {**(_hyper_parameters(make, checkpoint) if is_lightning else {}), **arguments}
    try:
        model = make(**options)
        if isinstance(model, LightningModule):
            model.configure_model()
    except Exception as error:  # whatever a class of the user raises
        raise ValueError(f"{factory} cannot be called with the arguments {sorted(options)}: {error!r}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{factory} must make a torch.nn.Module, got {type(model).__name__}")
    return model


def import_name(name: str) -> Callable[..., Any]:
    """Import ``package.module:Name``, also from the working directory.

    Raises:
        ValueError: if there is no such thing, or it cannot be called.
    """
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute):
        raise ValueError(f"expected `package.module:Name`, got {name!r}")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"{name!r} must be a class or a function, got {type(found).__name__}")
    return found  # type: ignore[no-any-return]  # looked up by name


def _hyper_parameters(cls: Callable[..., Any], checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that a LightningModule saved, as Lightning would pass them."""
    saved = checkpoint.get("hyper_parameters", {})
    if not isinstance(saved, Mapping):
        raise ValueError(f"the hyper-parameters of the checkpoint must be a mapping, got {type(saved).__name__}")
    parameters = inspect.signature(cls).parameters
    whole = checkpoint.get("hparams_name")
    if isinstance(whole, str) and whole in parameters and parameters[whole].kind != inspect.Parameter.VAR_KEYWORD:
        return {whole: saved}
    takes_all = any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return {key: value for key, value in saved.items() if key in parameters or (takes_all and key[:1] != "_")}


def read_inputs(path: Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a forward: a tensor, or a tuple, list or dict in a ``.pt`` or ``.npy`` file.

    Raises:
        ValueError: if the file holds something else.
        OSError: if it cannot be read.
    """
    try:
        given = _read_array(path) if path.suffix == ".npy" else torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of pickle, zip, numpy and torch
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{str(path)!r} holds no tensors that can be loaded without executing it: {reason}") from error
    if isinstance(given, Tensor):
        return (given,), {}
    if isinstance(given, (tuple, list)):
        return tuple(given), {}
    if isinstance(given, dict) and all(isinstance(key, str) for key in given):
        return (), given
    raise ValueError(f"{str(path)!r} must hold a tensor, or a tuple, list or dict of them, got {type(given).__name__}")


def _read_array(path: Path) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.load(path, allow_pickle=False))


def random_inputs(shape: tuple[int, ...], tokens: int | None, seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Gaussian values, or integers below ``tokens``."""
    generator = torch.Generator().manual_seed(seed)
    if tokens is None:
        return (torch.randn(shape, generator=generator),), {}
    return (torch.randint(0, tokens, shape, generator=generator),), {}
