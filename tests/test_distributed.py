"""Two processes on one machine: their replicas stay bit-equal through resizes."""

import datetime
import inspect
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import morphogen as mg
from morphogen import Grow, LearnedDepth, PlanError, Shrink, Unsupported
from morphogen.edit.adapt import asked
from morphogen.edit.distributed import ARGUMENTS, resize_distributed
from morphogen.edit.inits.constant import INITS, constant


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)
    )


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [
        *model.state_dict().values(),
        *(v for p in model.parameters() for v in optimizer.state[p].values()),
    ]


def learned_depth(rank: int, folder: str, draw: torch.Generator) -> None:
    """Blocks come and go on both ranks at once; closed ones are the unused parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), LearnedDepth(lambda i: nn.Linear(5, 5)))
    ddp = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-2)
    for w, blocks in ((1.6, 2), (2.3, 3), (0.9, 2), (0.3, 1)):
        ddp.module[1].w.data.fill_(w)
        while edits := [edit for edit, _ in asked(ddp.module)]:
            ddp, _ = resize_distributed(
                ddp, edits, example=torch.zeros(2, 4), optimizers=[optimizer]
            )
        assert len(ddp.module[1].blocks) == blocks
        for _ in range(2):
            optimizer.zero_grad()
            ddp(torch.randn(8, 4, generator=draw)).square().mean().backward()
            optimizer.step()
    assert mg.doctor(ddp.module, optimizers=[optimizer]) == []
    torch.save([p.detach() for p in ddp.parameters()], f"{folder}/deep{rank}")


def hooked(rank: int, draw: torch.Generator) -> None:
    """The wrapper stays what it was; an undo gives the one of before; other indices, or a plain
    resize, are refused.
    """
    calls: list[int] = []

    def count(state: list[int], bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        state.append(bucket.buffer().numel())
        return default_hooks.allreduce_hook(None, bucket)

    ddp = DistributedDataParallel(
        build(),
        bucket_cap_mb=3,
        find_unused_parameters=True,
        gradient_as_bucket_view=True,
        forward_sync_buffers=False,
    )
    ddp.register_comm_hook(calls, count)
    ddp.register_forward_hook(lambda *_: calls.append(-1))
    ddp.note = "mine"
    ddp.eval().train()
    expected = {
        name: read(ddp)
        for name, read in ARGUMENTS.items()
        if name not in ("module", "process_group")
    }
    optimizer = torch.optim.SGD(ddp.parameters(), lr=1e-2, momentum=0.9)
    example = torch.randn(3, 4, generator=torch.Generator().manual_seed(9))

    def step() -> None:
        optimizer.zero_grad()
        calls.clear()
        ddp(torch.randn(8, 4, generator=draw)).square().mean().backward()
        optimizer.step()
        assert calls[0] == -1
        assert sum(calls[1:]) == sum(p.numel() for p in ddp.parameters())

    step()
    before = [t.clone() for t in everything(ddp.module, optimizer)]
    with pytest.raises(
        PlanError, match=r"different edits: rank 0 .*'drop': \(0,\).*, rank 1 .*'drop': \(1,\)"
    ):
        resize_distributed(ddp, [Shrink("0", [rank])], example=example, optimizers=[optimizer])
    with pytest.raises(PlanError, match="ask for different new_state_fraction"):
        resize_distributed(
            ddp,
            [Grow("0", 1)],
            new_state_fraction=float(rank),
            example=example,
            optimizers=[optimizer],
        )
    drawn = {
        **INITS,
        "out": lambda row, tensor, new, generator: torch.full_like(
            tensor.index_select(row.dim, new), rank
        ),
    }
    with pytest.raises(PlanError, match="'0.weight' is not the same on all ranks"):
        resize_distributed(
            ddp, [Grow("0", 1)], inits=drawn, example=example, optimizers=[optimizer]
        )
    for call in (
        lambda: mg.adapt(ddp.module, optimizers=[optimizer]),
        lambda: mg.adapt(ddp, optimizers=[optimizer]),
        lambda: mg.resize(ddp.module, [Grow("0", 1)], example=example, optimizers=[optimizer]),
    ):
        with pytest.raises(
            PlanError, match="is inside a DistributedDataParallel: .* resize_distributed"
        ):
            call()
    interrupted(ddp, example, optimizer, rank)
    assert all(
        torch.equal(a, b) for a, b in zip(before, everything(ddp.module, optimizer), strict=True)
    )
    step()
    before = [t.clone() for t in everything(ddp.module, optimizer)]
    kept, first = resize_distributed(ddp, [Grow("0", 2)], example=example, optimizers=[optimizer])
    _, second = resize_distributed(ddp, [Shrink("3", [1])], example=example, optimizers=[optimizer])
    assert kept is ddp
    with pytest.raises(PlanError, match="later resizes first"):
        first.undo()
    second.undo()
    first.undo()
    assert all(
        torch.equal(a, b) for a, b in zip(before, everything(ddp.module, optimizer), strict=True)
    )
    step()
    _, applied = resize_distributed(ddp, [Grow("0", 2)], example=example, optimizers=[optimizer])
    if rank == 1:
        ddp.module[0].weight.data.add_(1)
    with pytest.raises(PlanError, match=r"'0\.weight' on rank 1"):  # on both
        applied.undo()
    if rank == 1:
        ddp.module[0].weight.data.sub_(1)
    step()
    assert {
        name: read(ddp)
        for name, read in ARGUMENTS.items()
        if name not in ("module", "process_group")
    } == expected
    assert (ddp.note, ddp.training, ddp.module.training) == ("mine", True, True)
    assert mg.doctor(ddp.module, optimizers=[optimizer]) == []
    compressed(draw)


def interrupted(
    ddp: DistributedDataParallel, example: torch.Tensor, optimizer: torch.optim.Optimizer, rank: int
) -> None:
    """Ctrl-C on one rank is an error on the others, and changes nothing on any."""

    def stop(*_: object) -> torch.Tensor:
        raise KeyboardInterrupt

    inits = {**INITS, "scale": stop} if rank == 1 else {**INITS, "scale": constant(1.0)}
    inits["scale"].__qualname__ = "same"
    with pytest.raises(
        KeyboardInterrupt if rank == 1 else PlanError,
        match="" if rank == 1 else "rank 1 says: KeyboardInt",
    ):
        resize_distributed(
            ddp, [Grow("0", 1)], inits=inits, example=example, optimizers=[optimizer]
        )


def compressed(draw: torch.Generator) -> None:
    """PowerSGD and PyTorch's own compression go on."""
    for name in ("power", "built in"):
        ddp = DistributedDataParallel(build())
        if name == "power":
            ddp.register_comm_hook(PowerSGDState(None, start_powerSGD_iter=2), powerSGD_hook)
        else:
            ddp._register_builtin_comm_hook(dist.BuiltinCommHookType.FP16_COMPRESS)
        for number in range(2):
            for _ in range(5):
                ddp(torch.randn(8, 4, generator=draw)).square().mean().backward()
            resize_distributed(ddp, [Grow("0", 20 + number)], example=torch.zeros(3, 4))
        ddp(torch.randn(8, 4, generator=draw)).square().mean().backward()
        if name == "built in":
            assert "FP16_COMPRESS" in ddp._get_ddp_logging_data()["comm_hook"]


