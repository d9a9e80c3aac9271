"""Weights of layers: what they are called, and how they are read and arranged."""

from collections.abc import Hashable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

QUANTIZABLE: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    nn.Conv1d: ("weight",),
    nn.Conv2d: ("weight",),
    nn.Conv3d: ("weight",),
    nn.ConvTranspose1d: ("weight",),
    nn.ConvTranspose2d: ("weight",),
    nn.ConvTranspose3d: ("weight",),
    nn.Embedding: ("weight",),
    nn.MultiheadAttention: (
        "in_proj_weight",
        "q_proj_weight",
        "k_proj_weight",
        "v_proj_weight",
        "out_proj.weight",
    ),
}
"""Types that can be quantized, subclasses included, and the dotted names of their weights; recurrent ones aside."""

RECURRENT = (nn.RNNBase, nn.RNNCellBase)
"""Types whose weights are a *kernel*, which multiplies the input, and *recurrent* ones, which multiply the state."""

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def swap_channels(layer: nn.Module, weight: Tensor) -> Tensor:
    """Bring the output channels of a transposed convolution to dim 0, (in, out/g, ..) to (out, in/g, ..), or back."""
    groups = transposed_groups(layer)
    return weight if groups is None else swap_grouped(weight, groups)


def transposed_groups(layer: nn.Module) -> int | None:
    """Groups of a transposed convolution, whose weights have output channels in dim 1; ``None`` for other layers."""
    return layer.groups if isinstance(layer, _TRANSPOSED) else None


def swap_grouped(weight: Tensor, groups: int) -> Tensor:
    """:func:`swap_channels` for a transposed convolution of so many groups."""
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    return grouped.transpose(1, 2).flatten(0, 1)


def from_channels(layer: nn.Module, weight: Tensor, levels: Tensor) -> Tensor:
    """Bring levels with output channels in dim 0 back to the arrangement of ``weight``; padding stays as it is."""
    levels = swap_channels(layer, levels)
    if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:  # the grid has no zero level
        rows = torch.arange(weight.shape[0], device=weight.device)[:, None]
        levels = torch.where(rows == layer.padding_idx, weight.detach(), levels.to(weight.dtype))
    return levels


def arrangement(layer: nn.Module) -> Hashable:
    """What of a layer, beside its quantizer, decides about the levels of its weight."""
    groups = transposed_groups(layer)
    if groups is not None:
        return ("transposed", groups)
    if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
        return ("padding", layer.padding_idx)
    return None  # so that a tied weight is quantized once


def get_weight(layer: nn.Module, name: str) -> Tensor:
    """Weight of ``layer`` by dotted name, as its forward would read it."""
    owner, attribute = owner_of(layer, name)
    weight: Tensor = getattr(owner, attribute)
    return weight


def peek_weight(layer: nn.Module, name: str) -> Tensor:
    """Weight of ``layer`` by dotted name, without the side effects that reading a parametrized one has in training."""
    owner, attribute = owner_of(layer, name)
    if not is_parametrized(owner, attribute):
        return get_weight(layer, name)
    parametrizations = owner.get_submodule(f"parametrizations.{attribute}")
    modes = {module: module.training for module in parametrizations.modules()}
    try:
        parametrizations.eval()  # spectral_norm iterates in training mode
        return get_weight(layer, name)
    finally:
        for module, training in modes.items():
            module.training = training


def weight_sources(layer: nn.Module, name: str) -> list[nn.Parameter]:
    """Parameters that the weight of a dotted name is made of: itself, or what its parametrization holds."""
    owner, attribute = owner_of(layer, name)
    if is_parametrized(owner, attribute):
        return list(owner.get_submodule(f"parametrizations.{attribute}").parameters())
    # Pruning keeps the parameter as `weight_orig`, legacy weight norm as `weight_g` and `weight_v`.
    keys = {attribute, f"{attribute}_orig", f"{attribute}_g", f"{attribute}_v"}
    return [parameter for key, parameter in owner.named_parameters(recurse=False) if key in keys]


def pruning_mask(layer: nn.Module, name: str) -> Tensor | None:
    """Mask that torch.nn.utils.prune keeps for the weight of a dotted name, if it has one."""
    owner, attribute = owner_of(layer, name)
    return owner._buffers.get(f"{attribute}_mask")


def is_partly_zero(layer: nn.Module, name: str) -> bool:
    """Whether some values of the weight of a dotted name are exactly zero, but not all; a padding row aside."""
    weight = whole(peek_weight(layer, name)).detach()
    if type(weight) is not Tensor or weight.device.type == "meta":  # of another kind, or without values
        return False
    zero = weight == 0
    if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
        zero[layer.padding_idx] = False
    return bool(zero.any()) and not bool(zero.all())


def check_undivided(layer: nn.Module, name: str, weight: Tensor) -> None:
    """Raise :class:`ValueError` if a forward reads a part of a weight, as under tensor parallelism."""
    if type(weight) is not nn.Parameter and hasattr(weight, "full_tensor"):
        raise ValueError(
            f"`{name}` of {layer} is divided among ranks by tensor parallelism, and no rank can tell the codes of its "
            "part: expected a whole weight. Leave the layer out with `exclude`, or shard it with `fully_shard`"
        )


def whole(weight: Tensor) -> Tensor:
    """All of a weight of which each rank holds a part, as FSDP2 leaves it; every rank has to ask. Else itself."""
    gather = getattr(weight, "full_tensor", None)
    if gather is None:
        return weight
    gathered: Tensor = gather()
    return gathered


def weight_names(layer: nn.Module) -> tuple[str, ...]:
    """Dotted names of the weights that ``layer`` has; empty if it is of no quantizable type."""
    if isinstance(layer, nn.RNNBase):
        return tuple(name for name in layer._flat_weights_names if name.startswith("weight"))
    if isinstance(layer, nn.RNNCellBase):
        return ("weight_ih", "weight_hh")
    for base, names in QUANTIZABLE.items():
        if isinstance(layer, base):
            return tuple(name for name in names if _exists(layer, name))
    return ()


def weight_part(layer: nn.Module, name: str) -> str:
    """Part of a recurrent layer that a weight is: ``"kernel"`` or ``"recurrent"``; empty for other layers."""
    if not isinstance(layer, RECURRENT):
        return ""
    return "recurrent" if is_recurrent(name) else "kernel"


def is_recurrent(name: str) -> bool:
    """Whether a weight of this name multiplies a hidden state, or what becomes one."""
    return name.startswith(("weight_hh", "weight_hr"))


def _exists(layer: nn.Module, name: str) -> bool:
    owner, attribute = owner_of(layer, name)
    if is_parametrized(owner, attribute):
        return True
    return (owner._parameters | owner.__dict__).get(attribute) is not None


def owner_of(layer: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Module that holds the weight of a dotted name, and its name there."""
    path, _, attribute = name.rpartition(".")
    return layer.get_submodule(path) if path else layer, attribute
