"""The command line: strict decoding of files and flags, one clear sentence for each mistake, complete help."""

import dataclasses
import functools
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Optional, Tuple

import pytest

from algorithms.dipole import DIPOLEConfig
from common.errors import UserError, exit_on_user_error
from harness.command_line import parse_config, parse_configs, run_command
from harness.config_file import config_to_yaml, load_config

SOURCE_OF = functools.cache(inspect.getsource)
ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    task: str = "suite/name"  # <suite>/<name>
    label: Optional[str] = None  # null = none
    offline_steps: int = 1_000_000  # 100% of the updates, %s and %(nothing)d included
    learning_rate: float = 3e-4  # of Adam
    clip: Optional[float] = None  # null = no clipping
    layer_norm: bool = False  # layer norm
    hidden_dims: Tuple[int, ...] = (512, 512)  # hidden sizes
    rates: Tuple[float, ...] = ()  # some rates
    final_report: Tuple[str, ...] = ()  # options to sweep
    value_aggregation: str = "min"  # min | mean
    greediness: float = 0.0  # omega
    inverse_temperature: float = 1.0  # beta
    shift: float = 0.0  # k
    num_candidates: int = 32  # N
    target_candidates: int = 1  # of the targets
    target_rate: float = 0.005  # tau
    discount: float = 0.99  # gamma
    eval_interval: int = 100  # updates between evaluations

    def __post_init__(self):
        if self.value_aggregation not in ("min", "mean"):
            raise ValueError(f"value_aggregation is {self.value_aggregation!r};\nchoose one of min, mean")
        if self.num_candidates < self.target_candidates:
            raise ValueError("there must not be fewer num_candidates than target_candidates")


def load(tmp_path, text: str) -> ToyConfig:
    path = tmp_path / "toy.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(ToyConfig, path)


def file_error(tmp_path, text: str) -> str:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{tmp_path / 'toy.yaml'}: ")
    return message.removeprefix(f"{tmp_path / 'toy.yaml'}: ")


