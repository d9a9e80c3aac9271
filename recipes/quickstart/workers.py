"""Processes that work for this one, and never outlive it."""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from recipes.processes import exit_with_parent

Result = TypeVar("Result")


@contextmanager
def worker_pool(workers: int, prepare: Callable[[], None]) -> Iterator[ProcessPoolExecutor]:
    """Pool of spawned processes, each of which calls ``prepare`` first; leaving the context early kills them."""
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(prepare,))
    try:
        yield pool
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.kill()  # not `terminate()`, which Lightning would answer by finishing its step
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def submit_all(
    pool: ProcessPoolExecutor, function: Callable[..., Result], tasks: Iterable[tuple[Any, ...]]
) -> list[Future[Result]]:
    """Submit ``function(*task)`` for each task, to processes that leave Ctrl-C to this one."""
    # They start here and inherit this from their first instruction on: no traceback of theirs reaches the terminal.
    with _interrupts_held_back():
        return [pool.submit(function, *task) for task in tasks]


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Let Ctrl-C wait until the context is left, where the system can; elsewhere it is lost within."""
    if hasattr(signal, "pthread_sigmask"):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _start(prepare: Callable[[], None]) -> None:
    exit_with_parent()
    prepare()
