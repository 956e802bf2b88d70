"""The matrix of a comparison: which runs are trained, and which rows of the report they give."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from common.errors import UserError
from harness.algorithms import Algorithm, load_algorithm
from harness.config_file import nearest_field
from harness.run_folder import run_path

CROSSED_OPTION = "num_candidates"  # the act option that every method which has it is evaluated at several values of


@dataclasses.dataclass(frozen=True)
class Variant:
    """What is trained: an algorithm, with overrides of its config's fields, under a label."""

    label: str
    algorithm: str
    overrides: Dict[str, Any]

    def load(self) -> Algorithm:
        return load_algorithm(self.algorithm)


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One training: a variant on a task with a seed. `config` is complete; the run's folder follows from it."""

    variant: Variant
    task: str
    category: str
    seed: int
    config: Any
    config_path: Optional[Path] = None  # the YAML file that the config was made from

    @property
    def name(self) -> str:
        """LABEL/TASK/seed_N: the run's folder below the comparison's `runs`, and its name on the command line."""
        return f"{self.variant.label}/{self.task}/seed_{self.seed}"

    @property
    def folder(self) -> Path:
        return run_path(self.config)

    def own_cell(self) -> Dict[str, Any]:
        """All act options with the values of the run's config: what the evaluations during training use."""
        return {name: getattr(self.config, name) for name in act_options_of(self.variant.algorithm)}


@functools.lru_cache(maxsize=None)
def act_options_of(algorithm: str) -> Tuple[str, ...]:
    """Names of the act options of an algorithm."""
    return load_algorithm(algorithm).agent_class.act_options


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the report: a variant's runs, acting with the options `act` (the config's where one is left out)."""

    label: str  # the variant's, or that of an entry with `evaluation_of`; several rows may share it and differ in act
    variant: Variant
    act: Dict[str, Any]

    @property
    def title(self) -> str:
        """The label and the act options: differs between any two rows."""
        return ", ".join([self.label, *(f"{name} {value}" for name, value in self.act.items())])

    def cell(self, run: PlannedRun) -> Dict[str, Any]:
        """All act options of this row for one of its variant's runs."""
        return run.own_cell() | self.act


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Everything that a matrix asks for. `out` is <run_dir>/comparisons/<name>; the run folders lie in `out`/runs."""

    name: str
    description: str
    path: Path  # the YAML file
    runs: Tuple[PlannedRun, ...]
    rows: Tuple[Row, ...]
    seeds: Tuple[int, ...]
    tasks: Dict[str, Tuple[str, ...]]  # by category
    out: Path

    def cells(self, run: PlannedRun) -> List[Dict[str, Any]]:
        """The distinct cells of act options that a run is evaluated at after its training, its own one first."""
        cells = [run.own_cell()]
        for row in self.rows:
            if row.variant.label == run.variant.label and row.cell(run) not in cells:
                cells.append(row.cell(run))
        return cells

    def variants(self) -> List[Variant]:
        return list({run.variant.label: run.variant for run in self.runs}.values())

    def run_named(self, name: str) -> PlannedRun:
        """The run of that name. Raises UserError with the nearest name."""
        names = {run.name: run for run in self.runs}
        if name not in names:
            nearest = nearest_field(name, names)
            raise UserError(f"{self.path}: has no run {name!r}" + (f", did you mean {nearest}?" if nearest else ""))
        return names[name]
