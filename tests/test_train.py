"""The loop without any policy."""

import pytest
import torch
from torch import nn

from morphogen.training.train import Batches, Diverged, State, augment, generator, predict, train


def toy(seed: int = 0) -> tuple[State, Batches]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))
    x = torch.randn(50, 3)
    batches = Batches(x, x.sum(1), 8, seed)
    return State(model, torch.optim.Adam(model.parameters()), seed), batches


def objective(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (model(x)[:, 0] - y).square().mean()


def test_images_come_with_channels_last_and_the_same_values() -> None:
    for channels in (1, 3):
        x = torch.randn(8, channels, 5, 4)
        (found, _), *_ = Batches(x, torch.arange(8), 4, shuffled=False).range(0, 1)
        assert torch.equal(found, x[:4])
        assert found.stride() == (channels * 20, 1, channels * 4, channels)
        conv = nn.Conv2d(channels, 6, 3)
        assert conv(found).is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(predict(conv, x), conv(x))


def test_without_hooks_it_is_an_ordinary_training_script() -> None:
    state, batches = toy()
    train(state, batches, objective, lambda step: 1e-2, steps=20, rounds=15)
    assert (state.round, state.step) == (15, 300)
    assert float((predict(state.model, batches.x)[:, 0] - batches.y).square().mean()) < 0.5


def test_a_run_in_two_halves_equals_one() -> None:
    whole, batches = toy()
    train(whole, batches, objective, lambda step: 1e-2, steps=7, rounds=6)
    halves, batches = toy()
    train(halves, batches, objective, lambda step: 1e-2, steps=7, rounds=2)
    torch.randn(100)  # the global generator may be anywhere
    train(halves, batches, objective, lambda step: 1e-2, steps=7, rounds=6)
    for a, b in zip(whole.model.parameters(), halves.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_nan_puts_the_round_back() -> None:
    state, batches = toy()
    train(state, batches, objective, lambda step: 1e-2, steps=5, rounds=1)
    before = [p.clone() for p in state.model.parameters()]
    steps = [s["step"].clone() for s in state.optimizer.state.values()]

    def broken(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return objective(model, x, y) * float("nan")

    with pytest.raises(Diverged, match="the loss became nan in round 1"):
        train(state, batches, broken, lambda step: 1e-2, steps=5, rounds=2)
    assert all(torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))
    assert all(
        torch.equal(a, s["step"])
        for a, s in zip(steps, state.optimizer.state.values(), strict=True)
    )
    train(state, batches, objective, lambda step: 1e-2, steps=5, rounds=2)


def test_every_row_comes_once_an_epoch() -> None:
    batches = Batches(torch.arange(24.0)[:, None], torch.arange(24), 8, seed=3)
    first = torch.cat([y for _, y in batches.range(0, 3)])
    second = torch.cat([y for _, y in batches.range(3, 6)])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(24))
    assert first.tolist() != second.tolist()
    assert torch.cat([y for _, y in batches.range(1, 2)]).tolist() == first[8:16].tolist()


def test_augmentation_moves_and_mirrors_whole_images() -> None:
    x = torch.arange(32.0).reshape(2, 1, 4, 4) + 1
    moved = augment(x, 1, True, generator(0))
    options = []
    for image in (x, x.flip(3)):
        padded = nn.functional.pad(image, (1,) * 4)
        options += [padded[:, :, i : i + 4, j : j + 4] for i in range(3) for j in range(3)]
    for n in range(2):
        assert any(torch.equal(moved[n], option[n]) for option in options)
    assert torch.equal(augment(x, 0, False, generator(0)), x)


def test_generators_of_different_keys_differ() -> None:
    draws = {
        float(torch.rand((), generator=generator(*key)))
        for key in [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 1)]
    }
    assert len(draws) == 6
