"""The command line: strict decoding of files and flags, one clear sentence for each mistake, complete help."""

import dataclasses
import errno
import importlib
import inspect
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal, Optional, Tuple

import pytest
import yaml

from common.errors import CommandParser, UserError, exit_on_user_error
from common.files import readable
from harness import command_line
from harness import config as settings_module
from harness.command_line import parse_command
from harness.comparison import workers
from harness.config import RunConfig, config_to_yaml, field_types, load_settings, stored_config

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    depth: int = 2  # 100% of the layers, %s and %(nothing)d included
    learning_rate: float = 3e-4  # of Adam
    clip: Optional[float] = None  # null = no clipping
    layer_norm: bool = False  # layer norm
    hidden_dims: Tuple[int, ...] = (512, 512)  # hidden sizes
    rates: Tuple[float, ...] = ()  # some rates
    names: Tuple[str, ...] = ()  # some names
    note: Optional[str] = None  # null = none
    value_aggregation: Literal["min", "mean"] = "min"  # over the critics
    greediness: float = 0.0  # omega
    inverse_temperature: float = 1.0  # beta
    shift: float = 0.0  # k
    num_candidates: int = 32  # N
    target_candidates: int = 1  # of the targets
    target_rate: float = 0.005  # tau
    discount: float = 0.99  # gamma

    def __post_init__(self):
        if self.num_candidates < self.target_candidates:
            raise ValueError("there must not be fewer\nnum_candidates than target_candidates")


@pytest.fixture(autouse=True)
def no_settings_files(tmp_path, monkeypatch):
    """The defaults are the classes' own."""
    monkeypatch.setattr(settings_module, "CONFIGS", tmp_path / "configs")


def value_of(settings, field):
    return getattr(settings.run if hasattr(settings.run, field) else settings.config, field)


def load(tmp_path, text: str):
    path = tmp_path / "toy.yaml"
    path.write_text(text, encoding="utf-8")
    return load_settings(ToyConfig, path=path)


def parse(*argv: str):
    return parse_command(ToyConfig, list(argv)).settings


@pytest.mark.parametrize("folder, shown", [("below", "toy.yaml"), ("beside", "{path}")])
def test_messages_name_a_settings_file_from_the_working_directory_or_in_full(tmp_path, monkeypatch, folder, shown):
    """Not by a way up and down again, even where that is shorter."""
    path = tmp_path / "toy.yaml"
    path.write_text("depth: 1.5\n", encoding="utf-8")
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path if folder == "below" else tmp_path / "a")
    with pytest.raises(UserError) as caught:
        load_settings(ToyConfig, path=path)
    assert str(caught.value).startswith(f"{shown.format(path=path)}: ")


