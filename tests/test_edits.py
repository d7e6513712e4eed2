"""The contract of every structure change: one plan, printed; one way to apply it; an undo that is
the identity; optimizers that hold exactly the parameters that are trained.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import morphogen as mg
from morphogen import AddBlock, Dag, DropBlock, Grow, PlanError, RunError, Shrink, Split
from morphogen.edit.apply import Applied
from morphogen.edit.checkpoint import load_ledger
from morphogen.edit.dag import full_gradient
from morphogen.edit.edit import AddStage, Edit, GrowNodes, PruneWeights, Rewire
from morphogen.edit.plan import Placed
from morphogen.layers.dag.cascade import Cascade
from morphogen.transforms.link import link, unlink


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 5),
        nn.PReLU(),
        mg.LearnedDepth(lambda _: nn.Linear(5, 5), w=1.5, zero_init=True),
        nn.Linear(5, 3),
    )


def twice() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def with_dag(**how: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Dag(5, 8, 3, **how))


def sparse() -> nn.Module:
    return with_dag(wiring="random", fan_in=3)


def with_cascade() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), Cascade(4, 3, 2))


@dataclass(frozen=True)
class Case:
    """An edit of the model that `build` makes. said: what its plan tells. keeps: whether the
    function stays.
    """

    edit: Edit
    build: Callable[[], nn.Module]
    said: tuple[str, ...]
    keeps: bool


CASES = {
    "grow": Case(Grow("0", 2), chain, ("5 -> 7", "0.weight[0]"), True),
    "shrink": Case(Shrink("0", [1]), chain, ("5 -> 4", "3.weight[1]"), False),
    "split": Case(Split("0", [0, 0]), twice, ("0 5 -> 7",), True),
    "add a block": Case(AddBlock("2"), chain, ("2 +1 block",), True),
    "drop a block": Case(DropBlock("2"), chain, ("2 -1 block",), False),
    "grow nodes": Case(
        GrowNodes("2", 4),
        with_dag,
        ("2.nodes 8 -> 12", "2.bias[0]: 8 entries stay, 4 are new"),
        True,
    ),
    "grow nodes of a sparse one": Case(GrowNodes("2", 4), sparse, ("2.nodes 8 -> 12",), True),
    "prune": Case(PruneWeights("2", 0.5), with_dag, ("2.weight 68 -> 34",), False),
    "rewire": Case(
        Rewire("2", 0.3), sparse, ("2.weight 24 -> 24", "17 entries stay, 7 are"), False
    ),
    "add a stage": Case(
        AddStage("1", 3),
        with_cascade,
        ("1.stages.1 = Dag of 3 nodes", "1.stages.0.weight is frozen", "1.readout.weight 7 -> 10"),
        True,
    ),
}


class Run:
    """A model in training, with its optimizers and what they hold."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        torch.manual_seed(0)
        self.model = build().double()
        self.x = torch.randn(6, 4, dtype=torch.float64)
        first, *others = self.model.parameters()
        adam = torch.optim.Adam(others, 0.01)
        self.optimizers = [torch.optim.SGD([first], 0.1, momentum=0.9), adam]
        self.step()
        self.model(self.x).square().mean().backward()

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.model(self.x).square().mean().backward()
        for optimizer in self.optimizers:
            optimizer.step()

    def everything(self) -> str:
        torch.set_printoptions(precision=17, threshold=10**6)
        parameters = [(n, p, p.grad, p.requires_grad) for n, p in self.model.named_parameters()]
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        identities = [id(p) for p in self.model.parameters()]
        held = [[id(p) for p in one.param_groups[0]["params"]] for one in self.optimizers]
        buffers = list(self.model.named_buffers())
        text = str((self.model, parameters, buffers, states, identities, held))
        torch.set_printoptions(profile="default")
        return text

    def trained(self) -> tuple[list[int], list[int]]:
        """Parameters that learn, and those that the optimizers hold."""
        learn = [id(p) for p in self.model.parameters() if p.requires_grad]
        groups = [group for one in self.optimizers for group in one.param_groups]
        return sorted(learn), sorted(id(p) for group in groups for p in group["params"])


def planned(run: Run, case: Case) -> mg.Plan:
    known = mg.widths(mg.trace(run.model, run.x))
    draws = torch.Generator().manual_seed(1)
    return mg.plan(run.model, known, [case.edit], generator=draws)


@pytest.mark.parametrize("name", CASES)
def test_every_edit_is_planned_applied_and_taken_back(name: str) -> None:
    case = CASES[name]
    run = Run(case.build)
    before, out = run.everything(), run.model(run.x)
    plan = planned(run, case)
    assert run.everything() == before
    assert all(text in str(plan) for text in case.said), str(plan)
    assert plan.keeps == case.keeps
    applied = mg.apply_(run.model, plan, optimizers=run.optimizers, example=run.x)
    check(run, applied, before, out, case.keeps)
    assert applied.receipt.edits == (str(case.edit),)


