"""A checkpoint knows the model that it belongs to, and holds what it is given, type for type."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import morphogen as mg
from morphogen import AddBlock, DropBlock, Grow, LearnedDepth, PlanError, RunError, Shrink
from morphogen.edit.dag import add_stage
from morphogen.edit.ledger import ledger_to_json
from morphogen.formats.checkpoint import load_tensors, save_tensors
from morphogen.layers.dag.cascade import Cascade
from morphogen.transforms.link import link
from problems import PROBLEMS, problem
from published import Lookahead
from test_resize import OPTIMIZERS, optimizer_of, step
from test_state import tensors


class Acting(nn.Module):
    """An activation that a user wrote: a slope, a function, a number in a private place."""

    def __init__(
        self, slope: float = 0.1, act: Callable[[Tensor], Tensor] = F.relu, power: int = 1
    ) -> None:
        super().__init__()
        self.slope, self.act, self._power = slope, act, power

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) ** self._power + self.slope * x

    def extra_repr(self) -> str:
        return f"power={self._power}"


def net(
    width: int = 6,
    act: Callable[[], nn.Module] = nn.ReLU,
    blocks: int = 2,
    pooled: tuple[int, int] = (2, 2),
    eps: float = 1e-5,
) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width, eps=eps),
        act(),
        nn.MaxPool2d(*pooled),
        nn.Flatten(),
        nn.LazyLinear(5),
        LearnedDepth(lambda _: nn.Linear(5, 5), w=blocks - 0.5),
        nn.Linear(5, 3),
    )


def built(
    sgd: bool = True, parts: int = 1, fewer: int = 0, **how: Any
) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = net(**how)
    model(torch.zeros(2, 1, 8, 8))
    every = list(model.parameters())[fewer:]
    groups = (
        [{"params": every}] if parts == 1 else [{"params": every[::2]}, {"params": every[1::2]}]
    )
    return model, torch.optim.SGD(groups, lr=0.1, momentum=0.9) if sgd else torch.optim.AdamW(
        groups, lr=0.1
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose widths and blocks changed."""
    model, optimizer = built()
    x = torch.randn(2, 1, 8, 8)
    for edit in (
        Grow("0", 2),
        AddBlock("6"),
        Grow("5", 1),
        DropBlock("6"),
        DropBlock("6"),
        AddBlock("6"),
        Shrink("0", [1]),
    ):
        step(model, optimizer, x, 1)
        mg.resize(model, [edit], optimizers=[optimizer], example=x)
    return mg.save(model, tmp_path_factory.mktemp("base") / "run", optimizers=[optimizer])


