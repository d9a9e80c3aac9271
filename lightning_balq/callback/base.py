"""What the callbacks share: when a model is quantized, and when ranges, schedule and records are looked after."""

import functools
import sys
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_balq.callback.best import BestOfQuantized, judges
from lightning_balq.callback.finite import NON_FINITE, FiniteGuard, NonFinite
from lightning_balq.callback.float_reads import FloatReadSearch
from lightning_balq.callback.module_hooks import call_after, configure_groups, late_builder, release
from lightning_balq.callback.neighbours import Neighbour, check_neighbours
from lightning_balq.callback.records import OVERHEADS_KEPT, Recorder
from lightning_balq.callback.reuse import LevelReuse
from lightning_balq.callback.saved_state import STATE_VERSION, changed_arguments, check_callback_state, check_state
from lightning_balq.callback.strategies import check_learning, check_supported, hides_weights
from lightning_balq.functional._checks import check_choice
from lightning_balq.nn.activation import (
    ActivationQuantizer,
    ActivationRange,
    ActivationSign,
    settle_ranges_,
    update_ranges_,
)
from lightning_balq.nn.cache import LevelCache
from lightning_balq.nn.checkpoint import KEY, add_load_check, remove_load_check
from lightning_balq.nn.config import QuantizationConfig
from lightning_balq.nn.layers import activation_quantizers, quantized_layers
from lightning_balq.nn.learned import (
    is_starting,
    learned_parameters,
    note_masks,
    restart_learning,
    untrained_parameters,
)
from lightning_balq.nn.optimizer_state import trim_schedule
from lightning_balq.nn.parameter_groups import first_learned_group, fit_schedule_to_groups
from lightning_balq.nn.plan import Plan, plan
from lightning_balq.nn.pretrained import evidence_of_training
from lightning_balq.nn.quantize import learns, quantize_
from lightning_balq.nn.quantizer import WeightQuantizer
from lightning_balq.nn.report import plan_table
from lightning_balq.nn.schedule import Schedule, blend_at

FEW_BITS = 3
"""Weight bits up to which a trained model does not survive being quantized at once (Zhou et al. 2017)."""

SHOWN = {"balq/effective_bitwidth", "balq/overhead"}
"""What reaches the progress bar."""