def error_of(source: str, call, *arguments) -> str:
    """What the call's one sentence says after its source."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{source}: ")
    return message.removeprefix(f"{source}: ")


def file_error(tmp_path, text: str) -> str:
    return error_of(tmp_path / "toy.yaml", load, tmp_path, text)


def flag_error(*argv: str) -> str:
    return error_of("command line", parse, *argv)


# field, text, value: read alike from a file and from the command line
ACCEPTED = [
    ("task", "exorl/walker", "exorl/walker"),
    ("value_aggregation", "mean", "mean"),
    ("batch_size", "1e3", 1_000),
    ("note", "null", None),
    ("note", "a b", "a b"),
    ("depth", "5000", 5000),
    ("depth", "1_000_000", 1_000_000),
    ("depth", "1e6", 1_000_000),
    ("depth", "2.0", 2),
    ("depth", "-3", -3),
    ("depth", "12345678901234567891", 12345678901234567891),
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
    ("names", '["greediness=0,1", num_candidates=1]', ("greediness=0,1", "num_candidates=1")),
]

# field, text, what the message says of the value
REFUSED = [
    ("depth", "0.7", "must be a whole number such as 10, not 0.7"),
    ("depth", "1.5e0", "not 1.5e0"),
    ("depth", "1e23", "not 1e23"),
    ("depth", "true", "not true"),
    ("depth", "abc", "not abc"),
    ("depth", "null", "not null"),
    ("depth", "'5'", 'not "5"'),
    ("depth", "010", "not 010"),
    ("depth", "1:30", "not 1:30"),
    ("depth", "[1]", "not [1]"),
    ("depth", "{a: 1}", "not a mapping"),
    ("learning_rate", "abc", "must be a finite number such as 0.5, not abc"),
    ("learning_rate", "nan", "not nan"),
    ("learning_rate", ".nan", "not .nan"),
    ("learning_rate", ".inf", "not .inf"),
    ("learning_rate", "inf", "not inf"),
    ("learning_rate", "1e999", "not 1e999"),
    ("learning_rate", "true", "not true"),
    ("learning_rate", "'3e-4'", 'not "3e-4"'),
    ("clip", "None", "must be a finite number such as 0.5, or null, not None"),
    ("note", "None", "or null, not None"),
    ("task", "null", "must be text"),
    ("value_aggregation", "max", "must be one of min, mean, not max"),
    ("device", "tpu", "must be one of auto, cpu, cuda, not tpu"),
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
    ("names", "greediness=0", 'must be a list such as ["name", "name"], not greediness=0'),
    ("names", "[1]", "not [1]"),
]

# name, the field that the message suggests
UNKNOWN = [
    ("discont", "discount"),
    ("eval-interval", "eval_interval"),
    ("k", "shift"),
    ("q_agg", "value_aggregation"),  # of two, the one that the class has
    ("env_name", "task"),
    ("max_timesteps", "offline_steps"),
]


# ---- Values ----


@pytest.mark.parametrize("field, text, value", ACCEPTED)
def test_value_is_accepted_from_file_and_command_line(tmp_path, field, text, value):
    from_file = value_of(load(tmp_path, f"{field}: {text}\n"), field)
    from_flag = value_of(parse(f"--{field}={text}"), field)
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
        assert load(tmp_path, f'note: "{text}"').config.note == text


@pytest.mark.parametrize("text", ["on", "5", "true", "a: b", "[x", "# x", "", "~"])
def test_text_on_the_command_line_is_taken_as_it_stands(text):
    assert parse("--note", text).config.note == text


def test_empty_or_broken_flag_values_are_refused():
    assert flag_error("--depth", "").startswith("--depth must be a whole number")
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
    "text", ["task: !!python/name:os.system\n", "task: !made_up x\n", "depth: !!int '3'\n", "clip: !x 3\n"]
)
def test_yaml_tags_are_refused(tmp_path, text):
    assert "must be" in file_error(tmp_path, text)


@pytest.mark.parametrize("text", ["actor: {layers: 2}\n", "? [a, b]\n: 1\n", "<<: {task: a}\n", "1: 2\n"])
def test_keys_that_are_no_field_are_refused(tmp_path, text):
    assert "is not a field of ToyConfig, --help lists the fields" in file_error(tmp_path, text)


def test_unreadable_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"absent.yaml: cannot be read \(.*No such file"):
        load_settings(ToyConfig, path=tmp_path / "absent.yaml")
    with pytest.raises(UserError, match=r"cannot be read \(.*Is a directory"):
        parse("--config", str(tmp_path))
    (tmp_path / "latin.yaml").write_bytes("task: Zürich\n".encode("latin-1"))
    with pytest.raises(UserError, match="latin.yaml: cannot be read"):
        load_settings(ToyConfig, path=tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    "run, config",
    [
        (RunConfig(label="x"), ToyConfig()),
        (
            RunConfig(label="x", sweep=("a: b", "5", "", "greediness=0,1", "[x", "#", "'\"")),
            ToyConfig(note="x", clip=1e-12, learning_rate=1e30, depth=-5, layer_norm=True, hidden_dims=()),
        ),
        (
            RunConfig(label="null", task="two\nlines", run_dir="---"),
            ToyConfig(note="Zürich " * 30 + "end", rates=(1.0, 1e-5, 1e16), hidden_dims=(1,) * 80),
        ),
        (
            RunConfig(label="...", task="on"),
            ToyConfig(note="null", names=("-", "?", "!x", "&x", "*x", "%x", "@x", "`x")),
        ),
    ],
)
def test_config_to_yaml_round_trips(tmp_path, run, config):
    text = config_to_yaml(run, config)
    (tmp_path / "toy.yaml").write_text(text, encoding="utf-8")
    assert stored_config(tmp_path / "toy.yaml", ToyConfig) == (run, config)
    assert list(yaml.safe_load(text)) == list(field_types(ToyConfig))


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
        found = parse(*argv)
        assert (found.run.task, found.config) == ("a", ToyConfig(discount=0.7))
        assert (found.sources["discount"], found.sources["task"]) == ("command line", f"{path}: line 1")
    assert parse().config == ToyConfig()


def test_restart_is_a_bare_flag_and_no_field(tmp_path):
    command = parse_command(ToyConfig, ["--restart", "--task", "a"])
    assert command.restart and command.settings.run.task == "a" and not command.show
    assert flag_error("--restart=true").startswith("--restart: ignored explicit argument")
    assert "'true' belongs to no flag" in flag_error("--restart", "true")
    assert "restart is not a field" in file_error(tmp_path, "restart: true\n")


def test_seeds(tmp_path):
    command = parse_command(ToyConfig, ["--seeds", "3", "0", "1e1", "--task", "a", "--restart"])
    assert command.seeds == (3, 0, 10) and command.restart
    assert flag_error("--seeds", "1", "--seed", "2") == "--seed and --seeds are both given, keep one"
    assert flag_error("--seeds", "1", "1").startswith("--seeds has a seed twice")
    assert flag_error("--seeds", "1.5").startswith("--seeds must be a whole number")
    assert flag_error("--seeds").startswith("--seeds: expected at least one argument")
    assert "seeds is not a field" in file_error(tmp_path, "seeds: [0, 1]\n")


@pytest.mark.parametrize("argv", [["--task"], ["--task", "--discount", "0.5"], ["--config"], ["--layer_norm"]])
def test_missing_value_is_refused(argv):
    assert flag_error(*argv).startswith(f"{argv[0]}: expected one argument, write --field value")


def test_value_that_begins_with_a_dash():
    assert parse("--shift", "-1.5").config.shift == -1.5
    assert parse("--shift=-1e-3").config.shift == -1e-3
    assert "--field=value where the value begins with a dash" in flag_error("--shift", "-1e-3")


@pytest.mark.parametrize("again", [["--task", "a"], ["--task=b"]])
def test_flag_given_twice_is_refused(again):
    assert flag_error("--task", "a", *again) == "--task is given twice, keep one"


@pytest.mark.parametrize("argv", [["task=a"], ["--hidden_dims", "8", "8"], ["toy.yaml"]])
def test_stray_argument_is_refused(argv):
    assert "belongs to no flag, write --field value" in flag_error(*argv)


def test_what_the_methods_config_refuses_is_one_sentence():
    with pytest.raises(UserError, match="^settings: there must not be fewer num_candidates than target_candidates$"):
        parse("--target_candidates", "99")


def test_type_that_configs_must_not_use_is_a_programming_error():
    mixed = dataclasses.make_dataclass("MixedConfig", [("pair", Tuple[int, int], (1, 2))])
    with pytest.raises(TypeError, match="must not have the type"):
        parse_command(mixed, [])


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_complete(capsys, flag):
    with pytest.raises(SystemExit) as caught:
        parse("--depth", "abc", flag)
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for line in (
        "--config FILE settings file",
        "--variant NAME take the entries",
        "--seeds SEED ... train these seeds",
        "--restart remove",
        "--task str <suite>/<name>: the data set and its environment (default: exorl/",
        "--note str|null null = none (default: null)",
        "--device auto|cpu|cuda where the networks are",
        "--value_aggregation min|mean over the critics (default: min)",
        "--depth int 100% of the layers, %s and %(nothing)d included (default: 2)",
        "--layer_norm bool layer norm (default: false)",
        "--hidden_dims [int, ...] hidden sizes (default: [512, 512])",
        "--rates [float, ...] some rates (default: [])",
        "--learning_rate float of Adam (default: 0.0003)",
    ):
        assert line in text
    for name in field_types(ToyConfig):
        assert f"--{name} " in text


# ---- Commands ----


def toy_command(tmp_path, body: str):
    """Runs a script with ToyConfig's command line; `body` defines what trains."""
    script = tmp_path / "toy.py"
    source = inspect.getsource(ToyConfig)
    script.write_text(
        "import dataclasses, sys, types\nfrom typing import Literal, Optional, Tuple\n"
        f"{source}\n{body}\n"
        "sys.modules['harness.train'] = types.SimpleNamespace(train_run=train_run)\n"
        "from harness.command_line import main\n"
        "main(None, ToyConfig)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def command(*argv: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, script, *argv], env=environment, capture_output=True, text=True)

    return command


def test_the_command_trains_with_its_settings(tmp_path):
    command = toy_command(
        tmp_path, "def train_run(agent, run, config, restart): print(run.batch_size, config, restart)"
    )
    done = command("--batch_size", "1e3", "--shift", "2", "--restart", "--task", "own/reach")
    first, second = done.stdout.splitlines()
    assert first == "settings of own/reach: the defaults, no settings file is for them"
    assert second == f"1000 {ToyConfig(shift=2.0)} True" and (done.returncode, done.stderr) == (0, "")
    done = command("--omega", "1")
    line = "error: command line: --omega is not a field of ToyConfig, did you mean --greediness?\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    done = command("--eval_interval", "0")
    assert (done.returncode, done.stderr) == (2, "error: config: eval_interval is 0, it must be at least 1\n")
    done = command("--show", "--shift", "2", "--task", "own/reach")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == len(field_types(ToyConfig))
    assert re.search(r"^shift: 2.0 +# command line$", done.stdout, re.M)


def test_a_reader_that_leaves_is_no_traceback(tmp_path):
    script = tmp_path / "long.py"
    script.write_text(
        "from common.errors import exit_on_user_error\n"
        "with exit_on_user_error():\n    [print('line', flush=True) for _ in range(100_000)]\n"
    )
    command = f"{sys.executable} {script} | head -1; echo ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"line\n{128 + signal.SIGPIPE}\n", "")


def test_each_seed_is_a_process_and_the_worst_exit_code_counts(tmp_path):
    body = (
        "def train_run(agent, run, config, restart):\n"
        "    print('trained', run.task)\n"
        "    raise SystemExit(3 if run.seed == 1 else 0)"
    )
    command = toy_command(tmp_path, body)
    done = command("--task", "own/reach", "--seeds", "0", "1", "2")
    assert done.returncode == 3
    assert {f"seed {seed}: trained own/reach" for seed in (0, 1, 2)} < set(done.stdout.splitlines())
    done = command("--seeds=2", "--task", "own/reach")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "seed 2: trained own/reach")


