"""DEN: proximal steps by their closed forms, old tasks by what they were, the new task through
every edit.
"""

import copy
from dataclasses import replace
from math import inf

import pytest
import torch
from torch import Tensor

from morphogen.edit.apply import count_parameters
from morphogen.errors import PlanError, ShapeError, Unsupported
from morphogen.experiments.den.mnist import fisher, rotated
from morphogen.lifelong.den import DEN, Lesson, descend, drift, enrol, expand, inside, learn, split
from morphogen.lifelong.network import Lifelong, reachable, used
from morphogen.training.proximal import group_soft, soft, sparse_head
from morphogen.training.train import generator

QUICK = DEN(
    loss=0.0,
    units=3,
    rate=0.02,
    decay=1.0,
    group=0.1,
    drift=0.01,
    batch=16,
    iterations=20,
    check=5,
    window=2,
)


def rows(task: int, count: int = 60) -> tuple[Tensor, Tensor]:
    """Two questions about six numbers, others for each task."""
    draw = generator(7, task)
    x = torch.randn(count, 6, generator=draw, dtype=torch.float64)
    slopes = torch.randn(6, 2, generator=draw, dtype=torch.float64)
    return x, (x @ slopes > 0).double()


def network(settings: DEN = QUICK, hidden: tuple[int, ...] = (7, 5)) -> Lifelong:
    """Two hidden layers that know task 0."""
    torch.manual_seed(0)
    net = Lifelong(6, hidden).double()
    learn(net, settings, rows(0), rows(0, 20), generator(1))
    return net


def taught(net: Lifelong, settings: DEN = QUICK) -> tuple[Lesson, list[Tensor]]:
    """Task 1 up to the point where units are split."""
    lesson = enrol(net, settings, rows(1), rows(1, 20), generator(2))
    with torch.no_grad():
        lesson.head.weight.normal_()
        lesson.head.weight[:, 0] = 0  # one unit that the new task does not read
    chosen = net.reads(1)
    lesson.phase("selective", inside(lesson, chosen))
    chosen = expand(lesson, chosen)
    lesson.phase("drift", inside(lesson, chosen), drifting=True)
    return lesson, chosen


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_the_l1_step_stops_at_zero() -> None:
    found = soft(torch.tensor([-3.0, -0.5, 0.0, 0.2, 2.0]), 0.5)
    assert found.tolist() == [-2.5, 0.0, 0.0, 0.0, 1.5]


def test_the_group_step_minimises_what_it_should() -> None:
    v = torch.tensor([[3.0, 4.0], [0.3, -0.4], [0.0, 0.0]], dtype=torch.float64)
    x = group_soft(v, 0.5)
    assert x[1:].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    close(x[0], v[0] * 0.9)
    # the slope of |x - v|^2 / 2 + |x| / 2
    close(x[0] - v[0] + 0.5 * x[0] / x[0].norm(), torch.zeros(2, dtype=torch.float64))


def test_the_sparse_head_is_the_minimum() -> None:
    x, y = rows(0, 200)
    weight, bias = sparse_head(x, y, 0.02, 5000, 1e-12)
    slope = (
        ((x @ weight.T + bias).sigmoid() - y).T @ torch.cat([x, torch.ones(200, 1)], 1) / y.numel()
    )
    zero = weight == 0
    assert 0 < zero.sum() < weight.numel()
    assert (slope[:, :-1][zero].abs() <= 0.02 + 1e-9).all()
    torch.testing.assert_close(
        slope[:, :-1][~zero], -0.02 * weight[~zero].sign(), rtol=0, atol=1e-8
    )
    torch.testing.assert_close(slope[:, -1], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-8)


def test_reachable_is_every_path_from_every_output() -> None:
    torch.manual_seed(3)
    for _ in range(50):
        weights = [
            torch.randn(a, b) * (torch.rand(a, b) < 0.25) for a, b in ((6, 4), (5, 6), (3, 5))
        ]
        one, two = reachable(weights)
        for unit in range(5):
            assert two[unit] == any(weights[2][o, unit] != 0 for o in range(3))
        for unit in range(6):
            paths = [
                (o, v)
                for o in range(3)
                for v in range(5)
                if weights[2][o, v] != 0 and weights[1][v, unit] != 0
            ]
            assert one[unit] == bool(paths)


