"""Function kept, undo is the identity, the optimizer holds exactly the live parameters."""

import copy
import itertools
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import morphogen as mg
from architectures import ARCHITECTURES
from morphogen import (
    AddBlock,
    DropBlock,
    Grow,
    PlanError,
    Shrink,
    Split,
    apply_,
    plan,
    replay,
    resize,
    trace,
    widths,
)
from morphogen.edit import apply as apply_module
from morphogen.edit.ledger import ledger_from_json, ledger_to_json
from morphogen.edit.plan import resized
from problems import PROBLEMS, problem

OPTIMIZERS = {
    "Adadelta": {},
    "Adafactor": {},
    "Adagrad": {},
    "Adam": {"amsgrad": True},
    "AdamW": {"amsgrad": True},
    "Adamax": {},
    "ASGD": {},
    "NAdam": {},
    "RAdam": {},
    "RMSprop": {"centered": True, "momentum": 0.9},
    "Rprop": {},
    "SGD": {"momentum": 0.9},
    "Muon": {},
}
# LBFGS keeps flat vectors of all parameters, SparseAdam takes sparse gradients only: cases of their
# own in test_state.py.
EXCUSED = {"LBFGS", "SparseAdam", "Optimizer"}


def test_every_optimizer_of_torch_has_a_case() -> None:
    known = {
        name
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    }
    assert known - EXCUSED <= set(OPTIMIZERS), "add a case to OPTIMIZERS"