@dataclass(eq=False)
class QuantizationCallback(LevelReuse, FiniteGuard, FloatReadSearch, ABC):
    """What all quantizing callbacks share; use one of the subclasses.

    The model is quantized in ``setup``, before anything is wrapped or configured, or as soon as its own ``setup`` or
    ``configure_model`` has built it, and stays quantized afterwards: ``model(x)`` is the network that was trained, and
    :func:`lightning_balq.unquantize_` gives the float one back. Checkpoints keep the keys and values of the float
    model.

    Every ``record_every_n_steps`` optimizer steps, and at the end, it records to all loggers and ``callback_metrics``,
    for each layer (``balq/<layer>/..``) and overall (``balq/..``): ``effective_bitwidth``, ``bin_utilization``,
    ``imbalance`` and ``code_flip_rate`` of the weight codes; and ``balq/overhead``, the share of the training step
    spent in the forward of the quantizers (not measured inside compiled code, nor within the steps of a recurrent
    layer, whose hidden states are quantized as part of them).
    """

    weight_bits: int = 4
    activation_bits: int | None = None
    _: KW_ONLY
    recurrent: WeightQuantizer | None = None
    activation_range: ActivationRange = "observed"
    activation_sign: ActivationSign = "auto"
    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    weight_bits_by_layer: Mapping[str, int] = field(default_factory=dict)
    activation_bits_by_layer: Mapping[str, int] = field(default_factory=dict)
    quantize_first_last: bool = False
    learned_lr_factor: float = 1.0
    start_step: int = 0
    blend_steps: int = 0
    best_when_quantized: bool = True
    reuse_quantized: bool = True
    non_finite: NonFinite = "error"
    record_every_n_steps: int = 50
    verbose: int = 1
    name: str | None = None

    def __post_init__(self) -> None:
        """Check every argument."""
        for argument in ("start_step", "blend_steps", "record_every_n_steps", "verbose"):
            value = getattr(self, argument)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"`{argument}` must be an int, got {value!r} of type {type(value).__name__}")
            if value < 0:
                raise ValueError(f"`{argument}` must not be negative, got {value}")
        factor = self.learned_lr_factor
        if isinstance(factor, bool) or not isinstance(factor, (int, float)):
            raise TypeError(f"`learned_lr_factor` must be a number, got {factor!r} of type {type(factor).__name__}")
        if not 0 < factor <= sys.float_info.max:
            raise ValueError(f"`learned_lr_factor` must be a positive number, got {factor}")
        for argument in ("best_when_quantized", "reuse_quantized"):
            if not isinstance(getattr(self, argument), bool):
                raise TypeError(f"`{argument}` must be a bool, got {getattr(self, argument)!r}")
        check_choice(self.non_finite, "non_finite", NON_FINITE)
        if self.name is not None and not isinstance(self.name, str):
            raise TypeError(f"`name` must be a str or None, got {self.name!r} of type {type(self.name).__name__}")
        self._config()
        self._recorder = Recorder()
        self._unmeasured: list[str] = []
        self._best: BestOfQuantized | None = None
        self._plan: Plan | None
        self._inputs: list[ActivationQuantizer]
        self._schedule: Schedule | None
        self._cache: LevelCache | None = None
        self._forget()

    @abstractmethod
    def weight_quantizer(self) -> WeightQuantizer:
        """Build the weight quantizer that the arguments describe; what a callback for another one defines."""

    def _config(self) -> QuantizationConfig:
        return QuantizationConfig(
            weight=self.weight_quantizer(),
            recurrent=self.recurrent,
            activation_bits=self.activation_bits,
            activation_range=self.activation_range,
            activation_sign=self.activation_sign,
            include=self.include,
            exclude=self.exclude,
            weight_bits_by_layer=self.weight_bits_by_layer,
            activation_bits_by_layer=self.activation_bits_by_layer,
            quantize_first_last=self.quantize_first_last,
        )

    def plan(self, model: nn.Module) -> Plan:
        """Say what would be quantized in ``model``, without touching it; ``print(callback.plan(model))`` is a table.

        Raises:
            ValueError: if the arguments do not fit the model.
        """
        return plan(model, self._config())

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint; two callbacks of one kind in one Trainer need different names."""
        kind = type(self).__qualname__
        return kind if self.name is None else f"{kind}[{self.name}]"

    # ---- when to quantize -------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Quantize the model, now or as soon as it is built."""
        check_supported(trainer, type(self).__name__)
        builder = late_builder(pl_module)
        if builder is None:
            self._quantize(pl_module, trainer)
        else:
            call_after(pl_module, builder, functools.partial(self._quantize, trainer=trainer))
        if stage == "fit":
            configure_groups(pl_module, functools.partial(self._decays, pl_module), self.learned_lr_factor)
            self._guard_checkpoints(trainer)

    def _quantize(self, pl_module: LightningModule, trainer: Trainer) -> None:
        self._trained_as_float = "" if any(quantized_layers(pl_module)) else evidence_of_training(pl_module)
        decided = self.plan(pl_module)
        if any(learned_parameters(pl_module)) or learns(decided, self._config()):
            check_learning(trainer, type(self).__name__)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
        ours = [callback for callback in callbacks if isinstance(callback, QuantizationCallback)]
        others = [callback._as_neighbour(callback._plan) for callback in ours if callback._plan is not None]
        check_neighbours(pl_module, self._as_neighbour(decided), others)
        self._plan = quantize_(pl_module, self._config())
        add_load_check(pl_module, self.state_key, functools.partial(check_callback_state, self.state_key))
        if trainer.state.fn == "fit":  # a tuner runs the network before training starts
            self._follow_schedule(trainer, pl_module)

    def _as_neighbour(self, decided: Plan) -> Neighbour:
        return Neighbour(self.state_key, decided, self.start_step, self.blend_steps)

    def _decays(self, pl_module: LightningModule) -> dict[nn.Parameter, bool]:
        """Parameters that the quantizers of this callback learn, and whether weight decay applies to them."""
        layers = {layer.name for layer in self._plan.quantized} if self._plan is not None else set()
        return {
            parameter: decay
            for name, parameter, decay in learned_parameters(pl_module)
            if name.rpartition(".")[0] in layers
        }

    def _warn_of_untrained(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say which scales and ranges no optimizer trains, although it trains the layer."""
        untrained = set(untrained_parameters(pl_module, trainer.optimizers)) & self._names_learned(pl_module)
        if untrained - self._untrained and trainer.is_global_zero:
            warnings.warn(
                f"What {type(self).__name__} learns for layers in training is frozen, or given to no optimizer, and "
                f"stays as it is: {', '.join(sorted(untrained - self._untrained))}. Give `self.parameters()`, or all "
                "of a layer's, to the optimizer, and unfreeze layers by `layer.requires_grad_(True)`",
                stacklevel=2,
            )
        self._untrained |= untrained

    def _names_learned(self, pl_module: LightningModule) -> set[str]:
        own = self._decays(pl_module)
        return {name for name, parameter, _ in learned_parameters(pl_module) if parameter in own}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what is quantized, and warn if that is likely to destroy a trained model."""
        if self._plan is None:
            raise MisconfigurationException(
                f"{type(self).__name__} has not quantized the model: its `setup` or `configure_model` was not called. "
                "Call `lightning_balq.quantize_(model)` where the layers are built"
            )
        if self.verbose and trainer.is_global_zero:
            self._recorder.outlets.show(plan_table(self._plan))
        bits = min(quantizer.bits for layer in self._plan.quantized for quantizer in layer.quantizers.values())
        gradual = self.start_step or self.blend_steps
        if self._trained_as_float and bits <= FEW_BITS and not gradual and trainer.is_global_zero:
            warnings.warn(
                f"The model was trained before ({self._trained_as_float}) and is quantized to {bits} bits at once, "
                "which usually destroys what it has learned: set `start_step` or `blend_steps` to let it adapt",
                stacklevel=2,
            )

    # ---- training ---------------------------------------------------------------------------------------------------

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the sanity check run the network that training starts with."""
        self._follow_schedule(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the schedule to where training stands, and look at what it starts from."""
        self._is_finite(trainer, pl_module)
        schedule = self._follow_schedule(trainer, pl_module)
        if self.best_when_quantized:
            self._best = BestOfQuantized(trainer, self._unmeasured)
            self._best.follow(quantized=schedule.phase == "quantized", within_epoch=False)
        if trainer.global_step == 0:
            self._recorder.overheads.clear()
        self._inputs = activation_quantizers(pl_module)
        for config in trainer.lr_scheduler_configs:
            fit_schedule_to_groups(config.scheduler)
        self._recorder.step = self._batch_step = trainer.global_step
        self._stride = 1
        self._is_first_batch = True
        self._forget_levels()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Follow the schedule, and start the clock if this batch will be recorded."""
        schedule = self._follow_schedule(trainer, pl_module)
        if self._best is not None:
            self._best.follow(quantized=schedule.phase == "quantized", within_epoch=batch_idx > 0)
        # Batches whose gradients are accumulated see the same weights. In manual optimization nobody knows.
        accumulates = batch_idx > 0 and trainer.global_step == self._batch_step and pl_module.automatic_optimization
        self._reuse_levels(trainer, pl_module, forget=not accumulates)
        self._batch_step = trainer.global_step
        if self._is_first_batch:
            self._begin_search(trainer)
        if batch_idx == 0:
            self._warn_of_untrained(trainer, pl_module)
        if self._is_due(trainer.global_step, trainer.global_step + self._stride):
            self._recorder.start_clock(schedule, pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take over activation ranges, and record."""
        self._stop_reusing()
        if self._is_first_batch:
            self._report_search(trainer, pl_module)
            self._is_first_batch = False
        overhead = None if self._schedule is None else self._recorder.stop_clock(self._schedule, pl_module.device)
        update_ranges_(self._inputs, _sum_over_ranks(trainer))
        if batch_idx == 0:
            settle_ranges_(self._inputs)  # the next batch need not be looked at before it is quantized
        self._stride = max(trainer.global_step - self._batch_step, 1)  # manual optimization may step several times
        if self._is_due(self._recorder.step, trainer.global_step):
            metrics = self._record(trainer, pl_module, overhead)
            if not trainer.barebones:
                for key in sorted(metrics.keys() & SHOWN):
                    pl_module.log(key, metrics[key], prog_bar=True, logger=False)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take nothing for granted in a second forward of a batch: weights may have been edited in between."""
        if self._cache is not None:
            self._cache.doubt()
        starting = [quantizer for quantizer in self._inputs if is_starting(quantizer)]
        if starting:  # before the optimizer's step, and before anything averages the parameters
            update_ranges_(starting, _sum_over_ranks(trainer))
            settle_ranges_(starting)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out which metrics a validation measures."""
        if self._best is not None:
            self._best.on_validation_start()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise, and forget what was quantized."""
        super().on_validation_end(trainer, pl_module)
        if self._best is not None:
            self._best.on_validation_end()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember what was pruned: compiled code does not."""
        note_masks(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record what the last full interval left out, and look at what has come out."""
        settle_ranges_(self._inputs)
        self._forget_levels()
        note_masks(pl_module)  # they may be made permanent now
        if trainer.global_step == self._recorder.step:
            return
        if self.record_every_n_steps:
            self._record(trainer, pl_module, overhead=None)
        else:
            self._is_finite(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what was recorded."""
        if self.verbose and trainer.is_global_zero:
            self._recorder.show(type(self).__name__)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the model usable."""
        self._release(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the model."""
        self._release(pl_module)
        self._free_checkpoints(trainer)

    # ---- records ----------------------------------------------------------------------------------------------------

    def _is_due(self, before: int, after: int) -> bool:
        """Whether a multiple of ``record_every_n_steps`` lies in ``(before, after]``."""
        every = self.record_every_n_steps
        return every > 0 and after // every > before // every

    def _follow_schedule(self, trainer: Trainer, pl_module: LightningModule) -> Schedule:
        if self._schedule is None:
            self._schedule = next(state.schedule for _, _, state in quantized_layers(pl_module))
        before = self._schedule.phase
        self._schedule.set_blend(blend_at(trainer.global_step, self.start_step, self.blend_steps))
        if before == "float" and self._schedule.phase != "float":
            restart_learning(pl_module)  # the weights are no longer those that scales were made for
        return self._schedule

    def _record(self, trainer: Trainer, pl_module: LightningModule, overhead: float | None) -> dict[str, float]:
        self._recorder.step = trainer.global_step
        settle_ranges_(self._inputs)
        if hides_weights(trainer) or not self._is_finite(trainer, pl_module):
            return {}
        return self._recorder.record(trainer, pl_module, overhead)

    # ---- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the arguments, to compare with on resuming, the overheads measured, and what the best waits for."""
        if self._best is not None:
            self._unmeasured = sorted(self._best.unmeasured)
        return {
            "version": STATE_VERSION,
            "arguments": self._arguments(),
            "overheads": list(self._recorder.overheads),
            "unmeasured": list(self._unmeasured),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the arguments with those of the checkpoint; warn if they differ."""
        check_state(self.state_key, state_dict)
        self._recorder.overheads = deque(state_dict["overheads"], maxlen=OVERHEADS_KEPT)
        self._unmeasured = list(state_dict.get("unmeasured", []))
        changed = changed_arguments(state_dict["arguments"], self._arguments())
        if changed:
            warnings.warn(
                f"The checkpoint was written by {type(self).__name__} with other arguments, training goes on with the "
                f"present ones: {', '.join(changed)}",
                stacklevel=2,
            )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leave in the state of learning-rate schedules what the float model has."""
        states = checkpoint.get("lr_schedulers", [])
        for index, (config, state) in enumerate(zip(trainer.lr_scheduler_configs, states, strict=False)):
            first = first_learned_group(config.scheduler.optimizer)
            if first is not None:
                states[index] = trim_schedule(state, first)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note that the weights are those of a float model, if they are."""
        if KEY not in checkpoint:
            self._trained_as_float = "its checkpoint is that of a float model"
            self._unmeasured = [judge.monitor for judge in judges(trainer)]
        else:
            self._trained_as_float = ""

    def _arguments(self) -> dict[str, Any]:
        """Every argument that changes what is trained, as plain values that ``weights_only=True`` loads."""
        silent = (
            "best_when_quantized", "reuse_quantized", "non_finite", "record_every_n_steps", "verbose", "name",
        )  # fmt: skip
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in silent}
        return {key: _plain(value) for key, value in values.items()}

    def _forget(self) -> None:
        self._plan = None
        self._inputs = []
        self._schedule = None
        self._cache = None
        self._recorder.forget()
        self._warned = set()
        self._batch_step = 0
        self._stride = 1
        self._is_first_batch = False
        self._untrained: set[str] = set()
        self._trained_as_float = ""

    def _release(self, pl_module: LightningModule) -> None:
        self._forget_levels()
        if self._best is not None:
            self._unmeasured = sorted(self._best.unmeasured)
            self._best.release()
            self._best = None
        remove_load_check(pl_module, self.state_key)
        if self._schedule is not None:
            self._schedule.timer = None
        self._stop_search()
        release(pl_module)
        self._forget()


def _sum_over_ranks(trainer: Trainer) -> Callable[[Tensor], Tensor] | None:
    if trainer.world_size == 1:
        return None

    def reduce(tensor: Tensor) -> Tensor:
        total = trainer.strategy.reduce(tensor, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    return reduce


def _plain(value: Any) -> Any:
    if isinstance(value, WeightQuantizer):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