def flag_error(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_config(ToyConfig, list(argv))
    message = str(caught.value)
    assert "\n" not in message and message.startswith("command line: ")
    return message.removeprefix("command line: ")


# field, text, value: read alike from a file and from the command line
ACCEPTED = [
    ("task", "exorl/walker", "exorl/walker"),
    ("label", "null", None),
    ("label", "a b", "a b"),
    ("offline_steps", "5000", 5000),
    ("offline_steps", "1_000_000", 1_000_000),
    ("offline_steps", "1e6", 1_000_000),
    ("offline_steps", "2.0", 2),
    ("offline_steps", "-3", -3),
    ("offline_steps", "12345678901234567891", 12345678901234567891),
    ("learning_rate", "3e-4", 3e-4),
    ("learning_rate", "1e-3", 1e-3),
    ("learning_rate", "1.0e-3", 1e-3),
    ("learning_rate", ".5", 0.5),
    ("learning_rate", "1", 1.0),
    ("clip", "null", None),
    ("clip", "1e1", 10.0),
    ("layer_norm", "true", True),
    ("layer_norm", "False", False),
    ("hidden_dims", "[8]", (8,)),
    ("hidden_dims", "[]", ()),
    ("hidden_dims", "[512, 1e2]", (512, 100)),
    ("rates", "[1, 3e-4]", (1.0, 3e-4)),
    ("final_report", '["greediness=0,1", num_candidates=1]', ("greediness=0,1", "num_candidates=1")),
]

# field, text, what the message says of the value
REFUSED = [
    ("offline_steps", "0.7", "must be a whole number such as 10, not 0.7"),
    ("offline_steps", "1.5e0", "not 1.5e0"),
    ("offline_steps", "1e23", "not 1e23"),
    ("offline_steps", "true", "not true"),
    ("offline_steps", "abc", "not abc"),
    ("offline_steps", "null", "not null"),
    ("offline_steps", "'5'", 'not "5"'),
    ("offline_steps", "010", "not 010"),
    ("offline_steps", "1:30", "not 1:30"),
    ("offline_steps", "[1]", "not [1]"),
    ("offline_steps", "{a: 1}", "not a mapping"),
    ("learning_rate", "abc", "must be a finite number such as 0.5, not abc"),
    ("learning_rate", "nan", "not nan"),
    ("learning_rate", ".nan", "not .nan"),
    ("learning_rate", ".inf", "not .inf"),
    ("learning_rate", "inf", "not inf"),
    ("learning_rate", "1e999", "not 1e999"),
    ("learning_rate", "true", "not true"),
    ("learning_rate", "'3e-4'", 'not "3e-4"'),
    ("clip", "None", "must be a finite number such as 0.5, or null, not None"),
    ("label", "None", "or null, not None"),
    ("task", "null", "must be text"),
    ("layer_norm", "'false'", 'must be true or false (unquoted) such as true, not "false"'),
    ("layer_norm", "yes", "not yes"),
    ("layer_norm", "1", "not 1"),
    ("layer_norm", "maybe", "not maybe"),
    ("hidden_dims", "512", "must be a list such as [10, 10], not 512"),
    ("hidden_dims", "'512'", 'not "512"'),
    ("hidden_dims", "(512, 512)", "not (512, 512)"),
    ("hidden_dims", "[512, 0.7]", "not [512, 0.7]"),
    ("hidden_dims", "[512, true]", "not [512, true]"),
    ("hidden_dims", "[512, [3]]", "not [512, [3]]"),
    ("final_report", "greediness=0", 'must be a list such as ["name", "name"], not greediness=0'),
    ("final_report", "[1]", "not [1]"),
]

# name, the field that the message suggests
UNKNOWN = [
    ("discont", "discount"),
    ("eval-interval", "eval_interval"),
    ("omega", "greediness"),
    ("cfg", "greediness (= cfg - 1)"),
    ("beta", "inverse_temperature"),
    ("k", "shift"),
    ("N", "num_candidates"),
    ("num_samples", "num_candidates"),
    ("num_samples_fortrain", "target_candidates"),
    ("tau", "target_rate"),
    ("gamma", "discount"),
    ("lr", "learning_rate"),
    ("q_agg", "value_aggregation"),
    ("env", "task"),
    ("env_name", "task"),
    ("dataset_name", "task"),
    ("eval_freq", "eval_interval"),
    ("train_steps", "offline_steps"),
    ("max_timesteps", "offline_steps"),
]


@pytest.fixture(autouse=True)
def read_the_source_once(monkeypatch):
    """pyrallis parses this file again for the comment of each field, which would take most of the time."""
    monkeypatch.setattr(inspect, "getsource", SOURCE_OF)


# ---- Values ----


@pytest.mark.parametrize("field, text, value", ACCEPTED)
def test_value_is_accepted_from_file_and_command_line(tmp_path, field, text, value):
    from_file = getattr(load(tmp_path, f"{field}: {text}\n"), field)
    from_flag = getattr(parse_config(ToyConfig, [f"--{field}={text}"]), field)
    assert from_file == from_flag == value
    assert type(from_file) is type(from_flag) is type(value)


@pytest.mark.parametrize("field, text, words", REFUSED)
def test_value_is_refused_from_file_and_command_line(tmp_path, field, text, words):
    message = file_error(tmp_path, f"# comment\n{field}: {text}\n")
    assert message.startswith(f"line 2: {field} must be ") and words in message
    message = flag_error(f"--{field}", text)
    assert message.startswith(f"--{field} must be ") and words in message


def test_text_in_a_file_is_quoted_where_yaml_reads_something_else(tmp_path):
    for text in ("on", "5", "0.5", "2024-01-01", "null", ""):
        assert "quoted" in file_error(tmp_path, f"task: {text}")
        assert load(tmp_path, f'task: "{text}"').task == text


@pytest.mark.parametrize("text", ["on", "5", "true", "a: b", "[x", "# x", "", "~"])
def test_text_on_the_command_line_is_taken_as_it_stands(text):
    for field in ("task", "label"):
        assert getattr(parse_config(ToyConfig, [f"--{field}", text]), field) == text


def test_empty_or_broken_flag_values_are_refused():
    assert flag_error("--offline_steps", "").startswith("--offline_steps must be a whole number")
    assert flag_error("--clip=").startswith("--clip must be a finite number")
    assert flag_error("--hidden_dims", "[512, 512").startswith("--hidden_dims: line 1: not valid YAML")


# ---- Files ----


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n"])
def test_file_without_fields_is_refused(tmp_path, text):
    assert "seed: 0" in file_error(tmp_path, text)


@pytest.mark.parametrize("text", ["- task\n", "task\n", "[task, x]\n", "5\n"])
def test_file_without_mapping_is_refused(tmp_path, text):
    assert file_error(tmp_path, text).startswith("must hold lines such as")


def test_duplicate_key_is_refused(tmp_path):
    assert (
        file_error(tmp_path, "discount: 0.9\ntask: a\ndiscount: 0.9\n") == "line 3: discount is given twice, keep one"
    )


@pytest.mark.parametrize("text", ["task: [a\n", "task: a: b\n", "task: 'a\n", "task: *a\n", "\ttask: a\n", "a: \x00\n"])
def test_invalid_yaml_is_refused(tmp_path, text):
    assert "not valid YAML" in file_error(tmp_path, text)


@pytest.mark.parametrize(
    "text", ["task: !!python/name:os.system\n", "task: !made_up x\n", "offline_steps: !!int '3'\n", "clip: !x 3\n"]
)
def test_yaml_tags_are_refused(tmp_path, text):
    assert "must be" in file_error(tmp_path, text)


@pytest.mark.parametrize("text", ["actor: {layers: 2}\n", "? [a, b]\n: 1\n", "<<: {task: a}\n", "1: 2\n"])
def test_keys_that_are_no_field_are_refused(tmp_path, text):
    assert "is not a field of ToyConfig, --help lists the fields" in file_error(tmp_path, text)


def test_unreadable_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"absent.yaml: cannot be read \(No such file"):
        load_config(ToyConfig, tmp_path / "absent.yaml")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory"):
        parse_config(ToyConfig, ["--config", str(tmp_path)])
    (tmp_path / "latin.yaml").write_bytes("task: Zürich\n".encode("latin-1"))
    with pytest.raises(UserError, match="latin.yaml: is not UTF-8"):
        load_config(ToyConfig, tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    "config",
    [
        ToyConfig(),
        ToyConfig(label="x", clip=1e-12, learning_rate=1e30, offline_steps=-5, layer_norm=True, hidden_dims=()),
        ToyConfig(task="on", label="null", final_report=("a: b", "5", "", "greediness=0,1", "[x", "#", "'\"")),
        ToyConfig(task="two\nlines", label="Zürich " * 30 + "end", rates=(1.0, 1e-5, 1e16), hidden_dims=(1,) * 80),
        ToyConfig(task="---", label="...", final_report=("-", "?", "!x", "&x", "*x", "%x", "@x", "`x")),
    ],
)
def test_config_to_yaml_round_trips(tmp_path, config):
    assert load(tmp_path, config_to_yaml(config)) == config


