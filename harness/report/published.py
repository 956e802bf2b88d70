"""Published scores (published.yaml) and which of them may stand beside a comparison's rows."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import yaml

PUBLISHED = Path(__file__).with_name("published.yaml")


@dataclasses.dataclass(frozen=True)
class Method:
    """A published method and the row of ours that it stands beside: none without an algorithm."""

    name: str
    algorithm: str | None = None
    num_candidates: tuple[int, ...] = ()  # empty: however many

    def is_row(self, algorithm: str, changed: object, num_candidates: float) -> bool:
        """Whether a row is this method: of its algorithm, with nothing changed, with as many candidates."""
        fits = not self.num_candidates or num_candidates in self.num_candidates
        return algorithm == self.algorithm and not changed and fits


@dataclasses.dataclass(frozen=True)
class PublishedTable:
    """One published table: scores as text ("97±2") by key (task or category) and method; "" where it has none."""

    source: str
    measured_on: str
    data: dict
    score: str  # "final" | "last evaluations" | "unstated"
    updates: int
    seeds: int
    comparable: bool
    protocol: str  # "A" | "B" | "ExORL"
    note: str = ""
    scores: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    before_after: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)

    def is_on(self, identity: dict) -> bool:
        """Whether it was measured on data of this identity: official, of the same suite and collector."""
        return bool(identity) and all(identity.get(field) == value for field, value in self.data.items())

    def describe(self) -> str:
        """Source, data and protocol in one line."""
        score = {
            "final": "final evaluation",
            "last evaluations": "mean of the evaluations at 800k, 900k and 1M",
            "unstated": "which evaluations is not stated in what we read",
        }[self.score]
        parts = [f"{self.source}, on {self.measured_on}", f"{self.updates:,} updates, {self.seeds} seeds, {score}"]
        if self.note:
            parts.append(self.note if self.comparable else f"NOT COMPARABLE: {self.note}")
        return "; ".join(parts)


def load_published(path: Path = PUBLISHED) -> tuple[dict[str, Method], list[PublishedTable]]:
    """The published methods by name, and the tables."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    methods = {
        name: Method(name, place.get("algorithm"), tuple(place.get("num_candidates", ())))
        for name, place in content["methods"].items()
    }
    for entry in content["tables"]:
        names = entry.pop("methods")
        for lines in (entry.get("scores", {}), entry.get("before_after", {})):
            for key, values in lines.items():
                texts = ["" if value is None else str(value) for value in values]
                lines[key] = dict(zip(names, texts, strict=True))
    return methods, [PublishedTable(**entry) for entry in content["tables"]]


def task_key(identity: dict) -> str:
    """The key of a task in published.yaml, by its data set's identity: <domain>_<task> or <data set>/<task number>."""
    if "domain" in identity:
        return f"{identity['domain']}_{identity['reward_task']}"
    return f"{identity.get('dataset')}/{identity.get('reward_task')}"


def category_key(identities: Sequence[dict]) -> str | None:
    """The key of a category: its data set, where the tasks are the five of one OGBench data set; None otherwise."""
    datasets = {identity.get("dataset") for identity in identities}
    numbers = sorted(identity.get("reward_task", 0) for identity in identities)
    return datasets.pop() if len(datasets) == 1 and numbers == [1, 2, 3, 4, 5] else None
