"""The two configs of a run, and the settings that make them.

A run has a RunConfig, the same for every method, and the method's own config. Both are flat and frozen; a run's folder
keeps them together in one complete config.yaml. Their values come from, later ones winning:

    the classes' defaults
    configs/<suite>.yaml               what the suite's protocol fixes for every method
    configs/<algorithm>/<suite>.yaml   what the method sets there, or the file that --config names
    the entries of --variant <name>    in both files
    the flags

A settings file holds fields, and three tables: `tasks` (pattern of the task's name within its suite, or several with
commas: fields; later entries win), `variants` (name: fields, and a `tasks` table of its own) and `search`, what
harness.tune searches, in the same form with spaces in place of values.
"""

import dataclasses
import fnmatch
import inspect
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional, Tuple

import yaml

from common.errors import UserError, one_line
from common.files import readable
from harness.algorithms import algorithm_names, load_algorithm
from harness.config_file import as_yaml, decode, decode_text, form_of, places_by_key, read_mapping, shown, unknown_field

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@dataclass(frozen=True)
class RunConfig:
    task: str = "exorl/local_sticky_random/cartpole_swingup"  # <suite>/<name>: the data set and its environment
    seed: int = 0  # seed of networks, minibatches and noise
    label: Optional[str] = None  # name of the run in folders and tables; null: the algorithm's, with the variant's
    run_dir: str = "runs"  # a run's folder is <run_dir>/<label>/<task>/seed_<seed>
    data_dir: Optional[str] = None  # folder of the data sets; null: the suite's own default
    collect_episodes: int = 0  # if a local data set is missing, collect this many episodes; 0: print the command
    in_memory: bool = True  # false: observations stay in the file, memory-mapped (exorl only)
    normalize_observations: bool = False  # subtract the data's mean and divide by its standard deviation
    max_episode_steps: Optional[int] = None  # end episodes after this many steps; null: the environment's own limit
    sparse: bool = False  # reward -1 wherever it is not 0, in data and environment
    action_chunk: int = 1  # actions that the policy chooses at once and executes one after the other
    first_action_only: bool = False  # of a chunk's actions; true: returns over action_chunk steps for single actions
    offline_steps: int = 1_000_000  # updates on the data set
    online_steps: int = 0  # environment steps after those; an update follows each from online_start on
    online_start: int = 0  # environment step that the first update of the online phase follows
    batch_size: int = 256  # transitions in a minibatch
    balanced_sampling: bool = False  # online minibatches take half data, half new transitions; false: uniform
    replay_capacity: int = 2_000_000  # size of the online replay
    keep_offline: bool = True  # false: one shared ring, old data is overwritten first (FQL)
    log_interval: int = 5_000  # updates between rows of train.csv
    checkpoint_interval: int = 50_000  # updates between checkpoints
    keep_checkpoints: bool = False  # keep each in checkpoints/<step>/ too, which harness.evaluate takes as a run
    eval_interval: int = 100_000  # updates between evaluations
    eval_episodes: int = 50  # episodes in an evaluation
    eval_environments: int = 50  # episodes that advance together as one batch
    eval_workers: int = 0  # environment processes; 0: evaluate in this process
    sweep: Tuple[str, ...] = ()  # act options swept after training, e.g. ["greediness=0,1"]; empty: none
    device: Literal["auto", "cpu", "cuda"] = "auto"  # where the networks are; auto: a GPU if there is one
    threads: int = 0  # CPU threads of torch; 0: torch's choice
    matmul_precision: Literal["highest", "high", "medium"] = "highest"  # float32 products; high: tf32 on GPUs
    compile: Literal["auto", "true", "false"] = "auto"  # compile losses and sampling; auto: where a long run gains
    cuda_graphs: bool = True  # on a GPU, replay recorded updates; false: one by one, the same numbers more slowly
    logger: Tuple[str, ...] = ("csv",)  # places for a run's rows besides its CSV files: tensorboard, wandb
    wandb_mode: Literal["offline", "online"] = "online"  # offline: W&B's files stay in the run's folder
    wandb_project: str = "dipole"  # Weights & Biases project

    @property
    def total_updates(self) -> int:
        """Those of both phases: online there is one for each step."""
        return self.offline_steps + self.online_steps