def optimizer_of(name: str, model: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.dim() == 2 or name != "Muon"]
    return getattr(torch.optim, name)(parameters, lr=1e-2, **OPTIMIZERS[name])


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, times: int = 2
) -> torch.Tensor:
    for _ in range(times):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
    return loss  # kept alive by the caller, as training loops do


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    names = {p: n for n, p in model.named_parameters()}
    state = {
        f"{names[p]}.{k}": v.clone() if isinstance(v, torch.Tensor) else torch.tensor(v)
        for p, s in optimizer.state.items()
        for k, v in s.items()
        if v is not None
    }
    grads = {f"{n}.grad": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {**{n: t.clone() for n, t in model.state_dict().items()}, **state, **grads}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def holds_the_live_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    held = [p for g in optimizer.param_groups for p in g["params"]]
    live = {id(p) for p in model.parameters()}
    fits = all(
        v.dim() == 0 or all(a in (1, b) for a, b in zip(v.shape, p.shape, strict=True))
        for p, s in optimizer.state.items()
        for v in s.values()
        if isinstance(v, torch.Tensor)
    )
    return (
        {id(p) for p in held} == live
        and len(held) == len(live)
        and {id(p) for p in optimizer.state} <= live
        and fits
    )


@pytest.mark.parametrize(
    ("name", "optimizer"), itertools.product(("residual", "convnet"), OPTIMIZERS)
)
def test_grow_and_undo_under_every_optimizer(name: str, optimizer: str) -> None:
    model, x = problem(name)
    opt = optimizer_of(optimizer, model)
    loss = step(model, opt, x)
    before, output = everything(model, opt), model.eval()(x)
    applied = resize(model, [Grow(w, 3) for w in PROBLEMS[name][2]], example=x, optimizers=[opt])
    assert applied.receipt.change <= 1e-9  # zero outgoing weights keep the function
    torch.testing.assert_close(model.eval()(x), output, rtol=0, atol=1e-9)
    if optimizer != "Muon":
        assert holds_the_live_parameters(model, opt)
    applied.undo()
    assert same(everything(model, opt), before)
    assert loss.isfinite()
    resize(model, [Grow(w, 3) for w in PROBLEMS[name][2]], example=x, optimizers=[opt])
    model.train()
    assert step(model, opt, x).isfinite()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.parametrize("name", PROBLEMS)
def test_shrinking_what_was_grown_is_the_identity(name: str) -> None:
    model, x = problem(name)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    step(model, opt, x)
    opt.zero_grad()
    before = everything(model, opt)
    for width, size in PROBLEMS[name][2].items():
        resize(model, [Grow(width, 2)], example=x, optimizers=[opt])
        resize(model, [Shrink(width, [size, size + 1])], example=x, optimizers=[opt])
    assert same(everything(model, opt), before)


def test_kept_units_take_the_step_they_would_have_taken() -> None:
    model, x = problem("chain")
    twin = copy.deepcopy(model)
    first, second = (torch.optim.Adam(m.parameters(), lr=1e-2) for m in (model, twin))
    for m, o in ((model, first), (twin, second)):
        step(m, o, x, 5)
    resize(model, [Grow("0", 4)], example=x, optimizers=[first])
    for m, o in ((model, first), (twin, second)):
        step(m, o, x, 1)
    torch.testing.assert_close(model[0].weight[:8], twin[0].weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_twins_keep_the_function_and_part_in_training(optimizer: str) -> None:
    model, x = problem("chain")
    opt = optimizer_of(optimizer, model)
    step(model, opt, x)
    before = everything(model, opt)
    applied = resize(model, [Split("0", [2, 5, 5])], example=x, optimizers=[opt])
    assert applied.receipt.sizes == {"0": (8, 11)}
    assert applied.receipt.keeps
    assert torch.equal(model[0].weight[8], model[0].weight[2])
    assert not torch.equal(model[2].weight[:, 8], model[2].weight[:, 2])
    applied.undo()
    assert same(everything(model, opt), before)
    resize(model, [Split("0", [2, 5, 5])], example=x, optimizers=[opt])
    model.train()
    step(model, opt, x)
    if optimizer != "Rprop":  # steps by signs, which twins mostly share
        assert not torch.equal(model[0].weight[8:], model[0].weight[[2, 5, 5]])


def test_units_that_nothing_reads_leave_without_loss_and_it_is_said() -> None:
    model, x = problem("residual")
    with torch.no_grad():
        model.output.weight[:, [1, 4]] = 0
    assert resize(model, [Shrink("hidden", [1])], example=x).receipt.keeps
    other = resize(model, [Shrink("hidden", [0])], example=x).receipt
    assert not other.keeps
    assert other.change > 1e-3


@pytest.mark.parametrize(
    ("new_state_fraction", "low", "high"), [(1.0, 0.0, 1.2), (0.1, 1.2, 3.0), (0.0, 3.0, 10.0)]
)
def test_how_fresh_state_starts_is_a_choice(
    new_state_fraction: float, low: float, high: float
) -> None:
    torch.manual_seed(0)
    model, lr = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 2)), 1e-3
    optimizer, x = torch.optim.Adam(model.parameters(), lr=lr), torch.randn(64, 10)

    def step() -> None:
        optimizer.zero_grad()
        (model(x) - x[:, :2]).square().mean().backward()
        optimizer.step()

    for _ in range(300):
        step()
    resize(
        model,
        [Grow("0", 8)],
        optimizers=[optimizer],
        example=x,
        new_state_fraction=new_state_fraction,
    )
    largest = 0.0
    for _ in range(20):
        before = model[2].weight.detach().clone()
        step()
        largest = max(largest, float((model[2].weight.detach() - before)[:, 8:].abs().max()) / lr)
    assert low <= largest <= high


def test_a_negative_fresh_share_is_refused() -> None:
    model, x = problem("chain")
    with pytest.raises(PlanError, match=r"new_state_fraction=-1; give a share of at least 0"):
        resize(model, [Grow("0", 8)], example=x, new_state_fraction=-1)
    with pytest.raises(PlanError, match="new_state_fraction='scaled'; give a share"):
        resize(model, [Grow("0", 8)], example=x, new_state_fraction="scaled")


def test_without_a_share_steps_of_rprop_are_still_the_others() -> None:
    model, x = problem("chain")
    optimizer = torch.optim.Rprop(model.parameters(), lr=0.01)
    model(x).square().mean().backward()
    optimizer.step()
    resize(model, [Grow("0", 8)], optimizers=[optimizer], example=x, new_state_fraction=0.0)
    assert (optimizer.state[model[0].weight]["step_size"] > 0).all()


