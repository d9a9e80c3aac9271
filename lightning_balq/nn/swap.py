"""Change what a module does by swapping its class, reversibly, without touching anything it owns.

``swap_class(module, mixin)`` gives the module a cached subclass ``(mixin, type(module))`` that carries the name of the
original class. Parameters, their order, hooks, ``state_dict()`` and references from elsewhere stay as they are;
copying and pickling work; :func:`restore_class` puts the original class back.
"""

from typing import Any, cast

from torch import nn
from torch.nn.utils.parametrize import is_parametrized


class Swapped:
    """Base of every mixin that :func:`swap_class` applies."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made at run time, so a pickle names its two parts and builds it again.
        _, arguments, *state = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        base, mixin = _parts(type(self))
        return (_rebuild, (base, mixin, *arguments[1:]), *state)

    def __prepare_scriptable__(self) -> Any:
        # torch.jit.script calls this first; it would stop at the first line of ours that is no TorchScript.
        raise RuntimeError(
            f"torch.jit.script cannot compile a quantized {type(self).__name__}, whose forward is no TorchScript: "
            "use torch.jit.trace or torch.export, or call `unquantize_(model)` first to script the float model"
        )


def module_of(mixin: Any) -> Any:
    """The mixin seen as the module it is mixed into, for the type checker."""
    return mixin


def swap_class(module: nn.Module, mixin: type[Swapped]) -> None:
    """Put ``mixin`` in front of the class of ``module``; a module that is swapped already is left alone."""
    cls = type(module)
    if issubclass(cls, Swapped):
        return
    if not is_parametrized(module):
        module.__class__ = _swapped(cls, mixin)
        return
    # torch.nn.utils.parametrize made a class for this module alone, with a property for each parametrized tensor, and
    # puts its single base back when the parametrization is removed: so the mixin has to sit below that class.
    rebuilt = _reparent(cls, _swapped(cls.__bases__[0], mixin))
    rebuilt._balq_parametrized = cls
    module.__class__ = rebuilt


def restore_class(module: nn.Module) -> None:
    """Undo :func:`swap_class`, also if the module was parametrized, or its parametrization removed, in between."""
    cls = type(module)
    if not issubclass(cls, Swapped):
        return
    if "_balq_parametrized" in cls.__dict__:
        original = cls.__dict__["_balq_parametrized"]
        _copy_properties(cls, original)
        module.__class__ = original
    elif "_balq_parts" in cls.__dict__:
        module.__class__ = _parts(cls)[0]
    else:
        module.__class__ = _reparent(cls, _parts(cls)[0])


def original_class(module: nn.Module) -> type[nn.Module]:
    """Class of ``module`` without the mixin, if it has one."""
    cls = type(module)
    return cast(type[nn.Module], _parts(cls)[0]) if issubclass(cls, Swapped) else cls


_CLASSES: dict[tuple[type, type[Swapped]], type] = {}


def _swapped(base: type, mixin: type[Swapped]) -> type:
    if (base, mixin) not in _CLASSES:
        namespace: dict[str, Any] = {
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "_balq_parts": (base, mixin),
        }
        becomes: type | None = getattr(base, "cls_to_become", None)
        if becomes is not None:  # a lazy module takes this class when it is materialised
            namespace["cls_to_become"] = _swapped(becomes, mixin)
        _CLASSES[base, mixin] = type(base.__name__, (mixin, base), namespace)
    return _CLASSES[base, mixin]


def _reparent(cls: type, base: type) -> Any:
    """Copy the class that parametrize made for one module onto another base."""
    body = {key: value for key, value in cls.__dict__.items() if key not in ("__dict__", "__weakref__")}
    return type(cls.__name__, (base,), body)


def _copy_properties(source: type, target: type) -> None:
    """Give ``target`` the parametrized tensors that ``source`` has by now: some may have come or gone since."""
    for name in [key for key, value in target.__dict__.items() if isinstance(value, property)]:
        if name not in source.__dict__:
            delattr(target, name)
    for name, value in source.__dict__.items():
        if isinstance(value, property):
            setattr(target, name, value)


def _parts(cls: type) -> tuple[type, type[Swapped]]:
    return cast(Any, cls)._balq_parts  # type: ignore[no-any-return]  # set in _swapped


def _rebuild(base: type, mixin: type[Swapped], *arguments: Any) -> Any:
    cls = _swapped(base, mixin)
    return cls.__new__(cls, *arguments)
