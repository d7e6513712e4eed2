"""Policies decide on evidence, keep the budget, and come to an end."""

import copy

import pytest
import torch
from torch import Tensor

from morphogen.edit.apply import count_parameters, resize
from morphogen.edit.edit import AddBlock, Edit, Grow, Shrink, Split
from morphogen.policies import POLICIES
from morphogen.policies.budget import within
from morphogen.policies.controller import SEARCHES, Controller
from morphogen.policies.cost import weighed
from morphogen.policies.firefly import Firefly
from morphogen.policies.policy import Observation, Proposal
from morphogen.policies.stochastic import Stochastic
from morphogen.policies.trial import Trial
from morphogen.training.train import generator
from problems import problem


def change(edit: Edit) -> int:
    return edit.units if isinstance(edit, Grow) else -len(edit.drop)


def observation(round: int, size: int, worth: float, loss: float = 1.0) -> Observation:
    """A model of one width, in which leaving any units out raises the loss by `worth`."""
    return Observation(
        round,
        {"a": size},
        100 * size,
        torch.full((10,), loss),
        lambda edits, start="", seed=0: (
            torch.full((10,), loss + worth),
            100 * (size + (change(edits[0]))),
        ),
        lambda name: 1.0 + torch.arange(size),
    )


def test_what_pays_stays_and_grows_on() -> None:
    policy, random = Trial(probation=1, granularity=1, rate=0.5), generator(0)
    proposals, memory, done = policy.decide(observation(1, 4, 1.0), policy.start(), random)
    assert [p.edit for p in proposals] == [Grow("a", 2)]
    proposals, memory, done = policy.decide(observation(2, 6, 1.0, 0.8), memory, random)
    assert [p.edit for p in proposals] == [Grow("a", 3)]
    assert "by the last 2" in proposals[0].reason
    assert not done


def test_units_that_lowered_nothing_leave_though_they_would_be_missed() -> None:
    """A network comes to rely on all its units, those that brought it nothing too."""
    policy, random = Trial(probation=1, granularity=1, rate=0.5), generator(0)
    _, memory, _ = policy.decide(observation(1, 4, 1.0), policy.start(), random)
    proposals, _, _ = policy.decide(observation(2, 6, 1.0, 0.99), memory, random)
    assert [p.edit for p in proposals] == [Shrink("a", [4, 5])]
    assert "-0.0100 since they came" in proposals[0].reason


def test_what_does_not_pay_leaves_and_the_policy_ends() -> None:
    policy = Trial(probation=1, granularity=1, rate=0.5, cooldown=1, max_failures=2)
    random = generator(0)
    memory, size, done, seen = policy.start(), 4, False, []
    for round in range(1, 20):
        proposals, memory, done = policy.decide(observation(round, size, 0.0), memory, random)
        seen += [p.edit for p in proposals]
        for p in proposals:
            size += p.edit.units if isinstance(p.edit, Grow) else -len(p.edit.drop)
        if done:
            break
    assert done
    assert Shrink("a", [4, 5]) in seen
    assert size <= 4


def test_trial_removes_the_weakest_units_that_are_not_missed() -> None:
    policy = Trial(granularity=2)
    memory = {**policy.start(), "failed": {"a": 2}}
    proposals, _, _ = policy.decide(observation(9, 8, -0.1), memory, generator(0))
    assert [p.edit for p in proposals] == [Shrink("a", [0, 1])]


@pytest.mark.parametrize("name", POLICIES)
def test_policies_stop_once_nothing_improves(name: str) -> None:
    policy = POLICIES[name]()
    memory, done = policy.start(), False
    for round in range(100):
        _, memory, done = policy.decide(observation(round, 8, 0.5), memory, generator(round))
        if done:
            return
    pytest.fail("never finished")


def test_a_solved_problem_does_not_grow_for_ever() -> None:
    policy, memory, size, loss = Trial(), Trial().start(), 8, 0.1
    for round in range(60):
        loss *= 0.5  # falls for ever, and by ever so little
        proposals, memory, done = policy.decide(
            observation(round, size, 10 * loss, loss), memory, generator(round)
        )
        size += sum(
            p.edit.units if isinstance(p.edit, Grow) else -len(p.edit.drop) for p in proposals
        )
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

    controller = Controller(
        model,
        POLICIES[name](),
        validation,
        x,
        budget=budget,
        optimizers=[opt],
        loss=lambda m: m.train()(x).square().mean(),
    )
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
    assert {id(p) for g in opt.param_groups for p in g["params"]} == {
        id(p) for p in model.parameters()
    }


