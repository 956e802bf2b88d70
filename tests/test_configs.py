"""Every configuration in configs/ is one that its algorithm takes as it is written."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from harness.algorithms import algorithm_names, load_algorithm
from harness.config_file import config_to_yaml, load_config
from harness.tuning.search_space import is_search_file

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FOUND = sorted(path for name in algorithm_names() for path in (CONFIGS / name).rglob("*.yaml"))
FILES = [path for path in FOUND if not is_search_file(path)]  # tests/test_tune.py checks the search spaces
# Their published defaults differ between methods, so a benchmark must say what it uses.
ALWAYS_NAMED = ("task", "batch_size", "discount", "actor_hidden_dims", "value_hidden_dims")


def config_id(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


@pytest.mark.parametrize("path", FILES, ids=config_id)
def test_decodes_to_what_is_written(path, tmp_path):
    config_class = load_algorithm(path.relative_to(CONFIGS).parts[0]).config_class
    config = load_config(config_class, path)
    for name, value in yaml.safe_load(path.read_text()).items():
        decoded = getattr(config, name)
        decoded = list(decoded) if isinstance(decoded, tuple) else decoded
        assert decoded == value and type(decoded) is type(value), f"{name}: {value!r} became {decoded!r}"
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    assert load_config(config_class, tmp_path / "config.yaml") == config


@pytest.mark.parametrize("path", FILES, ids=config_id)
def test_names_what_differs_between_methods_and_says_why(path):
    assert path.read_text().startswith("# "), "the first line says what this is and where its values come from"
    values = yaml.safe_load(path.read_text())
    config_class = load_algorithm(path.relative_to(CONFIGS).parts[0]).config_class
    fields = {field.name for field in dataclasses.fields(config_class)}
    assert [name for name in ALWAYS_NAMED if name in fields and name not in values] == []


@pytest.mark.parametrize("name", algorithm_names())
def test_every_algorithm_has_a_quick_start(name):
    assert (CONFIGS / name / "quickstart.yaml").is_file()
