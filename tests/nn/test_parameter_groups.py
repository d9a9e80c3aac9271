"""Groups of learned parameters in optimizers and their states."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, SequentialLR

from lightning_balq.nn.parameter_groups import MARK, fit_schedule_to_groups, fit_state_to_groups, separate_groups


def parameters(count):
    return [nn.Parameter(torch.full((1,), float(index))) for index in range(count)]


def summary(optimizer, *keys):
    return [
        ([int(parameter) for parameter in group["params"]], *(group[key] for key in keys), MARK in group)
        for group in optimizer.param_groups
    ]


def test_learned_parameters_of_each_group_come_last_without_weight_decay():
    a, b, c, d, e = parameters(5)
    groups = [{"params": [a, b]}, {"params": [c, d, e], "lr": 0.5, "weight_decay": 0.3}]
    with separate_groups({b: False, d: False}, lr_factor=0.1):
        optimizer = torch.optim.AdamW(groups, lr=1.0, weight_decay=0.2)
    assert summary(optimizer, "lr", "weight_decay") == [
        ([0], 1.0, 0.2, False),
        ([2, 4], 0.5, 0.3, False),
        ([1], 0.1, 0.0, True),
        ([3], 0.05, 0.0, True),
    ]
    assert len(groups[0]["params"]) == 2  # what the user holds is as it was


def test_weight_decay_stays_where_the_method_has_it():
    a, b, c = parameters(3)
    with separate_groups({b: True, c: False}):
        optimizer = torch.optim.SGD([a, b, c], lr=1.0, weight_decay=0.2)
    assert summary(optimizer, "weight_decay") == [([0], 0.2, False), ([2], 0.0, True), ([1], 0.2, True)]


@pytest.mark.parametrize("form", ["generator", "single", "only learned"])
def test_every_form_of_parameters_is_understood(form):
    a, b = parameters(2)
    given = {"generator": (p for p in (a, b)), "single": [{"params": a}, {"params": b}], "only learned": [b]}[form]
    with separate_groups({b: False}):
        optimizer = torch.optim.SGD(given, lr=1.0)
    expected = [([1], True)] if form == "only learned" else [([0], False), ([1], True)]
    assert summary(optimizer) == expected


def test_optimizers_built_elsewhere_and_those_with_one_group_are_left_alone():
    a, b = parameters(2)
    with separate_groups({b: False}):
        optimizer = torch.optim.LBFGS([a, b])
    assert summary(optimizer) == [([0, 1], False)]
    with pytest.raises(ValueError, match="Invalid learning rate"), separate_groups({b: False}):
        torch.optim.SGD([a, b], lr=-1.0)
    assert summary(torch.optim.SGD([a, b], lr=1.0)) == [([0, 1], False)]


def stepped(optimizer, schedule=None):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    if schedule is not None:
        schedule.step()


def test_state_of_the_float_optimizer_fits_and_learned_parameters_begin_without_history():
    a, b = parameters(2)
    whole = torch.optim.Adam([copy.deepcopy(a)], lr=0.1)
    stepped(whole)
    with separate_groups({b: False}):
        optimizer = torch.optim.Adam([a, b], lr=0.1)
    optimizer.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert set(optimizer.state) == {a} and optimizer.state[a]["step"] == 1
    stepped(optimizer)
    stepped(whole)
    a.data.copy_(whole.param_groups[0]["params"][0])
    assert optimizer.state[a]["step"] == 2 and optimizer.state[b]["step"] == 1
    assert torch.equal(optimizer.state[a]["exp_avg"], next(iter(whole.state.values()))["exp_avg"])


def test_state_with_the_groups_is_loaded_as_it_is():
    a, b = parameters(2)
    with separate_groups({b: False}):
        first, second = torch.optim.Adam([a, b], lr=0.1), torch.optim.Adam([a, b], lr=0.2)
    stepped(first)
    state = first.state_dict()
    assert fit_state_to_groups(second, state) is None
    second.load_state_dict(state)
    assert [group["lr"] for group in second.param_groups] == [0.1, 0.1] and set(second.state) == {a, b}


@pytest.mark.parametrize("nested", [False, True])
def test_schedule_of_the_float_optimizer_fits(nested):
    def schedule_of(optimizer):
        cosine = CosineAnnealingLR(optimizer, 10)
        return SequentialLR(optimizer, [LambdaLR(optimizer, lambda _: 1.0), cosine], [2]) if nested else cosine

    a, b = parameters(2)
    whole = torch.optim.SGD([copy.deepcopy(a)], lr=1.0)
    schedule = schedule_of(whole)
    for _ in range(3):
        stepped(whole, schedule)
    with separate_groups({b: False}, lr_factor=0.5):
        optimizer = torch.optim.SGD([a, b], lr=1.0)
    ours = schedule_of(optimizer)
    ours.load_state_dict(schedule.state_dict())
    optimizer.load_state_dict(copy.deepcopy(whole.state_dict()))
    fit_schedule_to_groups(ours)
    for _ in range(3):
        stepped(whole, schedule)
        stepped(optimizer, ours)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates[0] == whole.param_groups[0]["lr"] < 1
    assert rates[1] < 0.5


# ---- groups that are added later -------------------------------------------------------------------------------------


def test_group_added_later_is_divided_and_stays_the_last():
    a, b, c, d = parameters(4)
    with separate_groups({b: False, d: True}, lr_factor=0.5):
        optimizer = torch.optim.SGD([a, b], lr=1.0, weight_decay=0.2)
    optimizer.add_param_group({"params": [c, d], "lr": 0.1})
    assert summary(optimizer, "lr", "weight_decay") == [
        ([0], 1.0, 0.2, False),
        ([1], 0.5, 0.0, True),
        ([3], 0.05, 0.2, True),
        ([2], 0.1, 0.2, False),
    ]


def test_groups_added_later_follow_the_rate_of_the_group_they_came_with():
    a, b, c, d = parameters(4)
    with separate_groups({b: False, d: False}, lr_factor=0.5):
        optimizer = torch.optim.SGD([a, b], lr=1.0)
    optimizer.add_param_group({"params": [c, d], "lr": 0.1})
    optimizer.param_groups[-1]["lr"] = 0.4
    optimizer.param_groups[0]["lr"] = 3.0
    d.grad = torch.ones_like(d)
    before = d.detach().clone()
    optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == [3.0, 0.5, 0.2, 0.4]
    assert torch.equal(d.detach(), before - 0.2)


@pytest.mark.parametrize("chosen", [[0, 1], [2, 3]], ids=["nothing learned", "learned alone"])
def test_group_of_one_kind_is_added_as_it_is(chosen):
    every = parameters(5)
    with separate_groups({every[2]: False, every[3]: False}):
        optimizer = torch.optim.SGD([every[4]], lr=1.0, weight_decay=0.2)
    optimizer.add_param_group({"params": [every[index] for index in chosen], "weight_decay": 0.3})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.3]
    assert [id(p) for p in optimizer.param_groups[1]["params"]] == [id(every[index]) for index in chosen]


def test_groups_have_names_of_their_own():
    a, b, c, d, e, f = parameters(6)
    with separate_groups({b: False, d: False, e: True, f: False}):
        optimizer = torch.optim.SGD([{"params": [a, b]}, {"params": [c, d, e], "name": "head"}], lr=1.0)
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1)), f]})
    names = [group.get("name") for group in optimizer.param_groups]
    assert names == [None, "head", "pg1-learned", "head-learned", "head-learned-decayed", "pg7-learned", None]


def test_schedule_of_a_resumed_optimizer_leaves_out_groups_that_were_added_later():
    a, b, c, d = parameters(4)
    with separate_groups({b: False, d: False}):
        optimizer = torch.optim.SGD([a, b], lr=1.0)
    schedule = LambdaLR(optimizer, lambda _: 1.0)
    optimizer.add_param_group({"params": [c, d], "lr": 0.1})
    fit_schedule_to_groups(schedule)
    assert schedule.base_lrs == [1.0, 1.0]