def worker(rank: int, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    ddp = DistributedDataParallel(build())
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-2)
    draw = torch.Generator().manual_seed(rank)  # each rank has its own data
    example = torch.randn(3, 4, generator=torch.Generator().manual_seed(9))

    def step() -> None:
        optimizer.zero_grad()
        ddp(torch.randn(8, 4, generator=draw)).square().mean().backward()
        optimizer.step()

    for number in range(10):
        step()
        edit = Shrink("0", [number % 3]) if number % 3 == 2 else Grow("0" if number % 2 else "3", 2)
        ddp, _ = resize_distributed(
            ddp, [edit], seed=number + 10 * rank, example=example, optimizers=[optimizer]
        )
        step()
    assert mg.doctor(ddp.module, optimizers=[optimizer]) == []
    before = [t.clone() for t in everything(ddp.module, optimizer)]
    with pytest.raises(PlanError, match="ranks ask for different edits"):
        resize_distributed(ddp, [Grow("0", 1 + rank)], example=example, optimizers=[optimizer])
    with pytest.raises(PlanError, match="nothing was changed on any rank; rank 1 says"):
        resize_distributed(
            ddp,
            [Grow("0", 1)],
            example=example if rank == 0 else torch.randn(3, 5),
            optimizers=[optimizer],
        )
    # running means come from each rank's own data; parameters and optimizer state must not differ
    assert all(
        torch.equal(a, b) for a, b in zip(before, everything(ddp.module, optimizer), strict=True)
    )
    torch.save(
        [p.detach() for p in ddp.parameters()]
        + [v for s in optimizer.state.values() for v in s.values()],
        f"{folder}/{rank}",
    )
    learned_depth(rank, folder, draw)
    hooked(rank, draw)
    sharded = fully_shard(build(), mesh=init_device_mesh("cpu", (2,)))
    with pytest.raises(Unsupported, match="sharded over processes .* call fully_shard again"):
        mg.resize(sharded, [Grow("0", 1)], example=example)
    dist.destroy_process_group()


@pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="this PyTorch has no gloo"
)
def test_two_ranks_stay_bit_equal(tmp_path: Path) -> None:
    mp.spawn(worker, (str(tmp_path),), nprocs=2)
    for name in ("", "deep"):
        first, second = (torch.load(tmp_path / f"{name}{rank}") for rank in range(2))
        assert len(first) == len(second)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_every_argument_of_the_wrapper_can_be_read_back() -> None:
    assert set(list(inspect.signature(DistributedDataParallel.__init__).parameters)[1:]) <= set(
        ARGUMENTS
    )


def test_twenty_resizes_of_a_compiled_model_cost_at_most_one_recompilation() -> None:
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model, x, counter = build(), torch.randn(5, 4), CompileCounter()
    run, optimizer = mg.compiled(model, backend=counter), torch.optim.Adam(model.parameters())
    for number in range(20):
        optimizer.zero_grad()
        run(x).sum().backward()
        optimizer.step()
        mg.resize(
            model,
            [Grow("0" if number % 2 else "3", 1 + number % 3)],
            optimizers=[optimizer],
            example=x,
        )
    torch.testing.assert_close(run(x), model(x))
    assert counter.frame_count <= 2
