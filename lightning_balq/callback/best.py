"""Keep ``ModelCheckpoint`` and ``EarlyStopping`` from taking a network that is not quantized yet for the best one."""

import functools
import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

_CHECKPOINT_HOOKS = ("on_train_batch_end", "on_train_epoch_end", "on_validation_end")
_STOPPING_HOOKS = ("on_train_epoch_end", "on_validation_end")


def judges(trainer: Trainer) -> list[Any]:
    """Callbacks of ``trainer`` that compare a metric with its best value so far."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    return [callback for callback in callbacks if _is_checkpoint(callback) or _is_stopping(callback)]


class BestOfQuantized:
    """Stands in front of the hooks of the callbacks that judge, for one fit.

    Until the network is fully quantized, checkpoints are saved and ranked as ever, so that nothing is lost if training
    is interrupted, but none is called the best, and nothing stops early. Once it is quantized, judging starts over: the
    scores so far become the worst there are, so that the checkpoints they belong to are the first to be replaced. A
    metric counts from its first value on that was measured on the quantized network; that of a training epoch in which
    quantization began is none.

    Args:
        trainer: whose callbacks judge.
        unmeasured: metrics that were not measured on a quantized network before: in an earlier fit, or in the
            checkpoint that training goes on from.
    """

    def __init__(self, trainer: Trainer, unmeasured: Collection[str]) -> None:
        self._trainer = trainer
        # Another quantizing callback may look after them already; all follow one schedule.
        self._judges = [judge for judge in judges(trainer) if not any(map(_is_ours, judge.__dict__.values()))]
        self._quantized: bool | None = None
        self._mixed_epoch: int | None = None
        self._before_validation: dict[str, Any] = {}
        self._validated: set[str] = set()
        self._stale: dict[str, Any] = {}
        self.unmeasured = {judge.monitor for judge in self._judges if judge.monitor in unmeasured}
        """Metrics that judging waits for."""
        for judge in self._judges:
            for name in _CHECKPOINT_HOOKS if _is_checkpoint(judge) else _STOPPING_HOOKS:
                hook = judge.__dict__.get(name)
                judge.__dict__[name] = functools.partial(_judge, self, judge, name, hook)

    def release(self) -> None:
        """Take the hooks away again."""
        for judge in self._judges:
            for name in _CHECKPOINT_HOOKS:
                ours = judge.__dict__.get(name)
                if _is_ours(ours) and ours.args[0] is self:
                    del judge.__dict__[name]
                    if ours.args[-1] is not None:
                        judge.__dict__[name] = ours.args[-1]

    def follow(self, *, quantized: bool, within_epoch: bool) -> None:
        """Note whether the network is fully quantized from now on."""
        if quantized is self._quantized:
            return
        first, self._quantized = self._quantized is None, quantized
        if not quantized:
            self.unmeasured = {judge.monitor for judge in self._judges}
        elif not first:
            metrics = self._trainer.callback_metrics
            self._stale = {name: metrics[name] for name in self.unmeasured if name in metrics}
            self._mixed_epoch = self._trainer.current_epoch if within_epoch else None
        for judge in self._judges:
            if judge.monitor in self.unmeasured:
                self._discount(judge)

    def on_validation_start(self) -> None:
        """Remember the metrics before a validation."""
        self._before_validation = dict(self._trainer.callback_metrics) if self.unmeasured else {}

    def on_validation_end(self) -> None:
        """Note which metrics the validation measured."""
        if self.unmeasured:
            before = self._before_validation
            present = self._trainer.callback_metrics
            self._validated = {name for name, value in present.items() if value is not before.get(name)}

    def is_measured(self, metric: str, hook: str) -> bool:
        """Whether the value that ``metric`` has in ``hook`` is one of the quantized network."""
        if not self._quantized or metric not in self.unmeasured:
            return bool(self._quantized)
        value = self._trainer.callback_metrics.get(metric)
        if value is None or value is self._stale.get(metric):
            return False
        averages = hook == "on_train_epoch_end" and self._mixed_epoch == self._trainer.current_epoch
        if averages and metric not in self._validated:
            self._stale[metric] = value
            return False
        self.unmeasured.discard(metric)
        return True

    def judge(self, judge: Any, hook: Callable[..., None], name: str, *args: Any, **kwargs: Any) -> None:
        """Run a hook of a callback that judges, and see to it that it judges only the quantized network."""
        if self.is_measured(judge.monitor, name):
            hook(*args, **kwargs)
        elif _is_checkpoint(judge):
            hook(*args, **kwargs)
            self._discount(judge)
        elif judge.monitor not in self._trainer.callback_metrics:
            hook(*args, **kwargs)  # it cannot judge, and says that there is no such metric

    def _discount(self, judge: Any) -> None:
        """Let what was judged so far count for nothing."""
        worst = math.inf if judge.mode == "min" else -math.inf
        if not _is_checkpoint(judge):
            judge.best_score, judge.wait_count = torch.tensor(worst), 0
            return
        judge.best_model_path, judge.best_model_score = "", None
        if self._quantized:  # until then, keep the better ones of the float networks
            scores: dict[str, torch.Tensor] = judge.best_k_models
            judge.best_k_models = {path: torch.full_like(s, worst, dtype=torch.float32) for path, s in scores.items()}
            judge.kth_value = torch.tensor(worst)


def _judge(
    best: BestOfQuantized, judge: Any, name: str, hook: Callable[..., None] | None, *args: Any, **kwargs: Any
) -> None:
    own = getattr(type(judge), name).__get__(judge) if hook is None else hook
    best.judge(judge, own, name, *args, **kwargs)


def _is_ours(hook: Any) -> bool:
    return isinstance(hook, functools.partial) and hook.func is _judge


def _is_checkpoint(callback: Callback) -> bool:
    return _is_a(callback, "ModelCheckpoint") and getattr(callback, "monitor", None) is not None


def _is_stopping(callback: Callback) -> bool:
    return _is_a(callback, "EarlyStopping")


def _is_a(callback: Callback, name: str) -> bool:
    # By name: the classes of `lightning.pytorch` and of `pytorch_lightning` have nothing else in common.
    return any(cls.__name__ == name for cls in type(callback).__mro__)