def test_growth_is_cut_to_the_largest_that_fits() -> None:
    def count(edits: list[Edit]) -> int:
        return 100 + sum(10 * e.units if isinstance(e, Grow) else 500 for e in edits)

    kept = within(
        [Proposal(Grow("a", 8), "r"), Proposal(AddBlock("d"), "r"), Proposal(Grow("b", 1), "r")],
        135,
        count,
    )
    assert [p.edit for p in kept] == [Grow("a", 3)]
    assert kept[0].reason == "r (cut to the budget)"


@pytest.mark.parametrize("start", SEARCHES)
def test_an_attempt_leaves_no_trace(start: str) -> None:
    model, x = problem("convnet", torch.float32)
    opt = torch.optim.AdamW(model.parameters())
    # in training mode: a batch norm's averages and the random state would move
    controller = Controller(
        model,
        Trial(),
        lambda m: m.train()(x).square().mean(1) + torch.rand(3),
        x,
        optimizers=[opt],
        loss=lambda m: m(x).square().mean(),
    )
    model.train()(x).square().mean().backward()
    opt.step()
    before, random = copy.deepcopy((model.state_dict(), opt.state_dict())), torch.get_rng_state()
    for edit in (Shrink("conv1", [0, 1]), Grow("conv1", 2)):
        once, parameters = (
            controller._attempt([edit], start, 3)
            if isinstance(edit, Grow)
            else controller._attempt([edit])
        )
        assert (parameters < count_parameters(model)) == isinstance(edit, Shrink)
        assert once.shape == (3,)
    assert torch.equal(controller._attempt([edit], start, 3)[0], once)
    assert str(before) == str((model.state_dict(), opt.state_dict()))
    assert all(torch.equal(before[0][n], t) for n, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_what_was_attempted_is_what_is_done() -> None:
    model, x = problem("convnet", torch.float32)
    controller = Controller(
        model, Stochastic(), lambda m: m.eval()(x).square().mean(1).detach(), x, optimizers=[]
    )
    tried, cost = controller._attempt([Grow("conv1", 2)], "random", 7)
    controller.apply(Proposal(Grow("conv1", 2), "r", "random", 7), 0, 0.0, generator(0))
    assert torch.equal(controller.losses(model), tried)
    assert count_parameters(model) == cost


def noisy(rise: float, spread: float) -> Observation:
    """Whatever is tried, losses rise by `rise` on average, with that spread between examples."""
    pattern = torch.tensor([1.0, -1.0]).repeat(50)
    return Observation(
        1,
        {"a": 8},
        800,
        torch.ones(100),
        lambda edits, start="", seed=0: (1 + rise + spread * pattern, 800),
        lambda name: torch.arange(8.0),
    )


def test_the_bound_refuses_what_may_be_noise() -> None:
    for confidence, kept in ((0.0, True), (1.64, False)):
        proposals, _, _ = Stochastic(confidence=confidence).decide(
            noisy(-0.01, 0.1), {}, generator(0)
        )
        assert bool(proposals) == kept
    assert Stochastic(confidence=1.64).decide(noisy(-0.03, 0.1), {}, generator(0))[0]
    assert not Stochastic().decide(noisy(0.0, 0.0), {}, generator(0))[0]
    # units on trial whose removal costs 0.03 on average stay; where that may be noise, they leave
    memory = {**Trial().start(), "added": {"a": (4, 0, 9.0)}}
    for confidence, kind in ((0.0, Grow), (4.0, Shrink)):
        policy = Trial(penalty=0.0, probation=1, granularity=4, confidence=confidence)
        assert isinstance(policy.decide(noisy(0.03, 0.1), memory, generator(0))[0][0].edit, kind)


def test_firefly_keeps_the_best_chunks_and_splits_only_where_the_function_stays() -> None:
    gains = {
        "a": (torch.tensor([0.1, 0.9, 0.8, 0.0]), torch.tensor([0.05, 0.0])),
        "b": (torch.empty(0), torch.tensor([0.5, 0.4])),
    }
    seen = Observation(
        2,
        {"a": 4, "b": 4},
        80,
        torch.ones(4),
        lambda *_: (torch.ones(4), 0),
        lambda _: torch.ones(4),
        gains=lambda n: gains,
    )
    proposals, _, _ = Firefly(rate=0.5, granularity=2).decide(seen, {}, generator(0))
    assert [p.edit for p in proposals] == [Split("a", [1, 2]), Grow("b", 2)]
    assert all(p.init == "firefly" for p in proposals)


def test_growth_by_splits_is_cut_to_the_budget() -> None:
    kept = within(
        [Proposal(Split("a", [3, 1, 2]), "r")],
        125,
        lambda edits: 100 + sum(10 * len(e.of) for e in edits),
    )
    assert [p.edit for p in kept] == [Split("a", [3, 1])]


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
