"""The invariants of the resize engine on 500 random networks with 20 random moves each
(tests/test_property.py).

python bench/property.py                # about five minutes; writes
bench/results/property.{json,md}
"""

import argparse
import json
import sys
import time
from pathlib import Path

from fit import RESULTS, environment
from morphogen.threads import threads

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from test_property import TOLERANCE, check


@threads(1)
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", type=int, default=500)
    nets = parser.parse_args().nets
    began = time.perf_counter()
    moves = keeping = 0
    largest, failures = 0.0, []
    for seed in range(nets):
        try:
            made, kept, change = check(seed)
        except Exception as error:  # a benchmark stores outcomes, failures among them
            failures.append({"seed": seed, "error": f"{type(error).__name__}: {error}"[:300]})
            continue
        moves, keeping, largest = moves + made, keeping + kept, max(largest, change)
    result = {
        "nets": nets,
        "moves": moves,
        "keeping": keeping,
        "largest_change": largest,
        "tolerance": TOLERANCE,
        "failures": failures,
        "seconds": time.perf_counter() - began,
        "environment": environment(),
    }
    (RESULTS / "property.json").write_text(json.dumps(result, indent=1) + "\n")
    text = f"""| networks | moves | moves that keep the function | largest change of those (at most) | networks that fail |
|---|---|---|---|---|
| {nets} | {moves:,} | {keeping:,} | {largest:.1e} ({TOLERANCE:.0e}) | {len(failures)} |

float64; every move is checked by the doctor, half of them are undone (weights, buffers and optimizer state bit for bit), the
others trained on; at the end the ledger is replayed on a fresh network, which gets the same structure. Optimizers: AdamW,
RMSprop, Adagrad, SGD, Adafactor.

{"; ".join(f"{k} {v}" for k, v in result["environment"].items())}
"""
    (RESULTS / "property.md").write_text(text)
    print(text, *failures, sep="\n")


if __name__ == "__main__":
    main()