def check(run: Run, applied: Applied, before: str, out: Tensor, keeps: bool) -> None:
    """The optimizers hold what learns, the function stays where that is said, an undo is whole, and
    training goes on.
    """
    assert applied.receipt.keeps == keeps
    assert run.everything() != before
    learn, held = run.trained()
    assert learn == held
    assert mg.doctor(run.model, optimizers=run.optimizers) == []
    if keeps:
        torch.testing.assert_close(run.model(run.x), out, rtol=0, atol=1e-12)
    applied.undo()
    assert run.everything() == before
    run.step()


@pytest.mark.parametrize("init", ["preserve", "looks-linear"])
def test_linking_is_a_plan_like_any_other(init: Any) -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Linear(4, 5), nn.PReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)
        )

    run = Run(build)
    before, out = run.everything(), run.model(run.x)
    applied = link(run.model, run.x, optimizers=run.optimizers, init=init)
    assert applied.receipt.edits == ("link 1", "link 3")
    check(run, applied, before, out, init == "preserve")
    link(run.model, run.x, optimizers=run.optimizers, init=init)
    before, out = run.everything(), run.model(run.x)
    check(run, unlink(run.model, run.x, optimizers=run.optimizers), before, out, True)


@pytest.mark.parametrize(
    "name", ["grow nodes", "grow nodes of a sparse one", "rewire", "add a stage"]
)
def test_an_average_gets_the_same_new_parts(name: str) -> None:
    case = CASES[name]
    run = Run(case.build)
    average = AveragedModel(run.model)
    before = copy.deepcopy(average.state_dict())
    draws = torch.Generator().manual_seed(2)
    plan = planned(run, case)
    applied = mg.apply_(run.model, plan, ema=[average], generator=draws)
    ours, theirs = run.model.state_dict(), average.module.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    applied.undo()
    assert all(torch.equal(before[key], value) for key, value in average.state_dict().items())


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_loads_after_every_edit_and_its_ledger_replays(
    name: str, tmp_path: Path
) -> None:
    case = CASES[name]
    run = Run(case.build)
    mg.apply_(run.model, planned(run, case), optimizers=run.optimizers, example=run.x)
    run.step()
    path = mg.save(run.model, tmp_path / "run", optimizers=run.optimizers, ledger=[case.edit])

    def build() -> tuple[nn.Module, Any, Any]:
        fresh = Run(case.build)
        return fresh.model, *fresh.optimizers

    model, optimizers = mg.load(path, build)
    assert torch.equal(model(run.x), run.model(run.x))
    loaded = Run(case.build)
    loaded.model, loaded.optimizers = model, list(optimizers)
    assert mg.doctor(model, optimizers=optimizers) == []
    run.step()
    loaded.step()
    assert torch.equal(model(run.x), run.model(run.x))
    replayed = mg.replay(case.build().double(), load_ledger(path), run.x)
    assert mg.diff(replayed, run.model) == ""
    with pytest.raises(RunError, match=r"the state of 2 optimizers, build\(\) gives 1"):
        mg.load(path, lambda: build()[:2])


def test_edits_of_one_tensor_are_made_one_after_the_other() -> None:
    run = Run(with_dag)
    known = mg.widths(mg.trace(run.model, run.x))
    with pytest.raises(PlanError, match=r"two of these edits change 2.weight\[0\]"):
        mg.plan(run.model, known, [Grow("0", 1), GrowNodes("2", 2)])
    mg.plan(run.model, known, [Grow("0", 1)])
    for edit, reason in (
        (GrowNodes("0", 1), "there is no Dag '0'; this model's are: '2'"),
        (AddStage("2", 1), "there is no Cascade '2'; this model's are: none"),
        (Rewire("2", 0.1), "this DAG has every weight"),
    ):
        with pytest.raises(PlanError, match=reason):
            mg.plan(run.model, known, [edit])
    bare = nn.Sequential(Dag(4, 3), nn.Linear(3, 2))
    with pytest.raises(PlanError, match="has no readout"):
        mg.plan(bare, {}, [GrowNodes("0", 1)])


@pytest.mark.parametrize("name", CASES)
def test_what_fails_at_the_end_leaves_everything_as_it_was(name: str) -> None:
    run = Run(CASES[name].build)
    before = run.everything()
    plan = planned(run, CASES[name])

    def stop(model: nn.Module, generator: torch.Generator | None) -> nn.Module:
        raise ValueError("no such module")

    # new modules are the last thing that is put into a model
    broken = Placed("0", "nothing", next(iter(dict(run.model.named_parameters()))), stop)
    plan = replace(plan, modules=(*plan.modules, broken), frozen=(*plan.frozen, broken.like))
    with pytest.raises(PlanError, match="no such module"):
        mg.apply_(run.model, plan, optimizers=run.optimizers)
    assert run.everything() == before


def test_rewiring_inside_a_network_follows_the_gradient() -> None:
    run = Run(sparse)
    dag, x = run.model[2], run.model[:2](run.x).detach()
    gradient = full_gradient(dag, x, lambda out: out.square().mean())
    plan = mg.plan(run.model, {}, [Rewire("2", 0.3)], gradients={"2": gradient})
    again = mg.plan(run.model, {}, [Rewire("2", 0.3)], gradients={"2": gradient})
    assert plan == again
    mg.apply_(run.model, plan, optimizers=run.optimizers)
    wide, narrow = dag.entries()
    assert len(wide) == len(narrow) == 24
    assert int((dag.weight == 0).sum()) == 7