def test_a_phase_leaves_what_it_may_not_train_bit_for_bit() -> None:
    net = network()
    weight = net.layers[0].linear.weight
    optimizer = torch.optim.Adam([weight])
    before, mask = weight.detach().clone(), torch.arange(7)[:, None] < 3
    loss = lambda chosen: net.logits(rows(0)[0][chosen], 0).square().mean()  # noqa: E731
    for allowed in (torch.ones_like(mask), mask):  # the second time, all entries have momentum
        before = weight.detach().clone()
        descend(QUICK, optimizer, {weight: allowed}, loss, lambda: 0.0, 60, generator(0))
    assert torch.equal(weight[3:], before[3:])
    assert not torch.equal(weight[:3], before[:3])


def test_growing_changes_no_old_answer() -> None:
    net = network()
    x = rows(5)[0]
    answer, weights = (
        net.logits(x, 0),
        [layer.linear.weight.detach().clone() for layer in net.layers],
    )
    lesson = enrol(net, QUICK, rows(1), rows(1, 20), generator(2))
    torch.nn.init.normal_(lesson.head.weight)
    chosen = expand(lesson, [torch.ones(7, dtype=torch.bool), torch.ones(5, dtype=torch.bool)])
    assert net.sizes > (7, 5)
    close(net.logits(x, 0), answer)
    for layer, old, mask in zip(net.layers, weights, chosen, strict=True):
        assert torch.equal(layer.linear.weight[: old.shape[0], : old.shape[1]], old)
        assert torch.equal(
            layer.born, torch.where(torch.arange(len(layer.born)) < old.shape[0], 0.0, 1.0)
        )
        assert len(mask) == len(layer.born)
    # without stamps, old units hear the new ones
    assert (net.logits(x, 0, stamped=False) - answer).abs().max() > 1e-4


def test_units_whose_group_became_zero_are_gone() -> None:
    net = network()
    lesson = enrol(net, replace(QUICK, group=1e3), rows(1), rows(1, 20), generator(2))
    expand(lesson, [torch.ones(7, dtype=torch.bool), torch.ones(5, dtype=torch.bool)])
    assert net.sizes == (7, 5)
    net = network()
    lesson = enrol(net, replace(QUICK, group=2.0), rows(1), rows(1, 20), generator(2))
    expand(lesson, [torch.ones(7, dtype=torch.bool), torch.ones(5, dtype=torch.bool)])
    for layer, read in zip(net.layers, net.reads(1), strict=True):
        new = layer.born == 1
        assert layer.linear.weight[new].any(1).all()
        assert read[new].all()


@pytest.mark.parametrize("hidden", [(7,), (7, 5), (6, 5, 4)])
def test_a_split_gives_the_old_tasks_back_and_keeps_the_new_one(hidden: tuple[int, ...]) -> None:
    net, x = network(hidden=hidden), rows(5)[0]
    lesson, chosen = taught(net, replace(QUICK, limit=0.0))
    # the copies must be copies where upper units have learned to read new ones, too
    old, new, before = net.logits(x, 0), net.logits(x, 1), lesson.before
    known = [
        (layer.linear.weight.detach().clone(), layer.linear.bias.detach().clone())
        for layer in net.layers
    ]
    first = copy.deepcopy(net)
    with torch.no_grad():
        for layer, (weight, bias) in zip(first.layers, before, strict=True):
            layer.linear.weight[: weight.shape[0], : weight.shape[1]] = weight
            layer.linear.bias[: len(bias)] = bias
    answer = first.logits(x, 0)
    assert (old - answer).abs().max() > 1e-3
    sizes, added = net.sizes, [int(mask.sum()) for mask in lesson.new]
    after = split(lesson, chosen)
    close(net.logits(x, 0), answer)
    close(net.logits(x, 1), new)
    for layer, (weight, bias), (was, shift), size, count in zip(
        net.layers, before, known, sizes, added, strict=True
    ):
        # all moved, so all are back
        assert torch.equal(layer.linear.weight[: size - count, : weight.shape[1]], weight)
        assert torch.equal(layer.linear.bias[: size - count], bias)
        copies = layer.linear.bias[size:]
        assert len(copies)
        assert all(value in shift for value in copies)
        assert (layer.born[size:] == 1).all()
        assert was.shape[0] == size
    assert [len(mask) for mask in after] == list(net.sizes)
    assert all(mask[size:].all() for mask, size in zip(after, sizes, strict=True))


