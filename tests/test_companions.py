"""What lives beside a model through a resize: schedulers, averages, scalers, checkpoints; and the
doctor that looks.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import morphogen as mg
from morphogen import Grow, LearnedDepth, PlanError, RunError, Shrink
from morphogen.edit.checkpoint import load_ledger
from morphogen.edit.edit import AddBlock
from problems import problem


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> float:
    optimizer.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    return float(loss)


def start(name: str = "residual") -> tuple[nn.Module, Tensor, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model, x = problem(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.8, 0.9))
    for _ in range(3):
        step(model, optimizer, x)
    return model, x, optimizer


def test_a_scheduler_goes_on_and_a_strange_one_is_refused() -> None:
    model, x, optimizer = start()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    mg.resize(model, [Grow("first", 2)], optimizers=[optimizer], schedulers=[scheduler], example=x)
    step(model, optimizer, x)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 5e-3
    other = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(model.parameters()), 1)
    with pytest.raises(PlanError, match="StepLR drives an optimizer that is not in optimizers"):
        mg.resize(model, [Grow("first", 2)], optimizers=[optimizer], schedulers=[other], example=x)


@pytest.mark.parametrize("seeded", [True, False])
def test_an_average_is_resized_with_its_model(seeded: bool) -> None:
    model, x, optimizer = start()
    ema = AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    step(model, optimizer, x)
    ema.update_parameters(model)
    old = {name: tensor.clone() for name, tensor in ema.state_dict().items()}
    expected = ema.eval()(x)
    generator = torch.Generator().manual_seed(3) if seeded else None
    applied = mg.resize(
        model,
        [Grow("first", 2), Shrink("hidden", [0])],
        optimizers=[optimizer],
        ema=[ema],
        example=x,
        generator=generator,
    )
    assert torch.equal(ema.module.first.weight[6:], model.first.weight[6:])
    applied.undo()
    assert all(torch.equal(old[name], tensor) for name, tensor in ema.state_dict().items())
    mg.resize(model, [Grow("first", 2)], optimizers=[optimizer], ema=[ema], example=x)
    torch.testing.assert_close(ema(x), expected)
    step(model, optimizer, x)
    ema.update_parameters(model)


def test_an_average_of_another_model_changes_nothing() -> None:
    model, x, optimizer = start()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(PlanError, match="nothing was changed"):
        mg.resize(
            model, [Grow("first", 2)], optimizers=[optimizer], ema=[nn.Linear(2, 2)], example=x
        )
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert mg.doctor(model, optimizers=[optimizer]) == []


def test_a_gradient_scaler_goes_on() -> None:
    model, x, optimizer = start()
    scaler = torch.amp.GradScaler("cpu")
    for units in (2, 3):
        mg.resize(model, [Grow("first", units)], optimizers=[optimizer], example=x)
        optimizer.zero_grad()
        scaler.scale(model(x).square().mean()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert mg.doctor(model, optimizers=[optimizer]) == []


def test_the_doctor_finds_nothing_in_a_healthy_run() -> None:
    model, x, optimizer = start()
    mg.resize(model, [Grow("first", 2), Shrink("side", [1])], optimizers=[optimizer], example=x)
    step(model, optimizer, x)
    assert mg.doctor(model, optimizers=[optimizer]) == []


def test_the_doctor_names_every_fault() -> None:
    model, _, optimizer = start("chain")
    stale = nn.Parameter(torch.zeros(4, 4))
    model[0].weight = nn.Parameter(torch.zeros(9, 4, dtype=torch.float64))  # as other libraries do
    optimizer.add_param_group({"params": [stale]})
    optimizer.state[model[2].weight]["exp_avg"] = torch.zeros(3, 3)
    optimizer.param_groups[1]["params"].append(model[2].bias)
    model[2].bias.data[0] = float("nan")
    text = "\n".join(mg.doctor(model, optimizers=[optimizer]))
    for fault in (
        r"holds 2 parameters that are not the model's (shapes (8, 4), (4, 4))",
        "'0.weight' is held by no optimizer",
        "'2.bias' is held 2 times",
        "state 'exp_avg' of '2.weight' has shape (3, 3) beside (6, 8)",
        "'0'.out_features is 8, its tensors say 9",
        "'2.bias' has values that are not finite",
    ):
        assert fault in text


def test_the_next_step_after_loading_is_bit_identical(tmp_path: Path) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(5)
        model = nn.Sequential(
            nn.Linear(4, 6), LearnedDepth(lambda _: nn.Linear(6, 6), w=1.5), nn.Linear(6, 2)
        ).double()
        depth = [p for name, p in model.named_parameters() if name.endswith(".w")]
        rest = [p for name, p in model.named_parameters() if not name.endswith(".w")]
        return model, torch.optim.AdamW(
            [{"params": rest}, {"params": depth, "lr": 0.1}], amsgrad=True
        )

    x = torch.randn(5, 4, dtype=torch.float64)
    model, optimizer = build()
    ledger = [Grow("0", 3), AddBlock("1"), Shrink("0", [1])]
    for edit in ledger:
        step(model, optimizer, x)
        mg.resize(model, [edit], optimizers=[optimizer], example=x)
    step(model, optimizer, x)
    optimizer.param_groups[0]["lr"] = 0.003
    mg.save(model, tmp_path / "run" / "ckpt", optimizers=[optimizer], ledger=ledger)
    loaded, (its_optimizer,) = mg.load(tmp_path / "run" / "ckpt", build)
    assert load_ledger(tmp_path / "run" / "ckpt") == tuple(ledger)
    assert mg.doctor(loaded, optimizers=[its_optimizer]) == []
    for _ in range(3):
        assert step(model, optimizer, x) == step(loaded, its_optimizer, x)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True)
    )
    assert loaded[0].out_features == 8


def test_a_checkpoint_loads_in_a_new_process(tmp_path: Path) -> None:
    model, x, optimizer = start("chain")
    mg.resize(model, [Grow("0", 3)], optimizers=[optimizer], example=x)
    mg.save(model, tmp_path / "ckpt", optimizers=[optimizer])
    torch.save(x, tmp_path / "x.pt")
    expected = float(model.eval()(x).square().mean())
    code = f"""