def test_config_to_yaml_has_one_line_per_field_in_order():
    lines = config_to_yaml(ToyConfig(hidden_dims=(512,) * 80)).splitlines()
    assert [line.split(":")[0] for line in lines] == [field.name for field in dataclasses.fields(ToyConfig)]


# ---- Names ----


@pytest.mark.parametrize("name, suggestion", UNKNOWN)
def test_unknown_name_is_refused_with_the_nearest_field(tmp_path, name, suggestion):
    message = f"{name} is not a field of ToyConfig, did you mean {suggestion}?"
    assert file_error(tmp_path, f"{name}: 1\n") == f"line 1: {message}"
    message = f"--{name} is not a field of ToyConfig, did you mean --{suggestion}?"
    assert flag_error(f"--{name}", "1") == flag_error(f"--{name}=1") == message


@pytest.mark.parametrize("name", ["rho", "cfg_fortrain", "zzz"])
def test_only_fields_of_the_class_are_suggested(tmp_path, name):
    assert "is not a field of ToyConfig, --help lists the fields" in file_error(tmp_path, f"{name}: 1\n")
    assert "is not a field of ToyConfig, --help lists the fields" in flag_error(f"--{name}", "1")


def test_flags_are_not_abbreviated():
    assert "did you mean --hidden_dims?" in flag_error("--hidden", "[8]")
    assert "did you mean --config?" in flag_error("--config_path", "x.yaml")
    assert "did you mean --config?" in flag_error("--conf", "x.yaml")
    assert "did you mean --restart?" in flag_error("--restar")
    assert "did you mean --num_candidates?" in flag_error("-N", "1")