def test_a_signal_reaches_every_seed_and_starts_no_further_one(tmp_path):
    body = (
        "import time, pathlib\n"
        "def train_run(agent, run, config, restart):\n"
        f"    pathlib.Path({str(tmp_path)!r}, f'begun_{{run.seed}}').touch()\n"
        "    time.sleep(60)"
    )
    toy_command(tmp_path, body)
    arguments = [sys.executable, tmp_path / "toy.py", "--threads", "1", "--seeds", *map(str, range(40))]
    process = subprocess.Popen(arguments, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("begun_*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert len(list(tmp_path.glob("begun_*"))) < 40


def test_a_seed_takes_the_place_of_the_one_that_ended(tmp_path):
    body = (
        "import os, pathlib, time\n"
        "import harness.command_line as command_line\n"
        "command_line._places = lambda run, seeds: [{'GPU': '0'}, {'GPU': '1'}]\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "def train_run(agent, run, config, restart):\n"
        "    print('on', os.environ['GPU'])\n"
        "    (folder / f'begun_{run.seed}').touch()\n"
        "    patience = time.monotonic() + 60\n"
        "    while run.seed == 0 and not (folder / 'begun_3').exists() and time.monotonic() < patience:\n"
        "        time.sleep(0.05)"
    )
    done = toy_command(tmp_path, body)("--task", "own/reach", "--seeds", "0", "1", "2", "3")
    first, *others = (re.search(rf"^seed {seed}: on (\d)$", done.stdout, re.M)[1] for seed in range(4))
    assert len(set(others)) == 1 and first not in others


def test_at_a_time_are_as_many_runs_as_have_cores(monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 8)
    assert command_line._places(RunConfig(device="cpu"), 10) == [{"OMP_NUM_THREADS": "1"}] * 8
    assert command_line._places(RunConfig(device="cpu", threads=3), 10) == [{"OMP_NUM_THREADS": "4"}] * 2
    assert len(command_line._places(RunConfig(device="cpu", threads=16), 10)) == 1
    assert len(command_line._places(RunConfig(device="cpu"), 3)) == 3


def test_seeds_are_dealt_to_gpus_by_their_memory(monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 8)
    monkeypatch.setattr(workers, "visible_gpus", lambda: ["0", "1"])
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (7e9, 8e9))
    assert len(command_line._places(RunConfig(), 10)) == 8  # named by CUDA_VISIBLE_DEVICES, but torch finds none
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    places = command_line._places(RunConfig(), 10)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places] == ["0", "1", "0", "1"]


