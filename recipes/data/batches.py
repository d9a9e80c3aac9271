"""Which samples a process takes in an epoch, batch by batch."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Generic, TypeVar

from recipes.data.draws import ORDER, generator

Sample = TypeVar("Sample")


def shuffled(samples: int, seed: int, epoch: int) -> list[int]:
    """Return the numbers below ``samples`` in an order that the seed and the epoch decide, and nothing else."""
    order: list[int] = generator(seed, epoch, ORDER).permutation(samples).tolist()
    return order


class EpochBatches(Generic[Sample]):
    """The batches of one process: all processes together take every sample exactly once in an epoch.

    A batch is divided among the processes, so that the same samples make a step whatever their number. All processes
    take the same number of batches, without which they would wait for each other forever: if the last batch has fewer
    samples than there are processes, it gets some from the batch before it.

    Iterating yields the epoch and a list of samples.

    Args:
        order: returns the samples of an epoch in their order; the same in every process.
        samples: number of them.
        batch_size: samples of a batch of all processes together.
        drop_last: leave out the samples at the end of an epoch that do not fill a batch.
        rank: which of the processes this is.
        world_size: number of processes.

    Raises:
        ValueError: if there are too few samples, or batches cannot be divided among the processes.

    Example:
        >>> batches = EpochBatches(lambda epoch: "abcdefg", 7, batch_size=4, rank=1, world_size=2)
        >>> list(batches)
        [(0, ['b', 'd']), (0, ['f'])]
    """

    def __init__(
        self,
        order: Callable[[int], Iterable[Sample]],
        samples: int,
        batch_size: int,
        *,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _require_divisible(samples, batch_size, drop_last, world_size)
        self._order = order
        self._samples = samples
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._rank = rank
        self._world_size = world_size
        self.epoch = 0
        self.start = 0
        """Batch that the next iteration begins with; those before it are passed over."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch. What was to be passed over was of another one."""
        if epoch != self.epoch:
            self.start = 0
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self._samples, self._batch_size)
        return whole if self._drop_last else whole + bool(rest)

    def __iter__(self) -> Iterator[tuple[int, list[Sample]]]:
        epoch = self.epoch
        for batch in islice(self._cut(self._order(epoch)), self.start, None):
            yield epoch, batch[self._rank :: self._world_size]

    def _cut(self, samples: Iterable[Sample]) -> Iterator[list[Sample]]:
        """Batches of all processes together."""
        iterator = iter(samples)
        batch = list(islice(iterator, self._batch_size))
        while len(batch) == self._batch_size or (batch and not self._drop_last):
            following = list(islice(iterator, self._batch_size))
            if following and not self._drop_last:
                missing = max(self._world_size - len(following), 0)
                kept = len(batch) - missing
                batch, following = batch[:kept], batch[kept:] + following
            yield batch
            batch = following


def _require_divisible(samples: int, batch_size: int, drop_last: bool, world_size: int) -> None:
    if batch_size % world_size:
        raise ValueError(
            f"the batch size must be a multiple of the number of processes, {world_size}, got {batch_size}: it counts "
            "the samples of all processes together"
        )
    least = batch_size if drop_last else world_size
    if samples < least:
        what = "batch size, because `drop_last` leaves out what is less" if drop_last else "number of processes"
        raise ValueError(f"the number of samples must be at least {least}, the {what}; got {samples}")
    rest = samples % batch_size
    missing = max(world_size - rest, 0) if rest and not drop_last else 0
    if missing and batch_size - missing < world_size:
        raise ValueError(
            f"the batch size must be at least {world_size + missing}, got {batch_size}: the last of {samples} samples "
            f"would not be enough for {world_size} processes"
        )
