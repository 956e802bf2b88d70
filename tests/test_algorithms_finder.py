"""The finder: algorithms are known by their files alone."""

import dataclasses
import sys

import pytest

from common.errors import UserError
from harness.algorithms import algorithm_names, load_algorithm

TOY = '''"""A toy."""
import dataclasses
from tests.test_algorithms_finder import ImportedConfig

@dataclasses.dataclass(frozen=True)
class ToyConfig:
    discount: float = 0.5

class SomethingConfig:
    """Not a dataclass."""

class Toy:
    pass

DEFAULT = ToyConfig()
'''


@dataclasses.dataclass(frozen=True)
class ImportedConfig:
    """Defined elsewhere, so not the algorithm's own."""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository root with algorithms/finder_toy.py and algorithms/baselines/finder_other.py."""
    baselines = tmp_path / "algorithms" / "baselines"
    baselines.mkdir(parents=True)
    (tmp_path / "algorithms" / "finder_toy.py").write_text(TOY)
    (tmp_path / "algorithms" / "_not_an_algorithm.py").write_text("")
    (tmp_path / "algorithms" / "notes.txt").write_text("")
    (baselines / "finder_other.py").write_text(TOY.replace("Toy", "Other"))
    (baselines / "finder_empty.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("harness.algorithms.ROOT", tmp_path)
    yield tmp_path
    for module in [name for name in sys.modules if name.split(".")[-1].startswith("finder_")]:
        del sys.modules[module]


def test_names_are_those_of_the_files(root):
    assert algorithm_names() == ("finder_empty", "finder_other", "finder_toy")


@pytest.mark.parametrize(
    "name, module, agent",
    [("finder_toy", "algorithms.finder_toy", "Toy"), ("finder_other", "algorithms.baselines.finder_other", "Other")],
)
def test_algorithm_is_loaded_from_its_file(root, name, module, agent):
    algorithm = load_algorithm(name)
    assert algorithm.name == name
    assert (algorithm.agent_class.__name__, algorithm.agent_class.__module__) == (agent, module)
    assert algorithm.config_class.__name__ == f"{agent}Config"
    assert algorithm.config_class() == algorithm.config_class(discount=0.5)
    assert load_algorithm(name) == algorithm


def test_unknown_name_is_refused_with_the_nearest(root):
    for name in ("finder_toi", "algorithms/finder_toy.py", "Finder_Toy"):
        with pytest.raises(UserError, match=rf"no algorithm '{name}', did you mean finder_toy\?"):
            load_algorithm(name)
    with pytest.raises(UserError, match="choose one of finder_empty, finder_other, finder_toy"):
        load_algorithm("zzz")


def test_file_without_config_is_a_programming_error(root):
    with pytest.raises(TypeError, match="finder_empty.py must define one dataclass <Agent>Config, not 0"):
        load_algorithm("finder_empty")
