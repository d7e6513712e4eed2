"""Whether a network can do what must not be, `verify(model, box, unsafe)`, and of a classifier,
`robust_accuracy`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from morphogen.bounds.box import InputSet, linf_ball
from morphogen.bounds.crown import crown, lower_bound
from morphogen.bounds.interval import interval
from morphogen.deadline import Deadline, OutOfTime, deadline
from morphogen.errors import ShapeError, Unsupported
from morphogen.tracing.program import Program, dtype_of, program
from morphogen.tracing.trace import eval_mode
from morphogen.verification.input_split import split_inputs
from morphogen.verification.pgd import attack
from morphogen.verification.relu_split import split_relus, splittable
from morphogen.verification.unsafe import Unsafe, Verdict, margin_of

_FEW = 16  # inputs of a network whose boxes are worth cutting


def verify(
    model: nn.Module | Program,
    box: InputSet,
    unsafe: Unsafe | Sequence[Unsafe],
    seconds: float | Deadline = 60.0,
    callback: Callable[[float, int], None] | None = None,
) -> Verdict:
    """Prove that no input of a box gets into any of the unsafe sets, or find one that does ("sat").

    box: of one example, (1, *shape), or another set of `bounds.box`. Boxes of few inputs are cut
    themselves, otherwise the signs of ReLUs. A counterexample is one only once the model itself, in
    its own precision, agrees; a proof is of the network in real arithmetic, and every bound is
    moved outward by what rounding may do to it, so that one above 0 is enough. seconds: for all of
    it, from tracing on, or a deadline; then the answer is "unknown". callback: called with the
    least bound and the number of open parts as the search goes on. Raises `Unsupported` for a
    network that has an operation without a rule.
    """
    until = deadline(seconds)
    began = until.now()
    if len(box.lower) != 1:
        raise ShapeError(f"verify: the box is of {len(box.lower)} examples; give one, (1, *shape)")
    try:
        net = (
            model
            if isinstance(model, Program)
            else program(model, torch.cat([box.lower, box.upper]), until=until)
        )
    except OutOfTime:
        return Verdict("unknown", -torch.inf, None, 0, until.now() - began)
    if net.dtype != torch.float64:
        raise ShapeError(
            f"verify: the program is in {net.dtype}; give one in float64, which holds every row "
            "and limit"
        )
    sets = [unsafe] if isinstance(unsafe, Unsafe) else list(unsafe)
    if not sets or not net.shapes[net.output]:
        raise ShapeError(
            f"verify: {len(sets)} unsafe sets and outputs of shape {net.shapes[net.output]}; give "
            "a set, and outputs (n,)"
        )
    if any(each.strict is not None and bool(each.strict.any()) for each in sets):
        ends = interval(net, box)[net.output]
        sets = [each for each in sets if not each.missed(ends)]
        if not sets:
            return Verdict("unsat", 0.0)
    if not box.is_box and not splittable(net):
        raise Unsupported(
            "verify: only boxes can be cut, and the network is not one of ReLUs; give a Box around "
            "the set"
        )
    if splittable(net) and (box.lower.numel() > _FEW or not box.is_box):
        verdict = split_relus(net, sets, box, until, callback=callback)
    else:
        verdict = split_inputs(net, sets, box.box, until, callback=callback)
    witness = verdict.witness
    if isinstance(model, nn.Module) and witness is not None and not _agrees(model, witness, sets):
        verdict = replace(verdict, status="unknown", witness=None)
    return replace(verdict, seconds=until.now() - began)


def _agrees(model: nn.Module, witness: Tensor, sets: Sequence[Unsafe]) -> bool:
    with eval_mode(model), torch.no_grad():
        y = model(witness[None].to(dtype_of(model)))
    return float(margin_of(sets, y)) <= 0


def misclassified(label: int, classes: int) -> list[Unsafe]:
    """What must not be of a classifier: that another class has at least the score of `label`, a set
    for each.
    """
    rows = torch.eye(classes, dtype=torch.float64)[label] - torch.eye(classes, dtype=torch.float64)
    return [
        Unsafe(rows[j : j + 1], torch.zeros(1, dtype=torch.float64))
        for j in range(classes)
        if j != label
    ]


@dataclass(frozen=True)
class Robustness:
    """Counts of examples: right (their own class has the highest score), robust (proved so on the
    whole box), broken (an input of the box is another class) and unknown; right = robust + broken +
    unknown.
    """

    examples: int
    right: int
    robust: int
    broken: int
    unknown: int

    @property
    def accuracy(self) -> float:
        """Proved: the share of all examples that are robust."""
        return self.robust / self.examples


def robust_accuracy(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    radius: float,
    low: float = -torch.inf,
    high: float = torch.inf,
    seconds: float = 10.0,
    batch: int = 64,
) -> Robustness:
    """How many examples keep their class wherever each input moves by up to `radius`, within [low,
    high].

    x: (n, ...); y: (n,), the classes. seconds: for each example that linear bounds and an attack
    leave open; 0 for no search.
    """
    net = program(model, x[:2] if len(x) > 1 else torch.cat([x, x]))
    scores = net(x)
    right = (scores.argmax(1) == y).nonzero()[:, 0]
    eye = torch.eye(scores.shape[1], dtype=net.dtype)
    robust = 0
    broken = 0
    for part in right.split(batch):
        spec = eye[y[part], None] - eye  # the own class's row is 0, and is left out below
        around = linf_ball(x[part].to(net.dtype), radius, low, high)
        margins = lower_bound(net, crown(net, around), spec).scatter(1, y[part, None], torch.inf)
        proved = margins.amin(1) > 0
        robust += int(proved.sum())
        for i in (~proved).nonzero()[:, 0].tolist():
            sets = misclassified(int(y[part[i]]), scores.shape[1])
            box = around[torch.tensor([i])]
            if seconds > 0:  # the search begins with an attack
                status = verify(net, box, sets, seconds).status
            else:
                status = (
                    "sat" if any(attack(net, unsafe, box)[1] <= 0 for unsafe in sets) else "unknown"
                )
            robust = robust + (status == "unsat")
            broken = broken + (status == "sat")
    return Robustness(len(x), len(right), robust, broken, len(right) - robust - broken)
