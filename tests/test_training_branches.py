"""What only training runs is seen by a resize, and a look at a model leaves nothing behind."""

import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import morphogen as mg
from morphogen import Grow, PlanError, Shrink, resize, trace, widths
from morphogen.edit.preserve_state import preserve_state
from morphogen.tracing.modes import alike, eval_mode
from problems import problem


class Auxiliary(nn.Module):
    """As in GoogLeNet and Inception: a second head that only training runs, on two widths side by
    side.
    """

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out, self.other = (
            nn.Linear(4, 6),
            nn.Linear(4, 5),
            nn.Linear(6, 3),
            nn.Linear(5, 3),
        )
        self.aux = nn.Sequential(nn.Linear(11, 7), nn.ReLU(), nn.Linear(7, 3))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        a, b = self.a(x).relu(), self.b(x).relu()
        y = self.out(a) + self.other(b)
        return (y, self.aux(torch.cat([a, b], 1))) if self.training else y


class Layers(nn.Module):
    """Layers that are left out at random: a trace of training mode stops at the draw."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.first, self.last, self.reads = nn.Linear(4, 4), nn.Linear(4, 2), reads
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            if not self.training or torch.rand(()) >= 0.5:
                x = x + F.dropout(block(x), 0.1, self.training)
        if self.training and self.reads:
            x = x + F.linear(x, self.blocks[0][0].weight[:4])
        return self.last(x)


class Regularised(nn.Module):
    """A parameter that only the loss of training reads, and a running mean that only training
    moves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)
        self.centre = nn.Parameter(torch.randn(6))
        self.register_buffer("mean", torch.zeros(6))
        self.calls, self.kept = 0, []

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h = self.norm(self.a(x)).relu()
        y = self.b(F.dropout(h, 0.3, self.training))
        if not self.training:
            return y
        self.calls += 1
        self.kept.append(h)
        self.mean.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)
        return y, ((h - self.centre) * (1 + self.mean)).square().mean()


