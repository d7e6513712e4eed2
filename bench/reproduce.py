"""Run experiments in full and keep what came out: bench/results/experiments/NAME-MODE/, with commit
and hardware.

    python bench/reproduce.py depth-spirals --seeds 3
    python bench/reproduce.py going-deeper-xor --faithful

`morphogen reproduce` does the same for a user, without the commit.
"""

import argparse
from dataclasses import replace

from fit import RESULTS, environment
from morphogen.experiments import EXPERIMENTS, experiment
from morphogen.report.reproduction import markdown, write


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=list(EXPERIMENTS))
    parser.add_argument("--faithful", action="store_true")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    about = environment()  # before the run, which may outlast this commit
    result = experiment(arguments.name)(arguments.faithful, False, arguments.seeds)
    # checkpoints are too large for a repository
    result = replace(result, environment=about, files={})
    write(result, RESULTS / "experiments" / f"{result.name}-{result.mode}")
    print(markdown(result))


if __name__ == "__main__":
    main()
