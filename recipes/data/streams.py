"""A text as batches for truncated backpropagation through time."""

from collections.abc import Iterator

import torch
from torch import Tensor

IGNORED = -100
"""Target of what is padded; `cross_entropy` ignores it."""


class TokenStream:
    """Batches of a token stream that is cut into contiguous columns; every token is predicted exactly once.

    Column ``b`` goes on in batch ``i + 1`` where it stopped in batch ``i``, so that the state of a recurrent network
    can be carried over. The input at every place is the token before the target. Columns differ in length by at most
    one token; the missing one is padded.

    Lightning saves and restores :meth:`state_dict` and so goes on in the middle of an epoch.

    Args:
        tokens: the stream, int64, shape ``(N,)``.
        first: token that precedes the stream.
        batch_size: number of columns of all processes together.
        steps: tokens of a column in one batch; the last batch may have fewer.
        rank: which of the processes this is; each takes its own columns.
        world_size: number of processes.

    Raises:
        ValueError: if columns cannot be distributed evenly, or would be empty.

    Example:
        >>> for inputs, targets in TokenStream(torch.tensor([1, 2, 3, 4, 5]), first=0, batch_size=2, steps=2):
        ...     print(inputs.tolist(), targets.tolist())
        [[0, 3], [1, 4]] [[1, 4], [2, 5]]
        [[2, 0]] [[3, -100]]
    """

    def __init__(
        self, tokens: Tensor, first: int, batch_size: int, steps: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size % world_size:
            raise ValueError(
                f"the batch size must be a multiple of the number of processes, {world_size}, got {batch_size}: each "
                "process takes as many columns of the text as the others"
            )
        if len(tokens) < batch_size:
            raise ValueError(
                f"the batch size must be at most the number of tokens, {len(tokens)}, got {batch_size}: take a smaller "
                "batch size or more text"
            )
        previous = torch.cat([torch.tensor([first]), tokens[:-1]])
        own = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self._inputs = _columns(previous, batch_size, first)[:, own].contiguous()
        self._targets = _columns(tokens, batch_size, IGNORED)[:, own].contiguous()
        self._steps = steps
        self._start = self._position = 0

    def __len__(self) -> int:
        return -(-len(self._inputs) // self._steps)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self._position, self._start = self._start, 0
        while self._position < len(self):
            places = slice(self._position * self._steps, (self._position + 1) * self._steps)
            self._position += 1
            yield self._inputs[places], self._targets[places]

    def state_dict(self) -> dict[str, int]:
        """Return how many batches of the epoch were handed out, and of how many."""
        return {"position": self._position, "batches": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration start where another stopped; at the beginning if that had finished.

        Raises:
            ValueError: if the other stopped in the middle of an epoch of another number of batches.
        """
        if state["position"] in (0, state["batches"]):
            self._start = 0
        elif state["batches"] == len(self):
            self._start = state["position"]
        else:
            raise ValueError(
                f"the checkpoint was written after batch {state['position']} of {state['batches']} of an epoch, which "
                f"has {len(self)} batches here: use the same text, batch size, steps and number of processes, or a "
                "checkpoint from the end of an epoch"
            )
        self._position = self._start


def _columns(tokens: Tensor, count: int, padding: int) -> Tensor:
    """Cut into ``count`` contiguous columns, of which the first may be one token longer; shape ``(longest, count)``."""
    longer, length = len(tokens) % count, len(tokens) // count
    if not longer:
        return tokens.view(count, length).T
    split = longer * (length + 1)
    long, short = tokens[:split].view(longer, length + 1), tokens[split:].view(count - longer, length)
    return torch.cat([long, torch.nn.functional.pad(short, (0, 1), value=padding)]).T
