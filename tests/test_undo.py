"""All or nothing: an exception at any line, and an undo in any order, leave a model, its optimizers
and averages whole.
"""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.optim.swa_utils import AveragedModel

import morphogen
import morphogen as mg
from morphogen import (
    AddBlock,
    DropBlock,
    Grow,
    PlanError,
    Shrink,
    apply_,
    plan,
    resize,
    trace,
    widths,
)
from morphogen.edit.adapt import adapt
from morphogen.edit.dag import add_stage, grow_nodes, prune_weights
from morphogen.layers.dag.cascade import Cascade
from problems import problem


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.BatchNorm1d(4), nn.Linear(4, 3), nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.b(self.a(self.norm(x)).relu())


class Run:
    """A model in the middle of a run, with everything that stands beside it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        learned = mg.LearnedDepth(lambda i: nn.Linear(4, 4), w=1.5)
        self.model = nn.Sequential(
            nn.Linear(4, 4), nn.Sequential(Block()), learned, nn.Linear(4, 2)
        ).double()
        self.model.train()
        self.model[1][0].norm.eval()
        self.x = torch.randn(5, 4, dtype=torch.float64)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        self.scheduler = StepLR(self.optimizer, 1, 0.5)
        self.ema = AveragedModel(self.model)
        self.model(self.x).square().mean().backward()
        self.optimizer.step()
        self.generator = torch.Generator().manual_seed(1)

    def everything(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "draws": self.generator.get_state(),
            "torch's draws": torch.get_rng_state(),
        }
        for which, model in (("model", self.model), ("ema", self.ema)):
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                found[f"{which} {name}"] = tensor.detach().clone()
                found[f"{which} {name} is"] = id(tensor)
                found[f"{which} {name} grad"] = None if tensor.grad is None else tensor.grad.clone()
            for name, module in model.named_modules():
                sizes = {
                    key: value
                    for key, value in vars(module).items()
                    if isinstance(value, (int, bool))
                }
                found[f"{which} {name} attributes"] = (id(module), sizes, list(module._modules))
        for number, (parameter, state) in enumerate(self.optimizer.state.items()):
            found[f"state {number}"] = id(parameter)
            found |= {f"state {number} {key}": value.clone() for key, value in state.items()}
        found["groups"] = [
            [id(p) for p in group["params"]] for group in self.optimizer.param_groups
        ]
        found["scheduler"] = (self.scheduler.state_dict(), self.optimizer.param_groups[0]["lr"])
        return found


def same(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What differs."""
    odd = sorted(one.keys() ^ other.keys())
    for name in one.keys() & other.keys():
        a, b = one[name], other[name]
        tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        if not (a.shape == b.shape and torch.equal(a, b) if tensors else a == b):
            odd.append(name)
    return odd


