"""python -m tests.golden CASE.npz ... [--compile]: compares updates with those of the references, on a CPU or a GPU.

Prints the largest difference of each case and exits with 1 where one is above 1e-9 (of an action: 1e-12).
"""

import argparse
import math
import sys
from pathlib import Path

from common.errors import exit_on_user_error
from harness.devices import choose_device
from tests.golden.checker import check_case, tolerance


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="+", type=Path, metavar="CASE.npz")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="check the compiled updates")
    options, failed = parser.parse_args(), False
    with exit_on_user_error():
        device = choose_device(options.device)
        for path in options.cases:
            differences = check_case(path, device.type, options.compile)
            shares = {name: difference / tolerance(name) for name, difference in differences.items()}
            name = max(shares, key=lambda each: math.inf if math.isnan(shares[each]) else shares[each])
            largest, within = differences[name], shares[name] <= 1
            failed |= not within
            verdict = "ok" if within else f"above {tolerance(name):g}"
            print(
                f"{path.stem:24s} largest difference {largest:.3g} at {name} of {len(differences)} figures: {verdict}"
            )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