def test_the_base_model_itself_is_taken_again_and_again(saved: Path, tmp_path: Path) -> None:
    model, (optimizer,) = mg.load(saved, built)
    again, _ = mg.load(mg.save(model, tmp_path / "again", optimizers=[optimizer]), built)
    mg.resize(again, [Grow("0", 1)], example=torch.zeros(2, 1, 8, 8))
    mg.resize(again, [AddBlock("6")], example=torch.zeros(2, 1, 8, 8))
    third, _ = mg.load(mg.save(copy.deepcopy(again), tmp_path / "third"), built)
    assert third[0].out_channels == 8
    assert len(third[6].blocks) == 3


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"width": 8},
            r"'0.weight' began as \[6, 1, 3, 3\], build\(\) makes it \[8, 1, 3, 3\]; '0.bias' "
            r".*; and \d+ more",
        ),
        ({"blocks": 1}, "'6.blocks' began with 2 blocks, build\\(\\) makes 1"),
        ({"act": nn.GELU}, "'2' is ReLU, build\\(\\) makes GELU. Let build\\(\\) make the model"),
        ({"act": lambda: nn.LeakyReLU(0.3)}, "'2' is ReLU, build\\(\\) makes LeakyReLU"),
        (
            {"pooled": (2, 1)},
            r"'3' \(MaxPool2d\) has stride=2, build\(\) makes it 1|'5.weight' began as",
        ),
        ({"eps": 1e-3}, r"'1' \(BatchNorm2d\) has eps=1e-05, build\(\) makes it 0.001\."),
        ({"sgd": False}, "the optimizer is SGD, build\\(\\) makes AdamW"),
        (
            {"fewer": 1},
            "the optimizer holds '0.weight' in group 0, build\\(\\) puts it in no group",
        ),
    ],
)
def test_another_base_is_refused_with_what_differs(
    saved: Path, how: dict[str, Any], message: str
) -> None:
    with pytest.raises(RunError, match=f"belongs to another base model: .*({message})"):
        mg.load(saved, lambda: built(**how))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            lambda: nn.LeakyReLU(0.1),
            lambda: nn.LeakyReLU(0.3),
            r"'1' \(LeakyReLU\) has negative_slope=0.1, build\(\) makes it 0.3",
        ),
        (lambda: nn.GELU(), lambda: nn.GELU("tanh"), "approximate='none'"),
        (lambda: nn.Softplus(1.0), lambda: nn.Softplus(2.0), "beta=1.0"),
        (lambda: nn.Dropout(0.1), lambda: nn.Dropout(0.5), "p=0.1"),
        (Acting, lambda: Acting(0.2), "slope=0.1, build\\(\\) makes it 0.2"),
        (Acting, lambda: Acting(act=F.gelu), "act=relu, build\\(\\) makes it gelu"),
        (Acting, lambda: Acting(power=2), "extra_repr=power=1, build\\(\\) makes it power=2"),
        (lambda: nn.LayerNorm(6), lambda: nn.LayerNorm(6, eps=1e-3), "eps=1e-05"),
        (
            lambda: nn.Linear(6, 6),
            lambda: nn.Bilinear(6, 6, 6),
            "'1' is Linear, build\\(\\) makes Bilinear",
        ),
    ],
)
def test_settings_of_modules_are_compared(
    first: Any, second: Any, message: str, tmp_path: Path
) -> None:
    def build(act: Any) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), act(), nn.Linear(6, 2))

    path = mg.save(build(first), tmp_path / "run")
    mg.load(path, lambda: build(first))
    with pytest.raises(RunError, match=message):
        mg.load(path, lambda: build(second))


def test_an_encoder_whose_activation_is_a_function_is_told_apart(tmp_path: Path) -> None:
    def build(activation: str) -> nn.Module:
        return nn.TransformerEncoderLayer(8, 2, 16, activation=activation, batch_first=True)

    path = mg.save(build("relu"), tmp_path / "run")
    mg.load(path, lambda: build("relu"))
    with pytest.raises(RunError, match="activation=relu, build\\(\\) makes it gelu"):
        mg.load(path, lambda: build("gelu"))


def test_a_counter_can_be_passed_over(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 6), Acting())
    model[1].calls = 7

    def build() -> nn.Module:
        fresh = nn.Sequential(nn.Linear(4, 6), Acting())
        fresh[1].calls = 0
        return fresh

    path = mg.save(model, tmp_path / "run")
    with pytest.raises(RunError, match=r"'1' \(Acting\) has calls=7, build\(\) makes it 0"):
        mg.load(path, build)
    mg.load(path, build, ignore=["calls"])


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_and_edit_is_taken_by_its_own_base(name: str, tmp_path: Path) -> None:
    model, x = problem(name)
    for width in PROBLEMS[name][2]:
        mg.resize(model, [Grow(width, 2)], example=x)
        mg.resize(model, [Shrink(width, [0])], example=x)
    loaded, _ = mg.load(mg.save(model, tmp_path / "run"), lambda: problem(name)[0])
    assert torch.equal(loaded.eval()(x), model.eval()(x))
    json.dumps(mg.structure(loaded))


def test_a_rewrite_makes_another_base(tmp_path: Path) -> None:
    x = torch.randn(3, 4)

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

    def linked() -> nn.Module:
        base = build()
        link(base, x)
        return base

    model = build()
    mg.resize(model, [Grow("0", 2)], example=x)
    link(model, x)
    mg.resize(model, [Grow("0", 1)], example=x)
    path = mg.save(model, tmp_path / "run")
    loaded, _ = mg.load(path, linked)
    assert torch.equal(loaded(x), model(x))
    with pytest.raises(RunError, match="'1' is LinkedReLU|'1' is LKReLU|'1' is Linked"):
        mg.load(path, build)