import torch, morphogen as mg
from torch import nn
def build():
    m = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()
    return m, torch.optim.AdamW(m.parameters())
model, [optimizer] = mg.load({str(tmp_path / "ckpt")!r}, build)
print(repr(float(model.eval()(torch.load({str(tmp_path / "x.pt")!r})).square().mean())), mg.doctor(model, optimizers=[optimizer]))
"""
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out.split() == [repr(expected), "[]"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    model, _, optimizer = start("chain")
    mg.save(model, tmp_path / "ckpt", optimizers=[optimizer])
    with pytest.raises(RunError, match="has no tensor"):
        mg.load(
            tmp_path / "ckpt",
            lambda: (m := nn.Bilinear(2, 2, 2), torch.optim.AdamW(m.parameters())),
        )
    with pytest.raises(RunError, match="let build\\(\\) return"):
        mg.load(tmp_path / "ckpt", lambda: problem("chain")[0])
    with pytest.raises(RunError, match="is torch.float64, build\\(\\) makes it torch.float32"):
        mg.load(
            tmp_path / "ckpt",
            lambda: (m := problem("chain", torch.float32)[0], torch.optim.AdamW(m.parameters())),
        )
    stranger = torch.optim.SGD([nn.Parameter(torch.zeros(3))])
    with pytest.raises(RunError, match="not the model's; see morphogen.doctor"):
        mg.save(model, tmp_path / "ckpt", optimizers=[stranger])


def test_recurrent_weights_stay_where_their_module_looks_for_them() -> None:
    model = nn.Sequential(nn.LSTM(3, 4, batch_first=True))
    held = [id(w) for w in model[0]._flat_weights]
    mg.trace(model, torch.randn(2, 5, 3))
    assert [id(w) for w in model[0]._flat_weights] == held == [id(p) for p in model.parameters()]


def test_several_optimizers_are_cut_at_once_and_frozen_parameters_stay_frozen() -> None:
    model, x, _ = start("chain")
    model[0].bias.requires_grad_(False)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2 and p.requires_grad]
    both = [torch.optim.Muon(matrices, lr=1e-2), torch.optim.AdamW(others, lr=1e-2)]

    def step_both() -> None:
        for optimizer in both:
            optimizer.zero_grad()
        model(x).square().mean().backward()
        for optimizer in both:
            optimizer.step()

    step_both()
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    frozen = model[0].bias.detach().clone()
    mg.resize(model, [Grow("0", 2), Shrink("2", [1])], optimizers=both, example=x)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    for optimizer in both:
        for parameter, state in optimizer.state.items():
            assert all(
                v.shape == parameter.shape
                for v in state.values()
                if isinstance(v, Tensor) and v.dim()
            )
    step_both()
    assert torch.equal(model[0].bias[:8], frozen)
    assert {id(p) for o in both for p in o.state} == {
        id(p) for p in model.parameters() if p.requires_grad
    }
