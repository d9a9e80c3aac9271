"""Write a model in the form that the suffix of a file stands for."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_balq.export import DeployReport, deploy_report, to_deploy
from lightning_balq.export.onnx import OnnxReport, export_onnx
from lightning_balq.export.onnx.plan import Mode
from lightning_balq.export.replacing import replacing

ONNX, PROGRAM = ".onnx", ".pt2"


def check_suffix(path: Path) -> None:
    """Raise :class:`ValueError` if a file cannot be exported to."""
    if path.suffix not in (ONNX, PROGRAM):
        raise ValueError(f"expected an output called *{ONNX} or *{PROGRAM}, got {str(path)!r}")


def write_onnx(
    model: nn.Module,
    path: Path,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    mode: Mode,
    integer_convolutions: bool,
    dynamic: Sequence[int],
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
) -> OnnxReport:
    """Write an ONNX file; see :func:`lightning_balq.export.onnx.export_onnx`.

    Raises:
        ImportError: if onnx or onnxscript is not installed, naming what to install.
        ValueError: if the model cannot be exported with these inputs.
        OSError: if the file cannot be written.
    """
    with _torch(path):
        return export_onnx(
            model,
            path,
            dict(kwargs) if kwargs else args,
            mode=mode,
            integer_convolutions=integer_convolutions,
            dynamic_shapes=_free(args, kwargs, dynamic),
            input_names=input_names,
            output_names=output_names,
        )


def write_program(
    model: nn.Module, path: Path, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, dynamic: Sequence[int]
) -> DeployReport:
    """Write the deploy model of a model as a file of ``torch.export``; see :func:`lightning_balq.export.to_deploy`.

    Raises:
        ImportError: if torch lacks the operators and torchao is not installed.
        ValueError: if the model cannot be exported with these inputs.
        OSError: if the file cannot be written.
    """
    deployed = to_deploy(model)
    with _torch(path), torch.no_grad():
        program = torch.export.export(
            deployed, args, dict(kwargs), dynamic_shapes=_free(args, kwargs, dynamic), strict=False
        )
        with replacing(path) as draft, draft.open("wb") as file:
            torch.export.save(program, file)
    return deploy_report(deployed)


def _free(args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic: Sequence[int]) -> Any:
    """Free dimensions of each input, in the form that :func:`torch.export.export` takes; ``None`` if all are fixed."""
    if not dynamic:
        return None
    if not hasattr(torch.export.Dim, "DYNAMIC"):
        raise ImportError(f"`--dynamic` needs torch 2.6 or newer, got {torch.__version__}", name="torch")

    def free(value: Any) -> Any:
        if isinstance(value, Tensor):
            for axis in dynamic:
                if axis >= value.dim() or value.shape[axis] < 2:
                    raise ValueError(
                        f"`--dynamic {axis}` needs inputs of at least {axis + 1} dimensions whose size there is 2 or "
                        f"more, got one of shape {tuple(value.shape)}"
                    )
            return dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC)
        if isinstance(value, (tuple, list)):
            return type(value)(map(free, value))
        return {key: free(item) for key, item in value.items()} if isinstance(value, dict) else None

    return free(dict(kwargs)) if kwargs else free(args)


@contextmanager
def _torch(path: Path) -> Iterator[None]:
    """Within the context, errors of torch's exporters are :class:`ValueError`, and they do not speak of their parts."""
    loggers = {name: logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")}
    levels = {name: logger.level for name, logger in loggers.items()}
    try:
        for logger in loggers.values():
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    except (ImportError, OSError, ValueError):
        raise
    except Exception as error:  # of any kind: the forward is the user's
        text = str(error).strip()
        raise ValueError(f"the model cannot be exported to {str(path)!r} with these inputs: {text}") from error
    finally:
        for name, logger in loggers.items():
            logger.setLevel(levels[name])