def test_stages_that_were_begun_are_no_part_of_the_base(tmp_path: Path) -> None:
    def build() -> Cascade:
        torch.manual_seed(0)
        return Cascade(4, 3, 2)

    model, x = build(), torch.randn(5, 4)
    add_stage(model, 3)
    path = mg.save(model, tmp_path / "run")
    mg.load(path, build)
    with pytest.raises(RunError, match="another base model"):
        mg.load(path, lambda: Cascade(4, 4, 2))
    assert model(x).shape == (5, 2)


class Tied(nn.Module):
    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.table, self.hidden, self.head = (
            nn.Embedding(11, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 11, bias=False),
        )
        if tied:
            self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.table(x)).relu())


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path) -> None:
    def build(tied: bool = True) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = Tied(tied)
        return model, torch.optim.AdamW(model.parameters())

    (model, optimizer), x = build(), torch.randint(11, (3, 4))
    step(model, optimizer, x)
    path = mg.save(model, tmp_path / "run", optimizers=[optimizer])
    loaded, (other,) = mg.load(path, build)
    assert loaded.head.weight is loaded.table.weight
    for _ in range(2):
        assert torch.equal(step(model, optimizer, x, 1), step(loaded, other, x, 1))
    assert (
        path.stat().st_size
        < mg.save(Tied(False), tmp_path / "apart").stat().st_size + 4 * 2 * (88 + 72) + 5000
    )
    with pytest.raises(
        RunError, match="tied weights are .*'head.weight', 'table.weight'.*, build\\(\\) ties none"
    ):
        mg.load(path, lambda: build(False))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_models_of_every_precision_are_saved(dtype: torch.dtype, tmp_path: Path) -> None:
    model = nn.Linear(4, 3).to(dtype)
    loaded, _ = mg.load(mg.save(model, tmp_path / "run"), lambda: nn.Linear(4, 3).to(dtype))
    assert loaded.weight.dtype == dtype
    assert torch.equal(loaded.weight, model.weight)


def test_bfloat16_trains_on_bit_for_bit(tmp_path: Path) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = problem("chain", torch.bfloat16)[0]
        return model, torch.optim.AdamW(model.parameters())

    (model, optimizer), x = build(), torch.randn(5, 4).bfloat16()
    mg.resize(model, [Grow("0", 3)], optimizers=[optimizer], example=x)
    step(model, optimizer, x)
    loaded, (other,) = mg.load(mg.save(model, tmp_path / "run", optimizers=[optimizer]), build)
    assert torch.equal(step(model, optimizer, x, 1), step(loaded, other, x, 1))
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True)
    )


def test_a_tensor_of_any_type_comes_back_or_is_refused(tmp_path: Path) -> None:
    types = {kind for name in dir(torch) if isinstance(kind := getattr(torch, name), torch.dtype)}
    held = set()
    for number, dtype in enumerate(sorted(types, key=str)):
        try:
            tensor = torch.arange(3).to(dtype)
        except (NotImplementedError, RuntimeError):
            continue  # torch makes no such tensor
        path = tmp_path / str(number)
        try:
            save_tensors(path, {"a": tensor, "none": tensor[:0], "one": tensor[1]})
        except RunError as error:
            assert str(dtype) in str(error)  # noqa: PT017
            assert not path.exists()
            continue
        back, _ = load_tensors(path)
        assert all(back[name].dtype == dtype for name in back)
        assert back["one"].shape == ()
        assert torch.equal(back["a"].view(torch.uint8), tensor.view(torch.uint8))
        held.add(dtype)
    assert held >= {
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.complex64,
        torch.bool,
        torch.float64,
    }