# ---- The shape of the command line ----


def test_flags_override_the_file(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text("task: a\ndiscount: 0.5\n")
    for argv in (["--config", str(path), "--discount", "0.7"], ["--discount=0.7", f"--config={path}"]):
        assert parse_configs(ToyConfig, argv) == ([ToyConfig(task="a", discount=0.7)], False)
    assert parse_configs(ToyConfig, []) == ([ToyConfig()], False)


def test_restart_is_a_bare_flag_and_no_field(tmp_path):
    assert parse_configs(ToyConfig, ["--restart", "--task", "a"]) == ([ToyConfig(task="a")], True)
    assert flag_error("--restart=true").startswith("--restart: ignored explicit argument")
    assert "'true' belongs to no flag" in flag_error("--restart", "true")
    assert "restart is not a field" in file_error(tmp_path, "restart: true\n")


def test_seeds_give_one_config_each(tmp_path):
    configs, restart = parse_configs(DIPOLEConfig, ["--seeds", "3", "0", "1e1", "--task", "a", "--restart"])
    assert configs == [DIPOLEConfig(task="a", seed=seed) for seed in (3, 0, 10)] and restart
    with pytest.raises(UserError, match="--seed and --seeds are both given, keep one"):
        parse_configs(DIPOLEConfig, ["--seeds", "1", "--seed", "2"])
    assert flag_error("--seeds", "1", "1").startswith("--seeds has a seed twice")
    assert flag_error("--seeds", "1.5").startswith("--seeds must be a whole number")
    assert flag_error("--seeds").startswith("--seeds: expected at least one argument")
    assert "seeds is not a field" in file_error(tmp_path, "seeds: [0, 1]\n")


@pytest.mark.parametrize("argv", [["--task"], ["--task", "--discount", "0.5"], ["--config"], ["--layer_norm"]])
def test_missing_value_is_refused(argv):
    assert flag_error(*argv).startswith(f"{argv[0]}: expected one argument, write --field value")


def test_value_that_begins_with_a_dash():
    assert parse_config(ToyConfig, ["--shift", "-1.5"]).shift == -1.5
    assert parse_config(ToyConfig, ["--shift=-1e-3"]).shift == -1e-3
    assert "--field=value where the value begins with a dash" in flag_error("--shift", "-1e-3")


@pytest.mark.parametrize("again", [["--task", "a"], ["--task=b"]])
def test_flag_given_twice_is_refused(again):
    assert flag_error("--task", "a", *again) == "--task is given twice, keep one"


@pytest.mark.parametrize("argv", [["task=a"], ["--hidden_dims", "8", "8"], ["toy.yaml"]])
def test_stray_argument_is_refused(argv):
    assert "belongs to no flag, write --field value" in flag_error(*argv)


def test_error_of_the_dataclass_names_file_or_flag(tmp_path):
    words = "value_aggregation is 'max'; choose one of min, mean"
    assert file_error(tmp_path, "value_aggregation: max\n") == words
    assert flag_error("--value_aggregation", "max") == f"--{words}"
    assert flag_error("--target_candidates", "99").startswith("there must not be fewer num_candidates")


def test_type_that_configs_must_not_use_is_a_programming_error():
    mixed = dataclasses.make_dataclass("MixedConfig", [("pair", Tuple[int, int], (1, 2))])
    with pytest.raises(TypeError, match="must not have the type"):
        parse_config(mixed, [])


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_complete(capsys, flag):
    with pytest.raises(SystemExit) as caught:
        parse_config(ToyConfig, ["--offline_steps", "abc", flag])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for line in (
        "--config FILE Path",
        "--restart remove",
        "--task str <suite>/<name> (default: suite/name)",
        "--label str|null null = none (default: null)",
        "--offline_steps int 100% of the updates, %s and %(nothing)d included (default: 1000000)",
        "--layer_norm bool layer norm (default: false)",
        "--hidden_dims [int, ...] hidden sizes (default: [512, 512])",
        "--rates [float, ...] some rates (default: [])",
        "--learning_rate float of Adam (default: 0.0003)",
    ):
        assert line in text
    for field in dataclasses.fields(ToyConfig):
        assert f"--{field.name} " in text


# ---- Commands ----


def test_run_command_trains_and_hands_restart_on(monkeypatch):
    calls = []
    monkeypatch.setattr(sys, "argv", ["dipole.py", "--seed", "3"])
    run_command(DIPOLEConfig, lambda configs, restart: calls.append((configs[0].seed, restart)))
    monkeypatch.setattr(sys, "argv", ["dipole.py", "--seed", "3", "--restart"])
    run_command(DIPOLEConfig, lambda configs, restart: calls.append((configs[0].seed, restart)))
    assert calls == [(3, False), (3, True)]


def test_run_fields_are_checked_before_training(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dipole.py", "--eval_interval", "0"])
    with pytest.raises(SystemExit) as exit:
        run_command(DIPOLEConfig, lambda config, restart: pytest.fail("trained"))
    assert exit.value.code == 2
    assert "eval_interval is 0, it must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error, code, line", [(UserError("x"), 2, "error: x\n"), (KeyboardInterrupt(), 130, "interrupted\n")]
)
def test_exit_codes(capsys, error, code, line):
    with pytest.raises(SystemExit) as caught, exit_on_user_error():
        raise error
    assert caught.value.code == code and capsys.readouterr().err == line


def test_other_exceptions_keep_their_traceback():
    with pytest.raises(RuntimeError), exit_on_user_error():
        raise RuntimeError


def test_mistake_in_a_real_command_prints_one_line(tmp_path):
    script = tmp_path / "toy.py"
    script.write_text(
        "from algorithms.dipole import DIPOLEConfig\n"
        "from harness.command_line import run_command\n"
        "run_command(DIPOLEConfig, lambda configs, restart: print('steps', configs[0].offline_steps))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def command(*argv: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, script, *argv], env=environment, capture_output=True, text=True)

    done = command("--offline_steps", "1e3")
    assert (done.returncode, done.stdout, done.stderr) == (0, "steps 1000\n", "")
    done = command("--omega", "1")
    line = "error: command line: --omega is not a field of DIPOLEConfig, did you mean --greediness?\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def commands() -> list:
    """The modules that are run as `python -m MODULE` with flags, the algorithms aside."""
    files = [path for folder in ("envs", "harness", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
    found = [path for path in files if "add_argument(" in path.read_text(encoding="utf-8")]
    return [path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in found]


@pytest.mark.parametrize("module", [name for name in commands() if name != "harness.command_line"])
def test_a_wrong_flag_of_any_command_is_one_sentence(module, monkeypatch, capsys):
    if module == "benchmarks.against_jax":
        pytest.importorskip("jax")
    command = importlib.import_module(module)
    monkeypatch.setattr("sys.argv", ["command", "--no_such_flag", "1"])
    with pytest.raises(SystemExit) as stop:
        command.main()
    printed = capsys.readouterr()
    assert (stop.value.code, printed.out) == (2, "")
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
