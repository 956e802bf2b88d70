"""What faster matrix products do to the golden figures: float32 updates by precision against the float64 reference.

    python -m benchmarks.precision --precision highest high medium --csv FILE
    python -m benchmarks.precision --precision highest --rounded tf32 bf16    # emulated, on a machine without them

A row per case and precision: the largest relative difference of a loss and of a network's parameters after three
updates, each relative to the largest reference value of that loss over the steps or of that parameter. The recorded
networks are 32 wide, which libraries may find too small for their fast products; so one more case, dipole_published,
has DIPOLE's published size, and its reference is tests/plain_dipole.py.
"""

import contextlib
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch

from benchmarks.rounded_products import FORMATS, RoundedProducts
from common.errors import CommandParser, exit_on_user_error
from common.files import write_rows_csv
from harness.algorithms import ROOT
from harness.devices import choose_device
from harness.measurement.table import format_rows, machine
from harness.measurement.workload import SIZES
from harness.run_fields import MATMUL_PRECISIONS
from tests.golden.checker import replay
from tests.plain_dipole import write_case

GOLDEN = ROOT / "tests" / "golden"


def measure(case: Path, precision: str, device: torch.device, rounded: Optional[str] = None) -> Dict[str, Any]:
    """The row of one case in one precision, or with its products' operands rounded to a format."""
    torch.set_float32_matmul_precision(precision)
    with RoundedProducts(rounded) if rounded else contextlib.nullcontext():
        figures = replay(case, device.type, torch.float32)
    torch.set_float32_matmul_precision(MATMUL_PRECISIONS[0])
    groups: Dict[str, List[Tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    for name, pair in figures.items():  # a loss has one group for all steps: at a single one it can be near zero
        groups[name if name.startswith("final/") else name.split("/", 1)[1]].append(pair)
    deviations = {name: relative_difference(pairs) for name, pairs in groups.items()}
    return {
        "case": case.stem,
        "precision": f"{rounded}, emulated" if rounded else precision,
        "loss": largest(deviation for name, deviation in deviations.items() if not name.startswith("final/")),
        "parameter": largest(deviation for name, deviation in deviations.items() if name.startswith("final/")),
    }


def relative_difference(pairs: Sequence[Tuple[np.ndarray, np.ndarray]]) -> float:
    """Largest difference of ours and the reference's, relative to the reference's largest value unless that is 0."""
    scale = max(np.abs(theirs).max() for _, theirs in pairs)
    return max(np.abs(ours - theirs).max() for ours, theirs in pairs) / (scale or 1.0)


def write_published_case(folder: Path) -> Path:
    """Makes three float64 updates of DIPOLE at its published size and returns the case's .npz."""
    size, path = SIZES["published"], folder / "dipole_published"
    settings = json.loads((GOLDEN / "dipole.json").read_text())["config"]
    settings |= {"actor_hidden_dims": list(size.hidden_dims), "value_hidden_dims": list(size.hidden_dims)}
    write_case(path, settings, size.observation_dim, size.action_dim, size.batch_size, seed=0)
    return path.with_suffix(".npz")


def largest(deviations) -> float:
    return float(f"{max(deviations):.2g}")


def main() -> None:
    parser = CommandParser("python -m benchmarks.precision", __doc__)
    parser.add_argument("--precision", nargs="+", choices=MATMUL_PRECISIONS, default=list(MATMUL_PRECISIONS))
    parser.add_argument("--rounded", nargs="+", choices=list(FORMATS), default=[], help="emulate these formats too")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--csv", type=Path, help="also write the rows there")
    with exit_on_user_error():
        options = parser.parse_args()
        device = choose_device(options.device)
        with tempfile.TemporaryDirectory() as folder:
            cases = [*sorted(GOLDEN.glob("*.npz")), write_published_case(Path(folder))]
            ways = [(precision, None) for precision in options.precision]
            ways += [(MATMUL_PRECISIONS[0], number_format) for number_format in options.rounded]
            rows = [measure(case, precision, device, rounded) for case in cases for precision, rounded in ways]
        print(f"{machine(device)}\n\n{format_rows(rows)}")
        if options.csv:
            write_rows_csv(rows, options.csv)


if __name__ == "__main__":
    main()