def test_views_and_strange_tensors(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    given = {
        "whole": whole,
        "row": whole[1],
        "turned": whole.T,
        "same": whole,
        "flat": whole.view(-1),
        "conjugate": torch.tensor([1 + 2j]).conj(),
    }
    save_tensors(tmp_path / "file", given)
    back, _ = load_tensors(tmp_path / "file")
    assert all(torch.equal(back[name], tensor) for name, tensor in given.items())
    for tensor, kind in (
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.empty(2, device="meta"), "without data"),
    ):
        with pytest.raises(RunError, match=f"cannot hold 'a', which is {kind}"):
            save_tensors(tmp_path / "file", {"a": tensor})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_step_is_bit_identical_under_every_optimizer(name: str, tmp_path: Path) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = problem("chain")[0]
        return model, optimizer_of(name, model)

    (model, optimizer), x = build(), torch.randn(5, 4, dtype=torch.float64)
    step(model, optimizer, x)
    mg.resize(model, [Grow("0", 3), Shrink("2", [1])], optimizers=[optimizer], example=x)
    model.train()
    step(model, optimizer, x)
    loaded, (other,) = mg.load(mg.save(model, tmp_path / "run", optimizers=[optimizer]), build)
    assert {k: (v.dtype, v.shape) for k, v in tensors(other).items()} == {
        k: (v.dtype, v.shape) for k, v in tensors(optimizer).items()
    }
    for _ in range(2):
        assert torch.equal(step(model, optimizer, x, 1), step(loaded, other, x, 1))


def test_tensors_in_groups_stay_tensors(tmp_path: Path) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        lr = torch.tensor(0.1, dtype=torch.float64)
        return model, torch.optim.Adam(
            model.parameters(), lr=lr, betas=(0.8, 0.9), capturable=False, foreach=False
        )

    model, optimizer = build()
    group = optimizer.param_groups[0]
    group |= {
        "mine": [torch.tensor([1, 2]), (3, None), {"a": torch.bfloat16, 5: [torch.tensor(True)]}],
        "text": "t",
    }
    group["lr"].fill_(0.3)
    step(model, optimizer, torch.randn(2, 4))
    path = mg.save(model, tmp_path / "run", optimizers=[optimizer])
    _, (other,) = mg.load(path, build)
    found = other.param_groups[0]
    assert isinstance(found["lr"], Tensor)
    assert found["lr"].dtype == torch.float64
    assert found["lr"] == 0.3
    assert found["betas"] == (0.8, 0.9)
    numbers, pair, others = found["mine"]
    assert torch.equal(numbers, torch.tensor([1, 2]))
    assert pair == (3, None)
    assert others["a"] is torch.bfloat16
    assert torch.equal(others[5][0], torch.tensor(True))
    assert found["text"] == "t"

    def plain() -> tuple[nn.Module, torch.optim.Optimizer]:
        fresh = nn.Linear(4, 3)
        return fresh, torch.optim.Adam(fresh.parameters())

    # what was saved counts, also where build() begins with a number
    _, (third,) = mg.load(path, plain)
    assert isinstance(third.param_groups[0]["lr"], Tensor)
    group["mine"] = object()
    with pytest.raises(
        RunError, match="parameter group's 'mine' is a object, which a file cannot hold"
    ):
        mg.save(model, tmp_path / "other", optimizers=[optimizer])


def test_a_fused_optimizer_goes_on_with_its_steps(tmp_path: Path) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = problem("chain")[0]
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True, amsgrad=True)

    (model, optimizer), x = build(), torch.randn(5, 4, dtype=torch.float64)
    step(model, optimizer, x)
    mg.resize(model, [Grow("0", 3)], optimizers=[optimizer], example=x)
    model.train()
    step(model, optimizer, x)
    loaded, (other,) = mg.load(mg.save(model, tmp_path / "run", optimizers=[optimizer]), build)
    assert other.param_groups[0]["fused"] is True
    for _ in range(2):
        assert torch.equal(step(model, optimizer, x, 1), step(loaded, other, x, 1))