# Where a run happens and what it prints, not what it computes: a run may continue with other values.
MACHINE_OPTIONS = (
    *("label", "run_dir", "data_dir", "collect_episodes", "in_memory", "checkpoint_interval", "keep_checkpoints"),
    *("eval_environments", "eval_workers", "sweep", "device", "threads", "compile", "cuda_graphs"),
    *("logger", "wandb_mode", "wandb_project"),
)
LOGGERS = ("csv", "tensorboard", "wandb")
ANY = math.inf
COUNTS = (  # at least 1
    *("offline_steps", "max_episode_steps", "action_chunk", "batch_size", "replay_capacity", "log_interval"),
    *("checkpoint_interval", "eval_interval"),
    *("eval_episodes", "eval_environments", "actor_hidden_dims", "value_hidden_dims", "num_critics"),
    *("num_candidates", "target_candidates", "backup_candidates", "resample_candidates", "flow_steps"),
    *("diffusion_steps", "denoising_steps", "sampling_steps", "decay_interval", "ema_interval", "actor_interval"),
    *("target_interval", "planner_width", "planner_blocks", "planner_heads", "adapter_rank", "token_sizes"),
)
RANGES = {  # smallest and largest value of a field, wherever a config has it
    **dict.fromkeys(COUNTS, (1, ANY)),
    "seed": (0, 2**32 - 1),
    "collect_episodes": (0, ANY),
    "online_steps": (0, ANY),
    "online_start": (0, ANY),
    "eval_workers": (0, 4 * (os.cpu_count() or 1)),
    "threads": (0, os.cpu_count() or 1),
    "learning_rate": (0, 1e3),
    "noise_scale": (0, ANY),
    "actor_learning_rate": (0, 1e3),
    "critic_learning_rate": (0, 1e3),
    "discount": (0, 1),
    "target_rate": (0, 1),
    "ema_rate": (0, 1),
    "expectile": (0, 1),
    "stochasticity": (0, 1),
    "exploration_noise": (0, ANY),
    "max_weight": (sys.float_info.min, ANY),
    "pessimism": (0, ANY),
    "target_pessimism": (0, ANY),
}


@dataclass(frozen=True)
class Settings:
    """A run's two configs, and where each value is from."""

    run: RunConfig
    config: Any
    sources: dict[str, str]  # field: "default", "<file>: line <n>" or "command line"
    files: tuple[Path, ...]  # the settings files that apply
    search: dict[str, tuple[yaml.Node, str]]  # field: its space and where that stands, of the `search` tables

    def shown(self) -> str:
        """Every field as YAML with the source of its value as a comment."""
        lines = [
            (f"{name}: {as_yaml(value)}", self.sources[name]) for name, value in flat(self.run, self.config).items()
        ]
        width = max(len(line) for line, _ in lines)
        return "\n".join(f"{line:<{width}}  # {source}" for line, source in lines)


def algorithm_name(config_class: type) -> str:
    """The name of the file that defines a method's config: `dipole` of algorithms/dipole.py."""
    return Path(inspect.getfile(config_class)).stem


def flat(run: RunConfig, config: Any) -> dict[str, Any]:
    """Both configs' fields, as they are stored."""
    return {**dataclasses.asdict(run), **dataclasses.asdict(config)}


def config_to_yaml(run: RunConfig, config: Any) -> str:
    """Every field of both configs; `stored_config` reads it back to equal ones."""
    return "".join(f"{name}: {as_yaml(value)}\n" for name, value in flat(run, config).items())


def field_types(config_class: type) -> dict[str, Any]:
    """Types of a run's fields by name, the run's and then the method's; raises TypeError for one no config may use."""
    kinds = {each.name: each.type for owner in (RunConfig, config_class) for each in dataclasses.fields(owner)}
    for kind in kinds.values():
        form_of(kind)
    return kinds


def decode_flag(config_class: type, name: str, text: str) -> Any:
    """The value of the field `name` that `--name text` gives. Raises UserError."""
    return decode_text(text, field_types(config_class)[name], f"--{name}")


def load_settings(
    config_class: type,
    overrides: dict[str, Any] | None = None,
    path: str | Path | None = None,
    variant: str | None = None,
) -> Settings:
    """The configs of a run: the settings files' values for the task, and `overrides` {field: value} over them.

    path: a file in place of configs/<algorithm>/<suite>.yaml; variant: the entries of that name count too.
    Raises UserError for a field, a value, a variant or a file that is not as it must be.
    """
    overrides, algorithm = overrides or {}, algorithm_name(config_class)
    method_file = _SettingsFile(path) if path is not None else None
    task = overrides.get("task", (method_file and method_file.task()) or RunConfig().task)
    suite, _, name = task.partition("/")
    if method_file is None and (CONFIGS / algorithm / f"{suite}.yaml").exists():
        method_file = _SettingsFile(CONFIGS / algorithm / f"{suite}.yaml")
    protocol = CONFIGS / f"{suite}.yaml"
    files = [_SettingsFile(protocol)] if protocol.exists() else []
    files += [method_file] if method_file else []
    _check_variant(files, variant, suite, algorithm)

    kinds = field_types(config_class)
    values, sources = {"task": task}, {"task": "default"}
    for layer in (None, variant) if variant else (None,):
        for file in files:
            for key, node, where in file.entries(name, layer):
                if key == "task" and file.places.get(key) != (node, where):
                    raise UserError(f"{where}: a task is the whole file's; move it to the top, or give --task")
                if key in kinds:
                    values[key] = decode(node, kinds[key], f"{where}: {key}")
                    sources[key] = where
                elif file.path != protocol or not _is_any_methods(key):
                    raise unknown_field(where, key, config_class.__name__, kinds)
    values |= overrides
    values["task"] = task
    sources |= dict.fromkeys(overrides, "command line")
    if values.get("label") is None:
        values["label"] = f"{algorithm}_{variant}" if variant else algorithm
    run, config = _make(config_class, values, "settings")
    check_values(run, config)
    return Settings(
        run,
        config,
        sources={key: sources.get(key, "default") for key in kinds},
        files=tuple(file.path for file in files),
        search={key: (node, at) for file in files for key, node, at in file.entries(name, table="search")},
    )


