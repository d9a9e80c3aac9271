"""Make a float model the quantized network of a checkpoint, which says by itself how that was quantized."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_balq.nn.cache import LevelCache
from lightning_balq.nn.checkpoint import KEY, VERSION, load_state
from lightning_balq.nn.layers import REASON, clean_name, quantized_layers
from lightning_balq.nn.learned import check_learnable
from lightning_balq.nn.quantize import adopt_, install_, unquantize_
from lightning_balq.nn.saved_layers import build_layer
from lightning_balq.nn.saved_state import check_mapping, check_version
from lightning_balq.nn.schedule import Schedule


def restore_(model: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Quantize a float model as the network of a checkpoint was, and load weights, ranges and learned scales.

    Args:
        model: float model of the same architecture.
        checkpoint: of Lightning, or any mapping with a ``"state_dict"`` on which the hooks of
            :func:`lightning_balq.quantize_` ran.

    Raises:
        ValueError: if it holds no quantized network, one of another architecture, or one that a quantizer made which is
            not of this package. The layers of ``model`` are then float, and its weights may have changed.

    Example:
        >>> from lightning_balq.nn import activation_quantizers, quantization_state, quantize_, QuantizationConfig
        >>> model, other = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> _ = quantize_(model, QuantizationConfig(quantize_first_last=True))
        >>> restore_(other, {"state_dict": model.state_dict(), "lightning_balq": quantization_state(model)})
        >>> [name for name, _, _ in quantized_layers(other)]
        ['']
    """
    saved = _saved(checkpoint)
    if any(True for _ in quantized_layers(model)):
        raise ValueError("the model is quantized already; expected a float model, as its class makes it")
    modules = {clean_name(name): module for name, module in model.named_modules()}
    missing = sorted(saved["layers"].keys() - modules)
    if missing:
        raise ValueError(f"the model has no layer {missing[0]!r}, which is quantized in the checkpoint")
    schedule, cache = Schedule(), LevelCache()
    wanted = {name: build_layer(name, modules[name], entry, schedule, cache) for name, entry in saved["layers"].items()}
    for name, state in wanted.items():
        check_learnable(name, modules[name], state)
    install_({modules[name]: state for name, state in wanted.items()})
    try:
        adopt_(model, schedule, cache)
        for name, reason in saved.get("float", {}).items():
            if name in modules:
                modules[name].__dict__[REASON] = str(reason)
        _load(model, dict(checkpoint))
    except Exception:
        unquantize_(model)
        raise


def _saved(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """State of the quantized layers, as far as it can be believed."""
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise ValueError('expected a checkpoint with a "state_dict", as Lightning writes it')
    if KEY not in checkpoint:
        raise ValueError("the checkpoint is that of a float model: it holds no state of lightning_balq")
    saved = check_mapping(KEY, checkpoint[KEY], ("version",))
    check_version(f"{KEY}['version']", saved["version"], VERSION, KEY)
    for key in ("layers", "float"):
        check_mapping(f"{KEY}[{key!r}]", saved.get(key, {}))
    if not saved.get("layers"):
        raise ValueError(
            "the checkpoint does not say how its layers are quantized, as one of an older lightning_balq: quantize the "
            "model as in training, load the checkpoint, and use the model"
        )
    return saved


def _load(model: nn.Module, checkpoint: dict[str, Any]) -> None:
    """What Lightning does: the hook of the model, then its weights."""
    hook = getattr(model, "on_load_checkpoint", None)  # ours, in front of its own
    if callable(hook):
        hook(checkpoint)
    else:
        load_state(model, lambda _: None, checkpoint)
    keys = {clean_name(key): key for key in model.state_dict()}
    weights = {keys.get(clean_name(key), key): value for key, value in checkpoint["state_dict"].items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint does not fit the model: {error}") from error