def test_a_schedule_that_holds_the_rate_goes_on(tmp_path: Path) -> None:
    model = nn.Linear(4, 3)
    path = mg.save(
        model,
        tmp_path / "run",
        optimizers=[torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1))],
    )

    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        fresh = nn.Linear(4, 3)
        held.append(torch.tensor(0.7))
        return fresh, torch.optim.SGD(fresh.parameters(), lr=held[-1])

    held: list[Tensor] = []
    _, (optimizer,) = mg.load(path, build)
    assert optimizer.param_groups[0]["lr"] is held[0]
    assert held[0] == torch.tensor(0.1)


def test_lists_of_tensors_in_the_state_are_saved(tmp_path: Path) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        return model, torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    (model, optimizer), x = build(), torch.randn(5, 4)

    def run(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        return closure().item()

    run(model, optimizer)
    loaded, (other,) = mg.load(mg.save(model, tmp_path / "run", optimizers=[optimizer]), build)
    assert isinstance(other.state[loaded.weight]["old_dirs"], list)
    assert [run(loaded, other) for _ in range(3)] == [run(model, optimizer) for _ in range(3)]


def test_state_that_would_be_lost_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(4, 3)
    outer = Lookahead(torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    with pytest.raises(RunError, match="Lookahead wraps SGD, whose state would be lost"):
        mg.save(model, tmp_path / "run", optimizers=[outer])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.state["all"] = {"count": 3}
    with pytest.raises(RunError, match=r"keeps state of \['all'\], no parameter of the model"):
        mg.save(model, tmp_path / "run", optimizers=[optimizer])


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (Grow("nothing", 1), "nothing"),
        (Shrink("conv1", range(99)), "out of range"),
        ("later", "is no edit; read a ledger"),
    ],
)
def test_a_ledger_is_replayed_whole_or_not_at_all(bad: Any, error: str) -> None:
    model, x = problem("convnet")
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer, x)
    model.train()
    before, state, mode = copy.deepcopy(model.state_dict()), tensors(optimizer), model.training
    good = [
        Grow("conv1", 3),
        AddBlock("depth1"),
        Shrink("conv1", [0, 5]),
        AddBlock("depth1"),
        DropBlock("depth1"),
    ]
    if bad == "later":
        bad = ledger_to_json([Grow("conv1", 3)])[0]
    with pytest.raises(mg.MorphogenError, match=error):
        mg.replay(model, [*good, bad], x, optimizers=[optimizer])
    assert mg.diff(problem("convnet")[0], model) == ""
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert tensors(optimizer).keys() == state.keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in tensors(optimizer).items())
    assert mg.doctor(model, optimizers=[optimizer]) == []
    assert model.training == mode
    mg.replay(model, good, x, optimizers=[optimizer])


class Sized(nn.Module):
    """A size as an attribute, one that is computed, and one with a setter."""

    width = 6

    def __init__(self) -> None:
        super().__init__()
        self.size, self._set = 6, 6
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    @property
    def computed(self) -> int:
        return self.a.out_features

    @property
    def settable(self) -> int:
        return self._set

    @settable.setter
    def settable(self, value: int) -> None:
        self._set = value

    def forward(self, x: Tensor) -> Tensor:
        return self.b(
            self.a(x).view(-1, self.size, 1).view(-1, self.settable, 1).view(-1, self.width)
        )


def test_a_property_that_cannot_be_set_is_refused_before_anything_is_declared() -> None:
    model, x = Sized(), torch.randn(2, 3)
    own = dict(vars(model))
    with pytest.raises(
        PlanError,
        match="follow: 'computed' of Sized cannot be set; declare what it is computed from",
    ):
        mg.follow(model, "size", "computed")
    assert vars(model) == own
    mg.follow(model, "size", "settable", "width")
    expected = model(x)
    applied = mg.resize(model, [Grow("a", 2)], example=x)
    assert (model.size, model.settable, model.width, Sized.width, model.computed) == (8, 8, 8, 6, 8)
    torch.testing.assert_close(model(x), expected)
    applied.undo()
    assert (model.size, model.settable, model.width) == (6, 6, 6)