def stored_config(path: Path, config_class: type) -> tuple[RunConfig, Any]:
    """Both configs of a run folder's config.yaml; absent fields have their defaults. Raises UserError."""
    kinds, values = field_types(config_class), {}
    for name, (node, where) in places_by_key(path, read_mapping(path)).items():
        if name not in kinds:
            raise unknown_field(where, name, config_class.__name__, kinds)
        values[name] = decode(node, kinds[name], f"{where}: {name}")
    return _make(config_class, values, str(path))


def check_values(run: RunConfig, config: Any) -> None:
    """Raises UserError for values outside their choices and ranges, and for values that would have no effect."""
    for owner in (run, config):
        for each in dataclasses.fields(owner):
            value = getattr(owner, each.name)
            form, choices = form_of(each.type)
            if form == "choice" and value not in choices:
                raise UserError(f"config: {each.name} is {value!r}, choose one of {', '.join(choices)}")
            low, high = RANGES.get(each.name, (-ANY, ANY))
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, (int, float)) and not low <= number <= high:
                    least = "above 0" if low == sys.float_info.min else f"at least {low}"
                    raise UserError(
                        f"config: {each.name} is {number}, it must be {least if number < low else f'at most {high:g}'}"
                    )
    if run.first_action_only and run.action_chunk == 1:
        raise UserError("config: first_action_only needs chunks; set action_chunk above 1, or leave it out")
    if 0 < run.online_steps < run.online_start:
        raise UserError(
            f"config: online_start is {run.online_start}, and after {run.online_steps} online_steps no update would "
            "have been made; lower it"
        )
    unknown = [name for name in run.logger if name not in LOGGERS]
    if unknown:
        raise UserError(f"config: logger is {unknown[0]!r}, choose of {', '.join(LOGGERS)}")
    if run.label is not None and (run.label in ("", ".", "..") or {"/", os.sep} & set(run.label)):
        raise UserError(f"config: label is {run.label!r}, it must name one folder, without slashes")


def _make(config_class: type, values: dict[str, Any], where: str) -> tuple[RunConfig, Any]:
    """The two configs of {field: value}. Raises UserError for what the method's config refuses."""
    run_fields = {each.name for each in dataclasses.fields(RunConfig)}
    run = RunConfig(**{name: value for name, value in values.items() if name in run_fields})
    try:
        return run, config_class(**{name: value for name, value in values.items() if name not in run_fields})
    except ValueError as error:
        raise UserError(f"{where}: {one_line(error, None)}") from error


def _is_any_methods(name: str) -> bool:
    """Whether some algorithm has the field, so that a protocol may set it for those that do."""
    configs = (load_algorithm(algorithm).config_class for algorithm in algorithm_names())
    return any(name == each.name for config in configs for each in dataclasses.fields(config))


def _check_variant(files: list["_SettingsFile"], variant: str | None, suite: str, algorithm: str) -> None:
    known = sorted({name for file in files for name in file.variants})
    if variant is not None and variant not in known:
        raise UserError(
            f"command line: --variant {variant} is in no settings file of {algorithm} for {suite}, "
            f"which have {', '.join(known) or 'none'}"
        )


TABLES = ("tasks", "variants", "search")
Entry = tuple[str, yaml.Node, str]  # key, node, where


class _SettingsFile:
    """One settings file: fields, and the tables `tasks`, `variants` and `search`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.name = readable(path)
        self.places = places_by_key(self.name, read_mapping(path))
        self.variants = self._mapping(self.places["variants"][0]) if "variants" in self.places else {}

    def _mapping(self, node: yaml.Node) -> dict[str, tuple[yaml.Node, str]]:
        if not isinstance(node, yaml.MappingNode):
            where = f"{self.name}: line {node.start_mark.line + 1}"
            raise UserError(f"{where}: must hold lines such as `seed: 0`, not {shown(node)}")
        return places_by_key(self.name, node)

    def task(self) -> str | None:
        """The task that the file itself names."""
        if "task" not in self.places:
            return None
        node, where = self.places["task"]
        return decode(node, str, f"{where}: task")

    def entries(self, name: str, variant: str | None = None, table: str | None = None) -> Iterator[Entry]:
        """The fields that hold for the task `name` (within its suite), in the order in which later ones win.

        variant: those of the variant's entries; table "search": those of the search space.
        """
        places = self.places
        if variant is not None:
            places = self._mapping(self.variants[variant][0]) if variant in self.variants else {}
        if table is not None:
            places = self._mapping(places[table][0]) if table in places else {}
        tables = TABLES if places is self.places else ("tasks",)
        for key, (node, where) in places.items():
            if key not in tables:
                yield key, node, where
        tasks = self._mapping(places["tasks"][0]) if "tasks" in places else {}
        for patterns, (node, _) in tasks.items():
            if any(fnmatch.fnmatchcase(name, pattern.strip()) for pattern in patterns.split(",")):
                for key, (value, where) in self._mapping(node).items():
                    yield key, value, where
