"""Whatever runs a model leaves every module of it in training or evaluation, as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import morphogen as mg
from morphogen import AddBlock, Grow, LearnedDepth, Shrink
from morphogen.bounds.box import Box
from morphogen.edit.inits.firefly import firefly
from morphogen.edit.inits.gradmax import gradmax
from morphogen.formats.onnx import export_onnx
from morphogen.measures.dead import dead_units
from morphogen.measures.importance import unit_importance
from morphogen.measures.natural import natural_norm
from morphogen.policies import POLICIES
from morphogen.policies.controller import Controller
from morphogen.policies.cost import weighed
from morphogen.policies.policy import Proposal
from morphogen.training.train import generator, predict
from morphogen.transforms.freeze import fold_batchnorm
from morphogen.transforms.link import link, unlink
from morphogen.verification.stability import stability


def net() -> tuple[nn.Sequential, Tensor]:
    """In training, but for a norm that is held still; a dropout besides."""
    torch.manual_seed(0)
    layers = [
        nn.Linear(4, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(6, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        LearnedDepth(lambda i: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)), w=0.7),
        nn.Linear(6, 3),
    ]
    model = nn.Sequential(*layers).train()
    model[1].eval()
    return model, torch.randn(8, 4)


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def plan_of(model: nn.Module, x: Tensor) -> Any:
    return mg.plan(model, mg.widths(mg.trace(model, x)), [Grow("0", 2)])


def changing(mode: bool) -> Callable[[nn.Module], Tensor]:
    def loss(model: nn.Module) -> Tensor:
        return model.train(mode)(torch.ones(4, 4)).square().mean()

    return loss


CALLS: dict[str, Callable[[nn.Module, Tensor, Any], Any]] = {
    "trace": lambda m, x, path: mg.trace(m, x),
    "widths": lambda m, x, path: mg.widths(mg.trace(m, x)),
    "resize": lambda m, x, path: mg.resize(m, [Grow("0", 2), Shrink("4", [0])], example=x),
    "undo": lambda m, x, path: mg.resize(m, [Grow("0", 2)], example=x).undo(),
    "a block": lambda m, x, path: mg.resize(m, [AddBlock("7")], example=x),
    "adapt": lambda m, x, path: mg.adapt(m),
    "freeze": lambda m, x, path: mg.freeze(m, x),
    "fold_batchnorm": lambda m, x, path: fold_batchnorm(m, x),
    "link": lambda m, x, path: link(m, x, init="preserve"),
    "export_onnx": lambda m, x, path: export_onnx(m, x, path / "m.onnx"),
    "predict": lambda m, x, path: predict(m, x),
    "save": lambda m, x, path: mg.save(m, path / "m"),
    "dead_units": lambda m, x, path: dead_units(m, x),
    "unit_importance": lambda m, x, path: unit_importance(m, mg.widths(mg.trace(m, x)), "0"),
    "natural_norm": lambda m, x, path: natural_norm(m, changing(False)),
    "gradmax": lambda m, x, path: gradmax(m, plan_of(m, x), changing(False)),
    "firefly": lambda m, x, path: firefly(m, plan_of(m, x), changing(False)),
    "weighed": lambda m, x, path: weighed(x, 0.5)(m),
}  # fmt: skip

PLAINLY: dict[str, Callable[[nn.Module, Tensor, Any], Any]] = {
    "compress": lambda m, x, path: mg.compress(
        m, Box(-torch.ones(1, 4), torch.ones(1, 4)), samples=x
    ),
    "regions": lambda m, x, path: mg.regions(m, Box(-torch.ones(1, 4), torch.ones(1, 4))),
    "shallow": lambda m, x, path: mg.shallow(m, Box(-torch.ones(1, 4), torch.ones(1, 4))),
    "stability": lambda m, x, path: stability(
        m, Box(-torch.ones(1, 4), torch.ones(1, 4)), samples=x
    ),
    "robust_accuracy": lambda m, x, path: mg.robust_accuracy(
        m, x, predict(m, x).argmax(1), radius=0.01
    ),
    "unlink": lambda m, x, path: (link(m, x, init="preserve"), unlink(m, x)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_leaves_every_mode(name: str, tmp_path) -> None:
    model, x = net()
    before = modes(model)
    CALLS[name](model, x, tmp_path)
    after = modes(model)
    assert {n: mode for n, mode in after.items() if n in before and n != "2"} == {
        n: m for n, m in before.items() if n != "2"
    }
    assert all(mode for n, mode in after.items() if n not in before), (
        "what is new is in training, as the model is"
    )


@pytest.mark.parametrize("name", PLAINLY)
def test_a_call_on_a_plain_network_leaves_every_mode(name: str, tmp_path) -> None:
    model, x = (
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)).train(),
        torch.randn(8, 4),
    )
    model[2].eval()
    before = modes(model)
    PLAINLY[name](model, x, tmp_path)
    assert modes(model) == before


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("name", [*POLICIES, None])
def test_a_look_leaves_every_mode_whatever_is_called(name: str | None, mode: bool) -> None:
    model, x = net()
    model[7].w.data.fill_(1.5)  # a block joins, too
    before = modes(model)

    def losses(model: nn.Module) -> Tensor:
        return model.train(mode)(x).square().mean(1).detach()

    def cost(model: nn.Module) -> float:
        model.train(not mode)
        return float(sum(p.numel() for p in model.parameters()))

    optimizer = torch.optim.AdamW(model.parameters())
    policy = None if name is None else POLICIES[name]()
    controller = Controller(
        model, policy, losses, x, optimizers=[optimizer], cost=cost, loss=changing(mode)
    )
    for round in range(2):
        changes = controller.step(round, 0.0, generator(round))
        after = modes(model)
        assert {n: after[n] for n in before} == before
        assert all(after.values()) or {n for n, m in after.items() if not m} == {"1"}
        if round == 0:
            assert any(change.where == "7" for change in changes)


def test_a_look_that_fails_leaves_every_mode() -> None:
    model, x = net()
    before = modes(model)

    def losses(model: nn.Module) -> Tensor:
        model.eval()
        raise RuntimeError("no data")

    class Rash:
        def start(self) -> dict[str, Any]:
            return {}

        def decide(
            self, look: Any, memory: dict[str, Any], draw: torch.Generator
        ) -> tuple[list[Proposal], dict[str, Any], bool]:
            model.eval()
            return [], memory, False

    with pytest.raises(RuntimeError, match="no data"):
        Controller(model, Rash(), losses, x, optimizers=[]).step(0, 0.0, generator(0))
    assert modes(model) == before
    Controller(model, Rash(), lambda m: torch.ones(4), x, optimizers=[]).step(0, 0.0, generator(0))
    assert modes(model) == before
