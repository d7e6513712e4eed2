"""What is wrong between a model and its optimizers: `doctor(model, optimizers=...) -> list of
sentences`, [] where nothing is.

Every fault it knows trains without an error: an optimizer that holds parameters from before a
resize steps them, and the network stands still.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from morphogen.edit.optim import at_home, whole
from morphogen.edit.sizes import kept_sizes


def doctor(model: nn.Module, *, optimizers: Sequence[Optimizer] = ()) -> list[str]:
    """Every fault in words, with what to do; [] for a model that is ready to train.

    Named are parameters that the optimizers hold and the model does not, or the other way round, or
    that are held twice; state and gradients of another shape; state of parameters that are no
    longer trained; sizes that a module keeps beside its tensors and that disagree with them; values
    that are not finite.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    return [
        *_parameters(model, names, tuple(optimizers)),
        *_states(names, whole(optimizers)),
        *_modules(model),
        *_values(model),
    ]


def _parameters(
    model: nn.Module, names: dict[int, str], optimizers: tuple[Optimizer, ...]
) -> Iterator[str]:
    groups = {id(group): group for optimizer in optimizers for group in optimizer.param_groups}
    every = [p for group in groups.values() for p in group["params"]]
    held = Counter(map(id, every))
    dead = [p for p in every if id(p) not in names]
    if dead:
        shapes = ", ".join(str(tuple(p.shape)) for p in dead)
        yield (
            f"the optimizer holds {len(dead)} parameters that are not the model's (shapes "
            f"{shapes}): it trains nothing there"
        )
    for name, p in model.named_parameters():
        if optimizers and p.requires_grad and not held[id(p)]:
            yield (
                f"'{name}' is held by no optimizer: it will not be trained; add it to a parameter "
                "group or freeze it"
            )
        if held[id(p)] > 1:
            yield (
                f"'{name}' is held {held[id(p)]} times: every step counts so often; leave it in "
                "one parameter group"
            )
        if p.grad is not None and p.grad.shape != p.shape:
            yield (
                f"the gradient of '{name}' has shape {tuple(p.grad.shape)} beside "
                f"{tuple(p.shape)}; set it to None"
            )


def _states(names: dict[int, str], optimizers: tuple[Optimizer, ...]) -> Iterator[str]:
    for optimizer in optimizers:
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for p, state in optimizer.state.items():
            name = names.get(id(p), f"a parameter of shape {tuple(p.shape)}")
            if id(p) not in trained:
                yield f"the optimizer keeps state of '{name}', which it does not train"
                continue
            for key, value in state.items():
                if isinstance(value, Tensor) and not at_home(key, value, p, optimizer):
                    yield (
                        f"state '{key}' of '{name}' has shape {tuple(value.shape)} beside "
                        f"{tuple(p.shape)}; resize both"
                    )


def _modules(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        for attribute, value in kept_sizes(module).items():
            if (old := getattr(module, attribute)) != value:
                yield (
                    f"'{name}'.{attribute} is {old}, its tensors say {value}: they were replaced "
                    "by hand; set it as well"
                )


def _values(model: nn.Module) -> Iterator[str]:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            yield f"'{name}' has values that are not finite; go back to the last good checkpoint"
