import pytest
import torch
from lightning.fabric.utilities.types import _Stateful  # the protocol by which Lightning knows what it can resume
from torch.testing import assert_close

from recipes.data.streams import IGNORED, TokenStream
from tests.recipes.tiny import tokens

SHAPES = [(24, 4, 3), (25, 4, 3), (27, 4, 3), (7, 7, 2), (30, 1, 7), (23, 6, 100)]
"""Tokens, columns and steps: even and uneven columns, whole and short last batches, columns of one token."""


def columns(text, count):
    """Plain transcription: the pairs of previous token and token, in contiguous columns, the longer ones first."""
    pairs = list(zip([0, *text[:-1]], text, strict=True))
    cut, start = [], 0
    for column in range(count):
        length = len(text) // count + (column < len(text) % count)
        cut.append(pairs[start : start + length])
        start += length
    return cut


@pytest.mark.parametrize(("length", "count", "steps"), SHAPES)
def test_every_token_is_predicted_once_from_the_one_before_it(length, count, steps):
    text = tokens(length)
    batches = list(TokenStream(text, 0, count, steps))
    inputs, targets = torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches])
    for column, expected in enumerate(columns(text.tolist(), count)):
        pairs = list(zip(inputs[:, column].tolist(), targets[:, column].tolist(), strict=True))
        assert pairs[: len(expected)] == expected
        assert [target for _, target in pairs[len(expected) :]] == [IGNORED] * (len(pairs) - len(expected))
    assert int((targets != IGNORED).sum()) == length


@pytest.mark.parametrize(("length", "count", "steps"), SHAPES)
def test_batches_are_as_many_as_promised_and_of_the_steps_asked_for(length, count, steps):
    stream = TokenStream(tokens(length), 0, count, steps)
    shapes = [tuple(inputs.shape) for inputs, _ in stream]
    assert len(shapes) == len(stream)
    assert set(shapes[:-1]) <= {(steps, count)}
    assert shapes[-1][0] <= steps and shapes[-1][1] == count


def test_every_process_takes_its_own_columns():
    whole = list(TokenStream(tokens(50), 0, 6, 4))
    ranks = [list(TokenStream(tokens(50), 0, 6, 4, rank=rank, world_size=3)) for rank in range(3)]
    for batch, parts in zip(whole, zip(*ranks, strict=True), strict=True):
        assert_close(torch.cat([part[0] for part in parts], dim=1), batch[0], rtol=0, atol=0)
        assert_close(torch.cat([part[1] for part in parts], dim=1), batch[1], rtol=0, atol=0)
        assert {part[0].shape[1] for part in parts} == {2}


def test_columns_that_cannot_be_distributed_are_refused():
    with pytest.raises(ValueError, match="multiple of the number of processes, 4, got 6"):
        TokenStream(tokens(50), 0, 6, 4, rank=0, world_size=4)
    with pytest.raises(ValueError, match="at most the number of tokens, 5, got 6"):
        TokenStream(tokens(5), 0, 6, 4)


def test_a_restored_stream_goes_on_after_the_last_batch_and_then_starts_anew():
    stream = TokenStream(tokens(50), 0, 2, 4)
    whole = [targets.tolist() for _, targets in stream]
    iterator = iter(stream)
    for _ in range(3):
        next(iterator)
    resumed = TokenStream(tokens(50), 0, 2, 4)
    assert isinstance(resumed, _Stateful)
    resumed.load_state_dict(stream.state_dict())
    assert resumed.state_dict() == stream.state_dict() == {"position": 3, "batches": 7}
    iter(resumed)  # Lightning makes an iterator that it may not use
    assert [targets.tolist() for _, targets in resumed] == whole[3:]
    assert [targets.tolist() for _, targets in resumed] == whole


def test_an_epoch_that_was_broken_off_or_finished_is_followed_by_a_whole_one():
    stream = TokenStream(tokens(50), 0, 2, 4)
    next(iter(stream))
    assert len(list(stream)) == 7
    resumed = TokenStream(tokens(50), 0, 2, 8)
    resumed.load_state_dict(stream.state_dict())  # at the end of an epoch, the number of batches may change
    assert len(list(resumed)) == 4


def test_the_middle_of_another_epoch_is_refused():
    stream = TokenStream(tokens(50), 0, 2, 4)
    next(iter(stream))
    with pytest.raises(ValueError, match="after batch 1 of 7 of an epoch, which has 4 batches here"):
        TokenStream(tokens(50), 0, 2, 8).load_state_dict({"position": 1, "batches": 7})
