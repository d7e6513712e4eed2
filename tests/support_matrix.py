"""docs/support.md, printed from the cases that the tests walk.

python tests/support_matrix.py > docs/support.md
"""

import sys

import torch

from architectures import ARCHITECTURES
from morphogen import trace, widths
from supported import CASES

LAYERS = """# What can be resized

Printed from the tests (`python tests/support_matrix.py > docs/support.md`): every row is a network that is grown, undone,
trained and shrunk back in `tests/test_supported.py`. A width is given in units; *x n* says that each unit has n entries at
least, one for each head or group. Growing a width keeps the function exactly, and is checked to, unless the last column
says why not; shrinking states the change that it measured. What is not understood is `fixed` with the reason, and an
unknown operation is refused by the name of its node.

| layer or operation | widths of the test's network | growing changes the function because |
|---|---|---|"""
NETWORKS = """
Architectures with the layer shapes of their papers; all free widths are grown by a quarter at once and shrunk back to
the same weights, bit for bit:

| network | widths | of those fixed | parameters covered by a width |
|---|---|---|---|"""


def page() -> str:
    """The whole page as Markdown."""
    lines = [LAYERS]
    for name, case in CASES.items():
        torch.manual_seed(0)
        found = widths(trace(case.build(), torch.randn(case.shape)))
        free = [w for w in found.values() if not w.fixed]
        sizes = ", ".join(
            f"`{w.name}` {w.size}" + (f" x {w.step}" if w.step > 1 else "") for w in free
        )
        not_preserved = "; ".join(
            f"`{w.name}`: {w.not_preserved.rpartition(' at ')[0].rstrip(',')}"
            for w in free
            if w.not_preserved
        )
        lines.append(f"| {name} | {sizes} | {not_preserved} |")
    lines.append(NETWORKS)
    for name, (build, example) in ARCHITECTURES.items():
        model = build()
        found = widths(trace(model, example()))
        tensors = {slot.tensor for w in found.values() for slot in w.slots}
        named = dict(model.named_parameters())
        fixed = ", ".join(
            f"`{w.name}` ({w.fixed.partition(' at ')[0]})" for w in found.values() if w.fixed
        )
        lines.append(
            f"| {name} | {len(found)} | {fixed} | {len(tensors & named.keys())} of {len(named)} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