class Targets(nn.Module):
    """A model that wants targets in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        y = self.b(self.a(x).relu())
        if not self.training:
            return y
        if target is None:
            raise ValueError("no targets")
        return F.cross_entropy(y, target)


def inputs() -> Tensor:
    return torch.randn(3, 4, dtype=torch.float64)


def test_a_head_that_only_training_runs_is_cut_with_what_it_reads() -> None:
    model, x = Auxiliary().double(), inputs()
    found = widths(trace(model, x))
    assert {slot.tensor for slot in found["a"].slots} == {
        "a.weight",
        "a.bias",
        "out.weight",
        "aux.0.weight",
    }
    assert found["aux.0"].fixed is None
    expected = model.train()(x)
    applied = resize(model, [Grow("a", 2), Grow("aux.0", 3)], example=x)
    assert applied.receipt.keeps
    for before, after in zip(expected, model(x), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
    sum(part.sum() for part in model(x)).backward()


def test_one_width_shrinks_as_another_grows_and_the_training_head_still_reads_its_units() -> None:
    model, x = Auxiliary().double(), inputs()
    with torch.no_grad():  # units that nothing reads: both heads keep what they say
        model.other.weight[:, 0] = 0
        model.aux[0].weight[:, 6] = 0
    expected = model.train()(x)
    resize(model, [Grow("a", 1), Shrink("b", [0])], example=x)
    assert model.aux[0].weight.shape == (7, 11)
    for before, after in zip(expected, model.train()(x), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=1e-12)


def test_what_only_a_loss_of_training_reads_is_cut_too() -> None:
    model, x = Regularised().double(), inputs()
    resize(model, [Shrink("a", [1]), Grow("a", 3)], example=x)
    assert model.centre.shape == model.mean.shape == (8,)
    model.train()(x)[1].backward()


@pytest.mark.parametrize(
    "make", [Auxiliary, Regularised, lambda: Layers(True), lambda: Layers(False)]
)
def test_a_trace_leaves_statistics_attributes_modes_and_random_states_alone(make) -> None:
    model, x = make().double(), inputs()
    model.train()
    next(model.children()).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    versions = {name: tensor._version for name, tensor in model.state_dict(keep_vars=True).items()}
    own = {name: value for name, value in vars(model).items() if isinstance(value, (int, list))}
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    trace(model, x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    if not isinstance(model, Regularised):
        assert versions == {
            name: tensor._version for name, tensor in model.state_dict(keep_vars=True).items()
        }
    assert own == {
        name: value for name, value in vars(model).items() if isinstance(value, (int, list))
    }
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


def test_layers_left_out_at_random_are_no_reason_to_refuse_but_another_reader_is() -> None:
    x = inputs()
    assert trace(Layers(False).double(), x).unseen == ""
    model = Layers(True).double()
    with pytest.raises(PlanError, match=r"it alone runs 'slice' of 'blocks\.0\.0\.weight'"):
        resize(model, [Grow("blocks.0.0", 1)], example=x)
    assert model.blocks[0][0].weight.shape == (8, 4)


def test_a_model_that_does_not_train_on_the_example_is_refused_and_says_what_to_give() -> None:
    model, x = Targets().double(), inputs()
    with pytest.raises(
        PlanError,
        match=r"does not run in training mode on this example \(no targets\).* give an example",
    ):
        resize(model, [Grow("a", 1)], example=x)
    resize(model, [Grow("a", 1)], example=(x, torch.tensor([0, 1, 1])))
    assert model.a.out_features == 5


def test_a_training_branch_that_has_no_rule_pins_what_it_reads_alone() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            h = self.a(x).relu()
            y = self.c(self.b(h).relu())
            return (y, torch.linalg.svdvals(h)) if self.training else y

    found = widths(trace(Odd(), torch.randn(3, 4)))
    assert found["a"].fixed.startswith("only training reads it")
    assert found["b"].fixed is None


def test_models_that_run_alike_are_traced_once() -> None:
    model, x = problem("residual")
    assert alike(model, (x,))
    assert trace(model, x).training == ()
    assert not alike(Auxiliary(), (torch.randn(3, 4),))


def test_what_a_model_does_beside_its_flag_when_the_mode_changes_is_done_both_ways() -> None:
    class Merging(nn.Linear):
        merged = False

        def train(self, mode: bool = True) -> nn.Module:
            self.merged = not mode
            return super().train(mode)

    model = nn.Sequential(Merging(2, 2), nn.Dropout())
    model[1].eval()
    with eval_mode(model):
        assert model[0].merged
    assert not model[0].merged
    assert (model[0].training, model[1].training) == (True, False)


def test_an_interruption_while_the_model_runs_leaves_every_module_in_its_mode() -> None:
    class Interrupted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    model = nn.Sequential(nn.Dropout(), Interrupted(2, 2), nn.BatchNorm1d(2))
    model[2].eval()
    x = torch.randn(2, 2)
    state = torch.get_rng_state()
    for call in (lambda: trace(model, x), lambda: mg.resize(model, [], example=x)):
        with pytest.raises(KeyboardInterrupt):
            call()
        assert [module.training for module in model] == [True, True, False]
        assert torch.equal(torch.get_rng_state(), state)


def test_a_look_in_training_mode_leaves_the_statistics_of_norms_alone() -> None:
    """Batch norm updates them without raising their version."""
    model, x = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, momentum=None)), torch.randn(5, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with preserve_state(model):
        model.train()(x)
        F.batch_norm(model[0](x), model[1].running_mean, model[1].running_var, training=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_threads_resize_models_of_their_own() -> None:
    faults: list[str] = []

    def work() -> None:
        model, x = problem("chain")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            try:
                resize(model, [Grow("0", 2)], example=x, optimizers=[optimizer])
            except Exception as error:
                faults.append(str(error))
            if not all(module.training for module in model.modules()):
                faults.append("left in evaluation mode")
        faults.extend(mg.doctor(model, optimizers=[optimizer]))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
