"""Who watches: what each question answers where somebody watches, and where nobody does."""

import pytest
import torch
from torch.autograd import forward_ad

from lightning_balq.functional._tracing import has_memory, has_tangent, is_compiled_for_running, is_traced


class OwnTensor(torch.Tensor):
    pass


def seen_by(question, run):
    """What ``question`` answers inside a function that ``run`` runs."""
    answers = []

    def watched(x):
        answers.append(question(x))
        return x + 1

    run(watched)
    return answers[0]


def test_nothing_is_traced_or_compiled_in_eager_mode():
    assert is_traced() is False
    assert is_compiled_for_running() is False


def test_jit_trace_is_seen():
    assert seen_by(lambda _: is_traced(), lambda f: torch.jit.trace(f, torch.ones(2), check_trace=False)) is True


@pytest.mark.parametrize(("compiling", "exporting"), [(True, False), (True, True), (False, False)])
def test_an_export_is_traced_but_not_compiled_for_running(monkeypatch, compiling, exporting):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    monkeypatch.setattr("lightning_balq.functional._tracing._is_exporting", lambda: exporting)
    assert is_traced() is compiling
    assert is_compiled_for_running() is (compiling and not exporting)


def test_tangent_is_seen_where_there_is_one():
    with forward_ad.dual_level():
        assert has_tangent(forward_ad.make_dual(torch.ones(2), torch.ones(2)))
        assert not has_tangent(torch.ones(2))
    assert not has_tangent(torch.ones(2))


def test_plain_tensors_and_parameters_are_memory():
    assert has_memory(torch.ones(2))
    assert has_memory(torch.nn.Parameter(torch.ones(2)))


def test_subclasses_and_tensors_under_a_transform_are_not_memory():
    assert not has_memory(torch.ones(2).as_subclass(OwnTensor))
    assert seen_by(has_memory, lambda f: torch.func.vmap(f)(torch.ones(2, 3))) is False