@pytest.mark.parametrize(
    "error, code, line",
    [
        (UserError("x"), 2, "error: x\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "a.csv"),
            2,
            "error: a.csv: Permission denied; change its permissions and give the same command again\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_exit_codes(capsys, error, code, line):
    with pytest.raises(SystemExit) as caught, exit_on_user_error():
        raise error
    assert caught.value.code == code and capsys.readouterr().err == line


def test_a_flag_is_given_once_but_where_it_is_repeatable():
    parser = CommandParser("a")
    parser.add_argument("--values", nargs="+")
    parser.add_argument("--run", action="append")
    assert parser.parse_args(["--values", "1", "2", "--run", "a", "--run=b"]).run == ["a", "b"]
    with pytest.raises(UserError, match="command line: --values is given twice, keep one"):
        parser.parse_args(["--values", "1", "--run", "a", "--values=2"])
    with pytest.raises(UserError, match="command line: --values is given twice, keep one"):
        parser.parse_known_args(["--values", "1", "--values=2", "--others", "3"])


def test_other_exceptions_keep_their_traceback():
    with pytest.raises(RuntimeError), exit_on_user_error():
        raise RuntimeError


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


def test_a_config_classs_source_is_read_once(monkeypatch):
    """pyrallis asks for it at each of 80 fields, which would be most of a command's start."""
    asked, getsource = [], inspect.getsource

    def counted(each):
        asked.append(each.__name__)
        return getsource(each)

    monkeypatch.setattr(inspect, "getsource", counted)
    parse_command(ToyConfig, [])
    assert sorted(asked) == ["RunConfig", "ToyConfig"] and inspect.getsource is counted


# Beside the standard library and the repository's own. numpy comes with torch; all of this takes a second or two.
HELP_MAY_IMPORT = {"torch", "torchgen", "numpy", "opt_einsum", "mpmath", "sympy", "typing_extensions", "tqdm"}
HELP_MAY_IMPORT |= {"pyrallis", "typing_inspect", "mypy_extensions", "yaml", "cython_runtime"}


@pytest.mark.parametrize(
    "code, may_import",
    [
        ("sys.argv = ['dipole.py', '--help']; runpy.run_path('algorithms/dipole.py', run_name='__main__')", set()),
        ("import harness.train", {"gymnasium", "farama_notifications", "cloudpickle", "h5py"}),
    ],
    ids=["help", "training"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code, may_import):
    """No wandb, matplotlib, mujoco, pandas or jax for the help, nor for the modules of a run."""
    script = (
        f"import atexit, runpy, sys; before = set(sys.modules)\n"
        "atexit.register(lambda: print(*{name.split('.')[0] for name in set(sys.modules) - before}, file=sys.stderr))\n"
        f"{code}"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(done.stderr.split()) - sys.stdlib_module_names - {"harness", "common", "envs"}
    assert {name for name in imported if not name.startswith("_")} <= HELP_MAY_IMPORT | may_import


def test_a_run_with_a_sweep_loads_nothing_of_its_end_before_its_first_update(tmp_path):
    script = (
        "import sys; sys.path.insert(0, 'algorithms'); import dipole\n"
        "from harness.command_line import main\n"
        "class Agent(dipole.DIPOLE):\n"
        "    def update(self, batch): sys.exit('update: ' + ' '.join(name.split('.')[0] for name in sys.modules))\n"
        "if __name__ == '__main__': main(Agent, dipole.DIPOLEConfig)\n"
    )
    (tmp_path / "script.py").write_text(script.replace("'algorithms'", f"{str(ROOT / 'algorithms')!r}"))
    flags = ["--data_dir", str(tmp_path), "--run_dir", str(tmp_path / "runs"), "--collect_episodes", "1"]
    flags += ["--task", "exorl/local_sticky_random/cartpole_swingup", "--sweep", '["greediness=0,1"]']
    command = [sys.executable, str(tmp_path / "script.py"), *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    modules = set(done.stderr.rpartition("update: ")[2].split())
    assert "dm_control" in modules
    assert not modules & {"wandb", "matplotlib", "pandas", "jax", "PIL", "tensorboard"}


def test_a_path_is_named_from_the_working_directory_or_in_full(tmp_path, monkeypatch):
    """A way up and down again would depend on where the checkout lies."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert readable(tmp_path / "work" / "configs" / "a.yaml") == readable("configs/a.yaml") == "configs/a.yaml"
    assert readable(tmp_path / "other" / "a.yaml") == f"{tmp_path}/other/a.yaml"
