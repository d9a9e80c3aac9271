"""Which strategies, precisions and callbacks of a Trainer quantized training cannot be combined with, and why."""

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer

_REPLACING_LINEAR = {"BitsandbytesPrecision", "TransformerEnginePrecision"}


def check_supported(trainer: Trainer, name: str) -> None:
    """Refuse what would train another network than the callback called ``name`` says.

    Raises:
        MisconfigurationException: if the precision replaces linear layers, or the strategy takes weights apart.
    """
    replacing = _REPLACING_LINEAR & _class_names(trainer.precision_plugin)
    if replacing:
        raise MisconfigurationException(
            f"{name} cannot be combined with {replacing.pop()}, which replaces the linear layers after this callback "
            "has quantized them; use another `precision`"
        )
    # Only the class is looked at: deepspeed need not be installed.
    if "DeepSpeedStrategy" in _class_names(trainer.strategy) and getattr(trainer.strategy, "zero_stage_3", False):
        raise MisconfigurationException(
            f"{name} cannot be combined with stage 3 of DeepSpeed, which leaves a rank a part of each weight, of which "
            'no codes can be computed; use stage 1 or 2, or shard with FSDP2: `strategy="model_parallel"`'
        )


def check_learning(trainer: Trainer, name: str) -> None:
    """Refuse what scales and ranges that are learned cannot be combined with.

    Raises:
        MisconfigurationException: if the strategy shards parameters, or a callback has copied the model already.
    """
    if trainer.strategy.restore_checkpoint_after_setup:
        raise MisconfigurationException(
            f"{name} learns scales or ranges, which {type(trainer.strategy).__name__} would shard: "
            'use another `strategy`, or a fixed `scale` and `activation_range="observed"`'
        )
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    for callback in callbacks:
        if getattr(callback, "_average_model", None) is not None:
            raise MisconfigurationException(
                f"{type(callback).__name__} copied the model before {name} added what it learns: "
                f"list {name} first in the callbacks of the Trainer"
            )


def hides_weights(trainer: Trainer) -> bool:
    """Whether a rank sees nothing but its own part of weights. Those that FSDP2 shards can be gathered."""
    sharded: bool = trainer.strategy.restore_checkpoint_after_setup
    return sharded and "ModelParallelStrategy" not in _class_names(trainer.strategy)


def _class_names(instance: object) -> set[str]:
    return {cls.__name__ for cls in type(instance).__mro__}