def interrupted(call: Callable[[], Any], names: set[str], at: int) -> bool:
    """Run `call`, with Ctrl-C at the line event number `at` of the package's functions called
    `names`; whether it came.
    """
    root, seen, came = str(Path(morphogen.__file__).parent), 0, False

    def local(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen, came
        if event == "line" and not came:
            seen += 1
            if seen > at:
                came = True
                raise KeyboardInterrupt
        return local

    def tracer(frame: FrameType, event: str, _: Any) -> Any:
        inside = frame.f_code.co_filename.startswith(root) and frame.f_code.co_qualname in names
        return local if inside else None

    old = sys.gettrace()
    sys.settrace(tracer)
    try:
        call()
    except KeyboardInterrupt:
        assert came
    finally:
        sys.settrace(old)
    return came


CORE = {
    "commit",
    "_change",
    "_write",
    "_move_modules",
    "change_blocks",
    "_add_block",
    "_drop_block",
    "recount",
    "keep_groups",
    "refresh_sizes",
}
EDITS = {
    "widths": ([Grow("1.0.a", 2), Shrink("1.0.a", [1])], CORE | {"Put.__call__"}, 1),
    "add": ([AddBlock("2")], CORE | {"attach", "_join"}, 1),
    "drop": ([DropBlock("2")], CORE | {"detach", "_forget"}, 1),
    # it is traced each time
    "add to a plain stack": ([AddBlock("1")], CORE | {"_close", "_is_identity"}, 41),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_interruption_at_every_line_changes_nothing(name: str) -> None:
    run = Run()
    edits, functions, stride = EDITS[name]
    change = plan(run.model, widths_of(run), edits)
    before = run.everything()
    # what makes a copy of a block the identity is found on it
    example = run.x if "plain" in name else None

    def call() -> None:
        beside = {
            "optimizers": [run.optimizer],
            "schedulers": [run.scheduler],
            "ema": [run.ema],
            "generator": run.generator,
        }
        apply_(run.model, change, example=example, **beside)

    at = 0
    while interrupted(call, functions, at):
        assert same(before, run.everything()) == [], f"line event {at}"
        at += stride
    assert at > 40
    assert same(before, run.everything()) != []
    assert mg.doctor(run.model, optimizers=[run.optimizer]) == []


def test_an_interruption_in_the_probe_changes_nothing() -> None:
    run = Run()
    before, calls, at = run.everything(), 0, -1
    forward = run.model[3].forward

    def stop(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += not x.is_meta and type(x) is torch.Tensor
        if calls == at:
            raise KeyboardInterrupt
        return forward(x)

    run.model[3].forward = stop
    change = plan(run.model, widths_of(run), [Grow("0", 2), AddBlock("1")])
    done, at = False, 0
    while not done:
        calls, at = 0, at + 1
        try:
            apply_(
                run.model,
                change,
                optimizers=[run.optimizer],
                ema=[run.ema],
                example=run.x,
                generator=run.generator,
            )
            done = True
        except KeyboardInterrupt:
            assert same(before, run.everything()) == []
    assert at > 4  # before, twice after each new block in both modes, after


@pytest.mark.parametrize("name", ["widths", "add", "drop"])
def test_an_interrupted_undo_is_done_or_not_begun(name: str) -> None:
    functions = {
        "Applied.undo",
        "rollback",
        "rollback.<locals>.rest",
        "surely",
        "Put.__call__",
        "PutState.__call__",
    }
    functions |= {"keep_groups.<locals>.put", "_putter.<locals>.put"}
    at, whole = 0, 0
    while True:
        run = Run()
        before = run.everything()
        beside = {"optimizers": [run.optimizer], "ema": [run.ema], "generator": run.generator}
        change = EDITS[name][0]
        applied = apply_(
            run.model,
            plan(run.model, widths_of(run), change),
            example=run.x if "plain" in name else None,
            **beside,
        )
        drawn = run.generator.get_state(), torch.get_rng_state()
        before["draws"], before["torch's draws"] = drawn
        between = run.everything()
        came = interrupted(applied.undo, functions, at)
        left = same(before, run.everything())
        if left:
            assert same(between, run.everything()) == [], f"line event {at}"
            applied.undo()
            assert same(before, run.everything()) == []
        whole += not left
        if not came:
            break
        at += 5 if at > 20 else 1
    assert whole > 10


_WIDTHS: dict[str, Any] = {}


def widths_of(run: Run) -> dict[str, Any]:
    """Every run has the same."""
    _WIDTHS.update({} if _WIDTHS else widths(trace(run.model, run.x)))
    return _WIDTHS


def test_resizes_of_a_dag_and_a_cascade_are_taken_back_by_an_interruption() -> None:
    model, x = problem("dagnet")
    cascade, inputs = Cascade(3, 2, 2).double(), torch.randn(4, 3, dtype=torch.float64)
    functions = {
        "_change",
        "_write",
        "_move_modules",
        "commit",
        "Put.__call__",
        "Dag.rearrange",
        "place",
        "freeze",
        "_forget",
        "_join",
    }
    for whole, data, edit in (
        (model, x, lambda o: grow_nodes(model.dag, 2, optimizers=[o])),
        (model, x, lambda o: prune_weights(model.dag, 0.5, optimizers=[o])),
        (cascade, inputs, lambda o: add_stage(cascade, 2, optimizers=[o])),
    ):
        optimizer = torch.optim.Adam(whole.parameters())
        whole(data).square().mean().backward()
        optimizer.step()
        before, expected, at = (
            {name: tensor.clone() for name, tensor in whole.state_dict().items()},
            whole(data),
            0,
        )
        learned = {name: p.requires_grad for name, p in whole.named_parameters()}
        while interrupted(lambda: edit(optimizer), functions, at):
            assert whole.state_dict().keys() == before.keys()
            assert {
                name for name, t in whole.state_dict().items() if not torch.equal(t, before[name])
            } == set()
            assert learned == {name: p.requires_grad for name, p in whole.named_parameters()}
            assert torch.equal(whole(data), expected)
            assert mg.doctor(whole, optimizers=[optimizer]) == []
            at += 1
        assert at > 10


def test_an_earlier_resize_cannot_be_undone_before_a_later_one() -> None:
    run = Run()
    before = run.everything()
    pairs = [
        ([Grow("0", 2)], [Grow("0", 1)]),
        ([Grow("1.0.a", 2)], [AddBlock("2")]),
        ([DropBlock("2")], [Grow("1.0.a", 1)]),
    ]
    for first, second in pairs:
        a = resize(
            run.model,
            first,
            example=run.x,
            optimizers=[run.optimizer],
            ema=[run.ema],
            generator=run.generator,
        )
        b = resize(
            run.model,
            second,
            example=run.x,
            optimizers=[run.optimizer],
            ema=[run.ema],
            generator=run.generator,
        )
        between = run.everything()
        with pytest.raises(PlanError, match="later resizes first"):
            a.undo()
        assert same(between, run.everything()) == []
        b.undo()
        a.undo()
        before |= {"draws": run.generator.get_state(), "torch's draws": torch.get_rng_state()}
        assert same(before, run.everything()) == []


def _assign(model: nn.Module) -> None:
    model[0].weight.data = model[0].weight.data + 1


def _write_through_data(model: nn.Module) -> None:
    model[0].weight.data.add_(1)


def _swap(model: nn.Module) -> None:
    model[0].weight.data = model[0].weight.data.flip(0)


def _assign_elsewhere(model: nn.Module) -> None:
    model[3].bias.data = model[3].bias.data + 1


def _replace(model: nn.Module) -> None:
    model[3].bias = nn.Parameter(model[3].bias.detach() + 1)


def _buffer(model: nn.Module) -> None:
    model[1][0].norm.num_batches_tracked += 1


def _statistics(model: nn.Module) -> None:
    norm = model[1][0].norm
    x = torch.randn(5, len(norm.running_mean), dtype=torch.float64)
    nn.functional.batch_norm(x, norm.running_mean, norm.running_var, training=True)


@pytest.mark.parametrize(
    "write",
    [_assign, _write_through_data, _swap, _assign_elsewhere, _replace, _buffer, _statistics],
)
def test_undo_discards_nothing_that_was_written_since(write: Callable[[nn.Module], None]) -> None:
    run = Run()
    applied = resize(
        run.model, [Grow("0", 2)], example=run.x, optimizers=[run.optimizer], ema=[run.ema]
    )
    write(run.model)
    after = run.everything()
    with pytest.raises(PlanError, match="the model was changed since this resize"):
        applied.undo()
    assert same(after, run.everything()) == []


def test_undo_discards_no_state_that_was_loaded_nor_an_average_that_went_on() -> None:
    run = Run()
    applied = resize(
        run.model, [Grow("0", 2)], example=run.x, optimizers=[run.optimizer], ema=[run.ema]
    )
    run.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    with pytest.raises(PlanError, match="an optimizer's state"):
        applied.undo()
    run = Run()
    applied = resize(run.model, [Grow("0", 2)], example=run.x, ema=[run.ema])
    run.ema.update_parameters(run.model)
    with pytest.raises(PlanError, match="an average of the model"):
        applied.undo()


def test_a_look_at_the_model_does_not_stand_against_an_undo() -> None:
    run = Run()
    before = run.everything()
    applied = resize(run.model, [Grow("0", 2)], example=run.x, optimizers=[run.optimizer])
    trace(run.model, run.x)
    resize(run.model, [Grow("1.0.a", 2)], example=run.x, optimizers=[run.optimizer]).undo()
    with pytest.raises(PlanError):
        resize(run.model, [Grow("0", 0)], example=run.x)
    applied.undo()
    before["torch's draws"] = torch.get_rng_state()
    assert same(before, run.everything()) == []


def test_adapt_makes_all_edits_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), mg.LearnedDepth(lambda i: nn.Linear(5, 5), w=1.5))
    optimizer = torch.optim.Adam(model.parameters())
    model[1].w.data.fill_(4.5)
    before, blocks, made = {n: id(p) for n, p in model.named_parameters()}, len(model[1].blocks), 0
    original = sys.modules["morphogen.edit.adapt"].apply_

    def stop(*args: Any, **kwargs: Any) -> Any:
        nonlocal made
        made += 1
        if made == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(sys.modules["morphogen.edit.adapt"], "apply_", stop)
    with pytest.raises(KeyboardInterrupt):
        adapt(model, optimizers=[optimizer])
    assert (len(model[1].blocks), {n: id(p) for n, p in model.named_parameters()}) == (
        blocks,
        before,
    )
    assert mg.doctor(model, optimizers=[optimizer]) == []