def test_a_backward_through_an_older_graph_fails_loudly() -> None:
    model, x = problem("chain")
    loss = model(x).sum()
    resize(model, [Grow("0", 2)], example=x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_hooks_and_references_stay_on_the_live_parameter() -> None:
    model, x = problem("chain")
    weight, seen = model[0].weight, []
    weight.register_hook(lambda g: seen.append(tuple(g.shape)))
    loss = model(x).sum()
    loss.backward()
    resize(model, [Grow("0", 2)], example=x)
    model(x).sum().backward()
    assert weight is model[0].weight
    assert seen == [(8, 4), (10, 4)]
    assert (model[0].out_features, model[2].in_features) == (10, 10)


def test_learned_blocks_join_and_leave_with_their_state() -> None:
    model, x = problem("mlp")
    opt = torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=1e-2, momentum=0.9)
    step(model, opt, x)
    before = everything(model, opt)
    added = resize(model, [AddBlock("depth")], example=x, optimizers=[opt])
    assert holds_the_live_parameters(model, opt)
    assert added.receipt.change == 0  # its gate is closed
    added.undo()
    assert same(everything(model, opt), before)
    resize(model, [AddBlock("depth")], example=x, optimizers=[opt])
    model.depth.w.data.fill_(1.7)
    step(model, opt, x)
    before = everything(model, opt)
    dropped = resize(model, [DropBlock("depth")], example=x, optimizers=[opt])
    assert holds_the_live_parameters(model, opt)
    dropped.undo()
    assert same(everything(model, opt), before)


@pytest.mark.parametrize(
    ("name", "stack"),
    [("resnet18", "layer2"), ("gpt", "h"), ("vit", "blocks"), ("convnext", "blocks")],
)
def test_a_block_of_an_ordinary_stack_joins_as_the_identity(name: str, stack: str) -> None:
    torch.manual_seed(0)
    make, example = ARCHITECTURES[name]
    model, x = make(), example()
    opt = torch.optim.AdamW(model.parameters())
    before, structure = everything(model, opt), mg.structure(model)
    average = torch.optim.swa_utils.AveragedModel(model)
    added = resize(model, [AddBlock(stack)], example=x, optimizers=[opt], ema=[average])
    assert added.receipt.change == 0
    assert added.receipt.keeps
    assert holds_the_live_parameters(model, opt)
    assert {n: p.shape for n, p in average.module.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    model.train()(x).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    opt.zero_grad()
    resize(model, [DropBlock(stack)], example=x, optimizers=[opt])
    assert mg.diff(structure, model) == ""
    assert holds_the_live_parameters(model, opt)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.num_batches_tracked.zero_()
    assert all(torch.equal(t, before[n]) for n, t in model.named_parameters())


@pytest.mark.parametrize(
    ("model", "stack", "message"),
    [
        (
            nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)),
            "",
            "do not just add to what they are given",
        ),
        (nn.Sequential(nn.Linear(3, 3), nn.ReLU()), "", "ends with ReLU, which has no parameters"),
        (
            nn.Sequential(nn.Linear(3, 3), nn.Sequential()),
            "1",
            "'1' has no blocks; AddBlock repeats the last one",
        ),
    ],
)
def test_a_stack_whose_blocks_could_not_be_the_identity_is_refused(
    model: nn.Module, stack: str, message: str
) -> None:
    before = mg.structure(model)
    with pytest.raises(PlanError, match=message):
        resize(model, [AddBlock(stack)], example=torch.randn(2, 3))
    assert mg.diff(before, model) == ""


class Residual(nn.Module):
    def __init__(self, last=lambda: nn.Linear(6, 4)) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), last()

    def forward(self, x):
        return x + self.b(self.a(x).relu())