def test_an_old_task_changes_only_through_units_that_were_not_split() -> None:
    net, x = network(hidden=(12, 10)), rows(5)[0]
    first = copy.deepcopy(net)
    lesson, chosen = taught(net, replace(QUICK, drift=0.3, limit=0.2))
    moved = [
        drift(weight, layer.linear.weight.detach()[: weight.shape[0], : weight.shape[1]])
        for layer, (weight, _) in zip(net.layers, lesson.before, strict=True)
    ]
    new = net.logits(x, 1)
    after = split(lesson, chosen)
    close(net.logits(x, 1), new)
    assert (moved[1][~after[1][:10]] <= 0.2).any()  # these read split ones, so they are split too
    assert net.sizes[0] > len(chosen[0])
    assert (moved[0][after[0][:12]] <= 0.2).all()
    assert after[0][:12].any()
    lesson.phase("split", inside(lesson, after), drifting=True)
    with torch.no_grad():
        for layer, now, mask, (weight, _) in zip(
            first.layers, net.layers, after, lesson.before, strict=True
        ):
            shared = mask[: len(weight)]
            layer.linear.weight[shared] = now.linear.weight[: len(weight), : weight.shape[1]][
                shared
            ]
            layer.linear.bias[shared] = now.linear.bias[: len(weight)][shared]
    close(net.logits(x, 0), first.logits(x, 0))


def test_a_sequence_is_learned_and_kept() -> None:
    settings = replace(QUICK, iterations=80, window=8, sparsity=1e-3)
    net = network(settings)
    answers, hits = {0: net.predict(rows(0)[0], 0)}, []
    for task in (1, 2):
        done = learn(net, settings, rows(task), rows(task, 20), generator(2, task))
        assert done.task == task
        assert done.sizes == net.sizes
        answers[task] = net.predict(rows(task)[0], task)
    for task, answer in answers.items():
        x, y = rows(task)
        assert (net.predict(x, task) - answer).abs().max() < 0.05
        hits.append(float((net.predict(x, task).round() == y).double().mean()))
    assert min(hits) > 0.8


def test_the_same_draws_teach_the_same() -> None:
    nets = [network(), network()]
    for net in nets:
        learn(net, QUICK, rows(1), rows(1, 20), generator(2))
    states = [net.state_dict() for net in nets]
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())


def test_no_limit_no_split_and_a_low_loss_no_growth() -> None:
    net = network()
    done = learn(net, replace(QUICK, limit=inf, loss=inf), rows(1), rows(1, 20), generator(2))
    assert net.sizes == (7, 5)
    assert done.added == done.split == (0, 0)
    assert list(done.losses) == ["head", "selective", "drift"]


def test_capacity_counts_what_is_not_zero() -> None:
    net = Lifelong(3, (2,))
    net.add_head(torch.tensor([0.1, 0.5]))
    assert count_parameters(net) == 3 * 2 + 2 + 2 * 2 + 2
    assert used(net) == 3 * 2 + 2 + 0 + 1  # odds of one half are zero


def test_what_cannot_be_is_said() -> None:
    net = network()
    with pytest.raises(PlanError, match="task=1 is unknown: 1 were learned"):
        net.predict(rows(0)[0], 1)
    with pytest.raises(ShapeError, match="this is a perceptron: give rows"):
        net.predict(torch.zeros(2, 1, 2, 3, dtype=torch.float64), 0)
    with pytest.raises(Unsupported, match="at least one size"):
        Lifelong(6, ())
    with pytest.raises(ShapeError, match="every size must be at least 1"):
        Lifelong(6, (4, 0))
    with pytest.raises(ShapeError, match="held: x"):
        learn(net, QUICK, rows(1), (rows(1)[0], rows(1)[1][:3]), generator(0))
    with pytest.raises(
        ShapeError, match=r"train: x \(4, 1, 2, 3\), y \(4, 2\); give rows \(n, 6\)"
    ):
        learn(net, QUICK, (torch.zeros(4, 1, 2, 3), torch.zeros(4, 2)), rows(1), generator(0))
    assert len(net.heads) == 1


def test_the_fisher_diagonal_is_that_of_single_rows() -> None:
    net = network()
    x, draw = rows(3, 5)[0], generator(4)
    found = fisher(net, x, 0, draw)
    answers = torch.bernoulli(net.logits(x, 0).detach().sigmoid(), generator=generator(4))
    for parameter, value in zip(net.hidden.parameters(), found, strict=True):
        sums = torch.zeros_like(parameter)
        for i in range(5):
            logits = net.logits(x[i : i + 1], 0)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                logits, answers[i : i + 1], reduction="sum"
            )
            sums += torch.autograd.grad(loss, parameter)[0].square()
        close(value, sums / 5)


def test_images_turn_about_their_middle() -> None:
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(rotated(images, 0.0), images.flatten(1), rtol=0, atol=1e-6)
    quarter = rotated(images, 90.0).view(2, 1, 8, 8)
    ways = [torch.rot90(images, k, (2, 3)) for k in (1, 3)]
    assert min(float((quarter - way).abs().max()) for way in ways) < 1e-5
