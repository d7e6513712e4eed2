"""Policies decide on evidence, keep the budget, and come to an end."""

import copy

import pytest
import torch
from torch import Tensor

from morphogen.policies import POLICIES, Controller, Look, Proposal, Trial
from morphogen.policies.budget import within
from morphogen.policies.cost import weighed
from morphogen.resize import AddBlock, Edit, Grow, Shrink, count_parameters, resize
from morphogen.train import generator
from problems import problem


def look(round: int, size: int, worth: float, loss: float = 1.0) -> Look:
    """A model of one width, in which leaving any units out raises the loss by `worth`."""
    return Look(
        round, {"a": size}, 100 * size, torch.full((10,), loss),
        lambda edits: (torch.full((10,), loss + worth), 100 * (size - len(edits[0].drop))),
        lambda name: 1.0 + torch.arange(size),
    )  # fmt: skip


def test_what_pays_stays_and_grows_on() -> None:
    policy, draw = Trial(probation=1, multiple=1, rate=0.5), generator(0)
    proposals, memory, done = policy.decide(look(1, 4, 1.0), policy.start(), draw)
    assert [p.edit for p in proposals] == [Grow("a", 2)]
    proposals, memory, done = policy.decide(look(2, 6, 1.0), memory, draw)
    assert [p.edit for p in proposals] == [Grow("a", 3)]
    assert "by the last 2" in proposals[0].reason
    assert not done


def test_what_does_not_pay_leaves_and_the_policy_ends() -> None:
    policy, draw = Trial(probation=1, multiple=1, rate=0.5, rest=1, strikes=2), generator(0)
    memory, size, done, seen = policy.start(), 4, False, []
    for round in range(1, 20):
        proposals, memory, done = policy.decide(look(round, size, 0.0), memory, draw)
        seen += [p.edit for p in proposals]
        for p in proposals:
            size += p.edit.units if isinstance(p.edit, Grow) else -len(p.edit.drop)
        if done:
            break
    assert done
    assert Shrink("a", [4, 5]) in seen
    assert size <= 4


def test_trial_removes_the_weakest_units_that_are_not_missed() -> None:
    policy = Trial(multiple=2)
    memory = {**policy.start(), "failed": {"a": 2}}
    proposals, _, _ = policy.decide(look(9, 8, -0.1), memory, generator(0))
    assert [p.edit for p in proposals] == [Shrink("a", [0, 1])]


@pytest.mark.parametrize("name", POLICIES)
def test_policies_stop_once_nothing_improves(name: str) -> None:
    policy = POLICIES[name]()
    memory, done = policy.start(), False
    for round in range(100):
        _, memory, done = policy.decide(look(round, 8, 0.5), memory, generator(round))
        if done:
            return
    pytest.fail("never finished")


def test_a_solved_problem_does_not_grow_for_ever() -> None:
    policy, memory, size, loss = Trial(), Trial().start(), 8, 0.1
    for round in range(60):
        loss *= 0.5  # falls for ever, and by ever so little
        proposals, memory, done = policy.decide(look(round, size, 10 * loss, loss), memory, generator(round))
        size += sum(p.edit.units if isinstance(p.edit, Grow) else -len(p.edit.drop) for p in proposals)
        if done:
            assert size < 200
            return
    pytest.fail("never finished")


@pytest.mark.parametrize("name", POLICIES)
def test_policies_keep_the_budget_and_optimizers_follow(name: str) -> None:
    model, x = problem("convnet", torch.float32)
    opt = torch.optim.AdamW(model.parameters())
    budget = count_parameters(model) + 150
    losses: list[float] = [1.0]

    def validation(model: torch.nn.Module) -> Tensor:
        return torch.full((4,), losses[0])

    controller = Controller(model, [opt], POLICIES[name](), validation, x, budget, loss=lambda m: m.train()(x).square().mean())
    for round in range(12):
        losses[0] *= 0.9
        opt.zero_grad()
        model.train()(x).square().mean().backward()
        opt.step()
        changes = controller.step(round, 0.0, generator(round))
        assert count_parameters(model) <= budget
        for change in changes:
            assert change.parameters[1] <= budget
            assert change.reason
    assert {id(p) for g in opt.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}


def test_growth_is_cut_to_the_largest_that_fits() -> None:
    def count(edits: list[Edit]) -> int:
        return 100 + sum(10 * e.units if isinstance(e, Grow) else 500 for e in edits)

    kept = within([Proposal(Grow("a", 8), "r"), Proposal(AddBlock("d"), "r"), Proposal(Grow("b", 1), "r")], 135, count)
    assert [p.edit for p in kept] == [Grow("a", 3)]
    assert kept[0].reason == "r (cut to the budget)"


def test_an_attempt_leaves_no_trace() -> None:
    model, x = problem("convnet", torch.float32)
    opt = torch.optim.AdamW(model.parameters())
    controller = Controller(model, [opt], Trial(), lambda m: m.eval()(x).square().mean(1), x)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    without, parameters = controller._attempt([Shrink("conv1", [0, 1])])
    assert parameters < count_parameters(model)
    assert without.shape == (3,)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_operations_weigh_in_what_is_priced() -> None:
    model, x = problem("convnet", torch.float32)
    assert weighed(x, 0.0)(model) == count_parameters(model)
    half, whole = (weighed(x, share) for share in (0.5, 1.0))
    assert half(model) == pytest.approx((count_parameters(model) * whole(model)) ** 0.5)
    conv = copy.deepcopy(model)
    resize(conv, [Grow("conv1", 4)], example=x)
    more = count_parameters(conv) / count_parameters(model), whole(conv) / whole(model)
    assert more[1] > 1.5
    assert half(conv) / half(model) == pytest.approx((more[0] * more[1]) ** 0.5)
    assert conv.training