@pytest.mark.parametrize("names", [("p", "q"), ("1", "2"), ("0", "1")])
def test_named_children_keep_their_names_through_blocks_undo_and_files(
    names: tuple[str, str], tmp_path: Path
) -> None:
    def build() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(OrderedDict((name, Residual()) for name in names))

    model, x = build(), torch.randn(3, 4)
    before, expected = dict(model._modules), model(x)
    for edit in (AddBlock(""), DropBlock("")):
        resize(model, [edit], example=x).undo()
        assert list(model._modules.items()) == list(before.items())
    assert torch.equal(model(x), expected)
    resize(model, [AddBlock("")], example=x)
    assert torch.equal(model(x), expected)
    loaded, _ = mg.load(mg.save(model, tmp_path / "run"), build)
    assert list(loaded._modules) == list(model._modules)
    assert torch.equal(loaded(x), model(x))


def test_a_weight_normed_branch_is_closed_by_its_size() -> None:
    weight_norm = nn.utils.parametrizations.weight_norm
    model, x = (
        nn.Sequential(*(Residual(lambda: weight_norm(nn.Linear(6, 4))) for _ in range(2))),
        torch.randn(3, 4),
    )
    expected = model(x)
    resize(model, [AddBlock("")], example=x)
    assert torch.equal(model(x), expected)


def test_a_norm_after_the_sum_is_refused() -> None:
    model = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2))
    whole = nn.TransformerEncoder(model[0], 2, enable_nested_tensor=False)
    with pytest.raises(mg.MorphogenError):
        resize(whole, [AddBlock("layers")], example=torch.randn(2, 3, 8))


def test_what_a_block_shares_stays_trained_when_it_leaves() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Residual() for _ in range(3))
            for block in self.blocks:
                block.a = self.blocks[0].a

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    model, x = Shared(), torch.randn(3, 4)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step(model, opt, x)
    resize(model, [DropBlock("blocks")], example=x, optimizers=[opt])
    assert holds_the_live_parameters(model, opt)


def test_an_output_that_becomes_nan_is_not_kept() -> None:
    class Log(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
            with torch.no_grad():
                self.a.weight.abs_()
                self.a.bias.fill_(0.1)

        def forward(self, x):
            return self.b(torch.log(self.a(x)))

    model, x = Log(), torch.rand(3, 4)
    expected = model(x)
    with pytest.raises(mg.NotExact, match="outputs differ by nan"):
        resize(model, [Grow("a", 8)], example=x, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x), expected)


def test_a_width_and_a_block_change_in_one_plan() -> None:
    make, example = ARCHITECTURES["convnext"]
    model, x = make().eval(), example()
    resize(model, [Grow("stem", 4), AddBlock("blocks")], example=x)
    resize(model, [Grow("stem", 4), DropBlock("blocks")], example=x)
    assert model(x).shape == (2, 10)


def test_blocks_of_an_ordinary_stack_are_saved_and_replayed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, example = ARCHITECTURES["convnext"]
    model, x = make().eval(), example()
    ledger = (AddBlock("blocks"), Grow("blocks.2.pwconv1", 3))
    for edit in ledger:
        resize(model, [edit], example=x)
    path = mg.save(model, tmp_path / "ckpt", ledger=ledger)
    loaded, _ = mg.load(path, make)
    assert torch.equal(loaded.eval()(x), model(x))
    assert mg.diff(replay(make(), ledger, x), model) == ""


def test_a_block_at_rest_is_resized_too() -> None:
    model, x = problem("mlp")
    resize(model, [AddBlock("depth")], example=x)
    assert model.depth.active_blocks == 1
    resize(model, [Grow("hidden", 3)], example=x)
    model.depth.w.data.fill_(2.0)
    assert model(x).shape == (6, 2)


def test_ledger_replay_gives_the_same_structure() -> None:
    model, x = problem("convnet")
    ledger = (
        Grow("conv1", 3),
        AddBlock("depth1"),
        Shrink("conv1", [0, 5]),
        AddBlock("depth1"),
        DropBlock("depth1"),
    )
    fresh, _ = problem("convnet")
    for edit in ledger:
        resize(model, [edit], example=x)
    replay(fresh, ledger_from_json(ledger_to_json(ledger)), x)
    assert {n: t.shape for n, t in fresh.state_dict().items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }


def test_a_plan_prints_as_one_line_a_width() -> None:
    model, x = problem("chain")
    text = str(plan(model, widths(trace(model, x)), [Grow("2", 2)]))
    assert text == (
        "2 6 -> 8: 2.weight[0] 2.bias[0] 3.weight[0] 3.bias[0] 3.running_mean[0] "
        "3.running_var[0] 5.weight[1]"
    )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Shrink("0", [3, 70]), r"width '0' has 8 units; drop=\[70\] is out of range \(0-7\)"),
        (Shrink("0", range(8)), r"width '0' has 8 units; dropping 8 leaves none, keep at least 1"),
        (Grow("0", 0), r"width '0': Grow by 0; give at least 1 unit"),
        (Grow("5", 1), r"width '5' cannot change: the model's output"),
        (AddBlock("deep"), r"there is no stack of blocks 'deep'; this model's are: none"),
    ],
)
def test_impossible_edits_change_nothing(edit, message: str) -> None:
    model, x = problem("chain")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(PlanError, match=message):
        resize(model, [edit], example=x)
    assert same(before, model.state_dict())


def test_a_fault_after_any_tensor_leaves_everything_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = problem("residual")
    opt = torch.optim.Adam(model.parameters())
    step(model, opt, x)
    before = everything(model, opt)
    change = plan(model, widths(trace(model, x)), [Grow("first", 2), Shrink("third", [1])])
    setter, faults = apply_module._setter, 0
    for fail_at in range(1, 100):
        made = 0

        def failing(tensor, data, grad):
            nonlocal made
            put = setter(tensor, data, grad)
            if grad is not None or data.shape == tensor.shape:  # the way back never fails
                return put
            made += 1
            number = made

            def maybe() -> None:
                if number == fail_at:
                    raise RuntimeError("injected")
                put()

            return maybe

        monkeypatch.setattr(apply_module, "_setter", failing)
        try:
            apply_(model, change, optimizers=[opt]).undo()
        except PlanError as error:
            assert "injected" in str(error)  # noqa: PT017
            faults += 1
        assert same(everything(model, opt), before)
        if made < fail_at:
            break
    assert faults >= 10


def test_undo_twice_is_refused() -> None:
    model, x = problem("chain")
    applied = resize(model, [Grow("0", 1)], example=x)
    applied.undo()
    with pytest.raises(PlanError, match="already undone"):
        applied.undo()


def test_undo_after_training_is_refused() -> None:
    model, x = problem("chain")
    opt = torch.optim.SGD(model.parameters(), lr=1e-2)
    applied = resize(model, [Grow("0", 1)], example=x, optimizers=[opt])
    step(model, opt, x, 1)
    with pytest.raises(PlanError, match="changed since this resize"):
        applied.undo()


def test_resizes_are_undone_newest_first() -> None:
    model, x = problem("chain")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    first = resize(model, [Grow("0", 1)], example=x)
    second = resize(model, [Grow("2", 1)], example=x)
    second.undo()
    first.undo()
    assert same(before, model.state_dict())


def test_tied_weights_are_cut_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)
            self.d = nn.Linear(5, 5)
            self.d.weight = self.b.weight

        def forward(self, x):
            return self.c(self.d(self.b(self.a(x)).relu()).relu())

    model, x = Tied(), torch.randn(4, 3)
    names = {w.name for w in widths(trace(model, x)).values() if not w.fixed}
    resize(model, [Grow(next(iter(names)), 2)], example=x)
    assert model.d.weight is model.b.weight
    assert model(x).shape == (4, 2)


def test_widths_found_once_serve_many_resizes() -> None:
    model, x = problem("residual")
    found = widths(trace(model, x))
    for units in range(1, 4):
        change = plan(model, found, [Grow("first", units), Grow("side", units)])
        apply_(model, change, example=x)
        found = resized(found, change)
    assert found["first"].size == 6 + 1 + 2 + 3 == model.first.out_channels
