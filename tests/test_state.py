"""What becomes of an optimizer's state and of gradients when their parameters change."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import morphogen as mg
from morphogen import AddBlock, Grow, PlanError, Shrink, Split, Unsupported
from morphogen.edit.dag import grow_nodes
from morphogen.edit.optim import KNOWN, cut, whole
from problems import problem
from published import COPIES, DualAveraging, Lookahead, ScheduleFree, Shampoo
from test_resize import OPTIMIZERS, optimizer_of


def step(model: nn.Module, optimizer: Optimizer, x: Tensor, times: int = 1) -> None:
    for _ in range(times):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()


def chain() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return problem("chain")


def tensors(optimizer: Optimizer) -> dict[tuple[int, str], Tensor]:
    return {
        (number, key): value.clone()
        for number, p in enumerate(p for group in optimizer.param_groups for p in group["params"])
        for key, value in optimizer.state.get(p, {}).items()
        if isinstance(value, Tensor)
    }


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_of_the_weights_starts_as_they_do(name: str) -> None:
    (build, key), (model, x) = COPIES[name], chain()
    optimizer = build(model.parameters())
    step(model, optimizer, x, 5)
    before, old = model(x).detach(), optimizer.state[model[0].weight][key].clone()
    applied = mg.resize(model, [Grow("0", 4)], optimizers=[optimizer], example=x)
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-12)
    copied, weight = optimizer.state[model[0].weight][key], model[0].weight
    assert torch.equal(copied[8:], weight[8:])
    assert torch.equal(copied[:8], old)
    # nothing reads the new units yet, so they have no gradient: they stay exactly where they
    # started
    born = weight[8:].detach().clone()
    assert born.abs().min() > 0
    step(model, optimizer, x)
    torch.testing.assert_close(weight[8:], born, rtol=0, atol=1e-14)
    with pytest.raises(PlanError):
        applied.undo()
    step(model, optimizer, x, 20)
    assert weight[8:].abs().mean() > born.abs().mean() / 2


def test_an_average_of_asgd_starts_as_the_weights() -> None:
    model, x = chain()
    optimizer = torch.optim.ASGD(model.parameters(), lr=0.05, t0=2)
    step(model, optimizer, x, 6)
    old = optimizer.state[model[0].weight]["ax"].clone()
    assert not torch.equal(old, model[0].weight)
    mg.resize(model, [Grow("0", 2), Shrink("2", [1])], optimizers=[optimizer], example=x)
    average = optimizer.state[model[0].weight]["ax"]
    assert torch.equal(average[8:], model[0].weight[8:])
    assert torch.equal(average[:8], old)


def test_a_copy_of_twins_keeps_its_distance() -> None:
    model, x = chain()
    optimizer = DualAveraging(model.parameters())
    step(model, optimizer, x, 5)
    mg.resize(model, [Split("0", [2, 2])], optimizers=[optimizer], example=x)
    born = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, at in zip(model.parameters(), born, strict=True):
        torch.testing.assert_close(p.detach(), at, rtol=0, atol=1e-14)


def test_a_copy_follows_the_weights_that_a_dag_draws_late() -> None:
    model, x = problem("dagnet")
    dag = model.dag
    for grow in (
        lambda optimizer: mg.resize(model, [Grow("dag", 3)], optimizers=[optimizer], example=x),
        lambda optimizer: grow_nodes(dag, 3, optimizers=[optimizer]),
    ):
        optimizer = ScheduleFree(model.parameters())
        step(model, optimizer, x, 2)
        distance = (optimizer.state[dag.weight]["z"] - dag.weight).abs().sum().item()
        grow(optimizer)
        assert optimizer.state[dag.weight]["z"].shape == dag.weight.shape
        found = (optimizer.state[dag.weight]["z"] - dag.weight).abs().sum().item()
        assert found == pytest.approx(distance, abs=1e-12)


class Named(Optimizer):
    """Gives each parameter one entry, made by a function."""

    def __init__(self, params: Any, entry: Any, key: str = "unheard_of") -> None:
        super().__init__(params, {})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p][key] = entry(p.detach())


@pytest.mark.parametrize(
    ("entry", "near"),
    [
        (lambda p: p.clone(), True),
        (lambda p: p + 0.3 * p.abs().mean() * torch.randn_like(p), True),
        (lambda p: 0.8 * p, True),
        (lambda p: p.float(), True),
        (torch.zeros_like, False),
        (torch.randn_like, False),
        (lambda p: p.abs().mean() * torch.randn_like(p), False),
        (lambda p: 1e-2 * p, False),  # a momentum of weight decay
        (lambda p: -p, False),
        (lambda p: p.square(), False),
    ],
)
def test_a_copy_is_known_by_being_near_the_weights(entry: Any, near: bool) -> None:
    model, x = chain()
    optimizer = Named(model.parameters(), entry)
    mg.resize(model, [Grow("0", 2)], optimizers=[optimizer], example=x)
    new, weight = optimizer.state[model[0].weight]["unheard_of"][8:], model[0].weight[8:]
    assert torch.equal(new, weight.to(new)) if near else not new.any()


def test_one_near_bias_does_not_make_a_momentum_a_copy() -> None:
    model, x = chain()
    optimizer = Named(
        model.parameters(), lambda p: p.clone() if p.dim() == 1 else torch.randn_like(p)
    )
    mg.resize(model, [Grow("0", 2)], optimizers=[optimizer], example=x)
    assert not optimizer.state[model[0].bias]["unheard_of"][8:].any()
    assert not optimizer.state[model[0].weight]["unheard_of"][8:].any()


def test_how_an_entry_starts_can_be_said() -> None:
    for way, expected in {"zero": 0.0, "mean": 3.0, "parameter": None}.items():
        model, x = chain()
        optimizer = Named(model.parameters(), lambda p: torch.full_like(p, 3.0))
        mg.resize(
            model, [Grow("0", 2)], optimizers=[optimizer], example=x, states={"unheard_of": way}
        )
        new, weight = optimizer.state[model[0].weight]["unheard_of"][8:], model[0].weight[8:]
        assert torch.equal(new, weight if expected is None else torch.full_like(new, expected))
    with pytest.raises(
        PlanError, match="states: 'z' is 'copy'; give one of 'zero', 'mean', 'parameter', 'drop'"
    ):
        mg.resize(model, [Grow("0", 2)], optimizers=[optimizer], example=x, states={"z": "copy"})


def test_no_state_of_torch_rests_on_its_values() -> None:
    for name in OPTIMIZERS:
        model, x = chain()
        optimizer = optimizer_of(name, model)
        step(model, optimizer, x, 2)
        keys = {
            k
            for state in optimizer.state.values()
            for k, v in state.items()
            if isinstance(v, Tensor) and v.dim()
        }
        assert keys <= set(KNOWN), f"{name}: say in KNOWN what becomes of {keys - set(KNOWN)}"
        assert keys


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_state_of_torch_is_cut_by_the_same_rows(name: str) -> None:
    model, x = chain()
    optimizer = optimizer_of(name, model)
    step(model, optimizer, x, 3)
    before = {
        p: {k: v for k, v in state.items() if isinstance(v, Tensor)}
        for p, state in optimizer.state.items()
    }
    mg.resize(model, [Shrink("0", [1, 6]), Grow("0", 3)], optimizers=[optimizer], example=x)
    kept = torch.tensor([0, 2, 3, 4, 5, 7])
    cuts = {model[0].weight: 0, model[0].bias: 0, model[2].weight: 1}
    for p, state in optimizer.state.items():
        for key, value in state.items():
            if (
                not isinstance(value, Tensor)
                or p not in cuts
                or not value.dim()
                or before[p][key].shape[cuts[p]] == 1
            ):
                assert not isinstance(value, Tensor) or torch.equal(value, before[p][key])
                continue
            dim = cuts[p]
            assert value.shape[dim] == p.shape[dim] == 9
            old = before[p][key].index_select(dim, kept)
            assert torch.equal(value.narrow(dim, 0, 6), old)
            new = value.narrow(dim, 6, 3)
            expected = {
                "zero": torch.zeros_like(new),
                "mean": old.mean(dim, keepdim=True).expand_as(new),
                "parameter": p.detach().narrow(dim, 6, 3),
            }[KNOWN[key]]
            torch.testing.assert_close(
                new, expected, rtol=1e-6 if new.dtype == torch.float32 else 1e-12, atol=0
            )
    weights = [p.detach().clone() for p in model.parameters()]
    model.train()
    step(model, optimizer, x, 3)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for p, old in zip(model.parameters(), weights, strict=True):
        assert p.isfinite().all()
        # behind a batch norm a bias has no gradient
        assert id(p) not in held or p is model[2].bias or not torch.equal(p, old)


def test_sparse_adam_and_its_gradients_go_on() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 4, sparse=True), nn.Flatten(), nn.Linear(8, 2)).double()
    x = torch.tensor([[0, 3], [3, 5]])
    sparse, dense = (
        torch.optim.SparseAdam([model[0].weight], lr=0.1),
        torch.optim.SGD(model[2].parameters(), lr=0.1),
    )
    model(x).square().mean().backward()
    sparse.step()
    gradient = model[0].weight.grad.to_dense()
    mg.resize(model, [Grow("0", 2), Shrink("0", [1])], optimizers=[sparse, dense], example=x)
    assert model[0].weight.grad.is_sparse
    assert torch.equal(
        model[0].weight.grad.to_dense(),
        torch.cat([gradient[:, [0, 2, 3]], gradient.new_zeros(6, 2)], 1),
    )
    before = model[0].weight.detach().clone()
    model(x).square().mean().backward()
    sparse.step()
    moved = (model[0].weight != before).any(1)
    assert moved.tolist() == [True, False, False, True, False, True]


def refused(model: nn.Module, optimizer: Optimizer, edit: Any, x: Tensor, message: str) -> None:
    """Nothing changes, random numbers included."""
    before, state, draws = (
        copy.deepcopy(model.state_dict()),
        tensors(optimizer),
        torch.get_rng_state(),
    )
    with pytest.raises(Unsupported, match=message):
        mg.resize(model, [edit], optimizers=[optimizer], example=x)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(state[key], tensor) for key, tensor in tensors(optimizer).items())
    assert torch.equal(draws, torch.get_rng_state())


@pytest.mark.parametrize("edit", [Grow("0", 2), Shrink("2", [0]), Split("0", [1])])
def test_vectors_of_all_parameters_are_refused_or_dropped(edit: Any) -> None:
    model, x = chain()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (model(x) - 1).square().mean()
        value.backward()
        return value

    # before its first step there is nothing to cut
    mg.resize(model, [Grow("0", 1)], optimizers=[optimizer], example=x)
    optimizer.step(loss)
    refused(
        model, optimizer, edit, x, "of all parameters at once: .* nothing was changed. Give states="
    )
    applied = mg.resize(model, [edit], optimizers=[optimizer], example=x, states={"d": "drop"})
    assert not optimizer.state[model[0].weight]
    applied.undo()
    assert len(optimizer.state[model[0].weight]["prev_flat_grad"]) == sum(
        p.numel() for p in model.parameters()
    )
    optimizer.step(loss)
    mg.resize(model, [edit], optimizers=[optimizer], example=x, states={"*": "drop"})
    before = loss().item()
    for _ in range(3):
        optimizer.step(loss)
    assert loss().item() < before


def test_blocks_do_not_join_vectors_of_all_parameters() -> None:
    model, x = problem("mlp")
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.01)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = model(x).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    refused(model, optimizer, AddBlock("depth"), x, "all parameters at once")
    mg.resize(model, [AddBlock("depth")], optimizers=[optimizer], example=x, states={"d": "drop"})
    optimizer.step(loss)


@pytest.mark.parametrize("listed", [True, False])
def test_preconditioners_are_refused_or_dropped(listed: bool) -> None:
    model, x = chain()
    optimizer = Shampoo(model.parameters(), listed=listed)
    step(model, optimizer, x, 2)
    key = "both" if listed else "precond_0"
    refused(
        model,
        optimizer,
        Grow("0", 2),
        x,
        f"optimizer state '{key}' of '0.weight' is .* the parameter is of shape \\(8, 4\\)",
    )
    preserve_state = optimizer.state[model[5].weight]
    mg.resize(model, [Grow("0", 2)], optimizers=[optimizer], example=x, states={key: "drop"})
    assert not optimizer.state[model[0].weight]
    assert optimizer.state[model[5].weight] is preserve_state
    step(model, optimizer, x, 2)
    assert model(x).isfinite().all()


def test_a_preconditioner_of_a_square_weight_is_no_momentum() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), torch.randn(5, 4)
    optimizer = Shampoo(model.parameters())
    step(model, optimizer, x, 2)
    refused(model, optimizer, Grow("0", 2), x, "optimizer state 'precond_0' of '0.weight'")
    # in a model with a weight that is not square, its name tells, whatever its values are
    wider = nn.Sequential(*model, nn.Linear(4, 3))
    optimizer = Shampoo(wider.parameters())
    step(wider, optimizer, x, 2)
    optimizer.state[wider[0].weight]["precond_0"] = torch.randn(4, 4)
    optimizer.state[wider[2].weight].clear()
    refused(wider, optimizer, Grow("0", 2), x, "optimizer state 'precond_0' of '0.weight'")


def test_copies_outside_of_the_state_are_refused() -> None:
    model, x = chain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.slow = [[p.detach().clone() for p in model.parameters()]]
    refused(
        model,
        optimizer,
        Grow("0", 2),
        x,
        r"SGD keeps a tensor of shape \(8, 4\) outside of its state, as large as 0.weight",
    )
    del optimizer.slow
    optimizer.param_groups[0]["flat"] = torch.zeros(sum(p.numel() for p in model.parameters()))
    refused(model, optimizer, Grow("0", 2), x, "outside of its state, as large as all parameters")
    del optimizer.param_groups[0]["flat"]
    optimizer.state["all"] = {"kept": torch.zeros(3)}
    refused(
        model, optimizer, Grow("0", 2), x, "SGD keeps tensors under 'all', which is no parameter"
    )


def test_cut_takes_what_has_the_parameters_shape_alone() -> None:
    shape, index = torch.Size([4, 6]), torch.tensor([0, 2, -1])
    for fine in (torch.ones(4, 6), torch.ones(4, 1), torch.ones(()), 3, 2.5, None, "text", [], {}):
        cut({"k": fine}, shape, 0, index, "w")
    odd = [torch.ones(size) for size in ((4, 4), (4,), (24,), (4, 6, 1), (5, 6))]
    for value in (*odd, [1.0], {"a": 1}, object()):
        with pytest.raises(
            Unsupported, match="optimizer state 'k' of 'w' is .* no rule to resize it"
        ):
            cut({"k": value}, shape, 0, index, "w")


def test_an_optimizer_inside_another_is_cut_too() -> None:
    model, x = chain()
    inner = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    outer = Lookahead(inner, k=2)
    step(model, outer, x, 3)
    assert whole([outer]) == (outer, inner) == whole([inner, outer])[::-1]
    mg.resize(model, [Grow("0", 2)], optimizers=[outer], example=x)
    assert inner.state[model[0].weight]["momentum_buffer"].shape == (10, 4)
    step(model, outer, x, 3)
    assert mg.doctor(model, optimizers=[outer]) == []
    inner.state[model[0].weight]["momentum_buffer"] = torch.zeros(3, 3)
    assert (
        "state 'momentum_buffer' of '0.weight' has shape (3, 3)"
        in mg.doctor(model, optimizers=[outer])[0]
    )


def test_a_block_joins_groups_that_two_optimizers_share_once() -> None:
    model, x = problem("mlp")
    inner = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    outer = Lookahead(inner)
    outer.param_groups = inner.param_groups
    applied = mg.resize(model, [AddBlock("depth")], optimizers=[outer], example=x)
    assert mg.doctor(model, optimizers=[outer]) == []
    applied.undo()
    assert mg.doctor(model, optimizers=[outer]) == []


def accumulate(model: nn.Module, x: Tensor, share: float) -> None:
    (share * (model(x) - 1).square().mean()).backward()


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("when", [0, 1, 2])
def test_gradients_go_on_accumulating_over_a_growth(optimizer: str, when: int) -> None:
    """Old weights take the step that they would have taken; new ones that of the micro-batches that
    they have seen.
    """
    model, x = chain()
    model.eval()
    plain, batches = copy.deepcopy(model), [x, x.flip(0) + 0.3, 2 * x - 1]
    grown = copy.deepcopy(model)
    mg.resize(
        grown, [Grow("0", 3), Grow("2", 2)], example=x, generator=torch.Generator().manual_seed(1)
    )
    for batch in batches[when:]:
        accumulate(grown, batch, 1 / 3)
    opt = getattr(torch.optim, optimizer)(model.parameters(), lr=0.1)
    for number, batch in enumerate(batches):
        if number == when:
            draw = torch.Generator().manual_seed(1)
            mg.resize(
                model, [Grow("0", 3), Grow("2", 2)], optimizers=[opt], example=x, generator=draw
            )
        accumulate(model, batch, 1 / 3)
        accumulate(plain, batch, 1 / 3)
    assert model[0].weight.grad.shape == (11, 4)
    torch.testing.assert_close(model[0].weight.grad[:8], plain[0].weight.grad, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        model[2].weight.grad[:6, :8], plain[2].weight.grad, rtol=0, atol=1e-14
    )
    torch.testing.assert_close(
        model[5].weight.grad[:, 6:], grown[5].weight.grad[:, 6:], rtol=0, atol=1e-14
    )
    assert model[5].weight.grad[:, 6:].any()
    reference = getattr(torch.optim, optimizer)(plain.parameters(), lr=0.1)
    opt.step()
    reference.step()
    torch.testing.assert_close(model[5].weight[:, :6], plain[5].weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(model[0].weight[:8], plain[0].weight, rtol=0, atol=1e-12)


def test_gradients_leave_with_their_units_and_come_back() -> None:
    model, x = chain()
    accumulate(model, x, 1.0)
    before = [p.grad.clone() for p in model.parameters()]
    applied = mg.resize(model, [Shrink("0", [0, 5])], example=x)
    kept = [1, 2, 3, 4, 6, 7]
    assert torch.equal(model[0].weight.grad, before[0][kept])
    assert torch.equal(model[2].weight.grad, before[2][:, kept])
    applied.undo()
    assert all(torch.equal(p.grad, old) for p, old in zip(model.parameters(), before, strict=True))


def test_twins_share_the_gradient_of_their_unit() -> None:
    """A loss in (incoming, outgoing) of a unit becomes one in those of its twins: what comes in
    adds up to the unit's gradient, and each outgoing weight has the whole.
    """
    model, x = chain()
    model.eval()
    accumulate(model, x, 1.0)
    before = [p.grad.clone() for p in model.parameters()]
    mg.resize(model, [Split("0", [2, 2])], example=x)
    cut_alike = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    accumulate(model, x, 1.0)
    for p, mine, old in zip(model.parameters(), cut_alike, before, strict=True):
        if p is model[2].weight:
            torch.testing.assert_close(mine, p.grad, rtol=0, atol=1e-12)
        elif len(p) == 10:
            torch.testing.assert_close(
                mine[[2, 8, 9]].sum(0), p.grad[[2, 8, 9]].sum(0), rtol=0, atol=1e-12
            )
            torch.testing.assert_close(mine[[2, 8, 9]].sum(0), old[2], rtol=0, atol=1e-12)
            assert torch.equal(mine[[0, 1, 3]], old[[0, 1, 3]])


def test_a_network_in_channels_last_keeps_its_gradients_so() -> None:
    model, x = problem("residual")
    model = model.to(memory_format=torch.channels_last)
    model(x).square().mean().backward()
    model.first.weight.grad = model.first.weight.grad.contiguous(memory_format=torch.channels_last)
    mg.resize(model, [Grow("first", 2)], example=x)
    assert model.first.weight.grad.is_contiguous(memory_format=torch.channels_last)
