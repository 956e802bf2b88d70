"""Files from strangers: none runs code, and a damaged one is refused in one line."""

import io
import json
import os
import time
import zipfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from algorithms.dipole import DIPOLE, DIPOLEConfig
from common.errors import UserError
from common.untrusted import load_npz
from envs.minari import open_storage
from harness.config import stored_config
from harness.run_folder import read_checkpoint
from tests.toy_run import toy_run


class Touches:
    """Unpickling it makes the file `path`, as `os.system` could do anything."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def refuses(message: str, call, *arguments) -> None:
    """The call fails with one line that matches, and in an instant."""
    started = time.perf_counter()
    with pytest.raises((UserError, ValueError, MemoryError), match=message) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - started < 15


# ---- checkpoints ----


def test_a_malicious_checkpoint_runs_nothing(tmp_path):
    """Neither the harness nor the agent's own `load`, also where it is otherwise a good checkpoint."""
    folder, trace = toy_run(tmp_path, offline_steps=5, eval_interval=5, eval_episodes=1), tmp_path / "executed"
    path = folder / "checkpoint.pt"
    good = torch.load(path, weights_only=True)
    for bad in (Touches(trace), {"format": Touches(trace)}, good | {"loop": Touches(trace)}):
        torch.save(bad, path)
        refuses("checkpoint.pt: is damaged or no checkpoint", read_checkpoint, path, "dipole")
        with pytest.raises(Exception, match="Weights only load failed"):
            DIPOLE.load(folder)
    torch.save(good | {"loop": Touches(trace)}, path, _use_new_zipfile_serialization=False)
    refuses("checkpoint.pt: is damaged or no checkpoint", read_checkpoint, path, "dipole")
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the sample is no threat, so this test shows nothing"


@pytest.mark.parametrize("key", ["loop", "agent", "config", "observation_dim"])
def test_a_checkpoint_without_its_parts_is_refused(tmp_path, key):
    loop = {"step": 1, "seconds": 1.0, "device": "cpu", "batches": torch.zeros(3), "online": {}}
    whole = {"format": 1, "algorithm": "dipole", "config": {}, "agent": {}, "loop": loop}
    whole |= {"observation_dim": 3, "action_dim": 2}
    path = tmp_path / "checkpoint.pt"
    torch.save(whole, path)
    assert read_checkpoint(path, "dipole")["loop"]["step"] == 1
    for bad in ({name: value for name, value in whole.items() if name != key}, whole | {key: "x"}):
        torch.save(bad, path)
        refuses("is no checkpoint that a run writes", read_checkpoint, path, "dipole")


def test_a_checkpoint_with_one_changed_bit_is_refused(tmp_path):
    """torch itself compares no checksums: it would load other weights."""
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": 1, "algorithm": "dipole", "agent": {"weights": torch.arange(1000.0)}}, path)
    content = bytearray(path.read_bytes())
    place = bytes(content).index(np.arange(1000, dtype=np.float32)[500:510].tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["agent"]["weights"].shape == (1000,), "torch accepts it"
    refuses("differs from its checksum", read_checkpoint, path, "dipole")


def test_a_compressed_checkpoint_is_refused(tmp_path):
    """A run writes none, and a zip bomb is one."""
    path = tmp_path / "checkpoint.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**7))
    refuses("archive/data/0 is compressed", read_checkpoint, path, "dipole")


# ---- npz ----


@pytest.mark.parametrize("shape, dtype", [((10**12, 4), "<f4"), ((3,), "|O"), ((100,), "<f4"), ((3,), "<U80")])
def test_an_array_that_is_not_as_its_header_says_or_no_numbers_is_refused(tmp_path, shape, dtype):
    content, path = io.BytesIO(), tmp_path / "data.npz"
    np.lib.format.write_array_header_1_0(content, {"descr": dtype, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("observations.npy", content.getvalue() + bytes(1000))
    refuses(".", load_npz, path, ("observations",))


def test_an_array_with_one_changed_bit_is_refused(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, observations=np.arange(1000, dtype=np.float32))
    assert np.array_equal(load_npz(path, ("observations", "actions"))["observations"], np.arange(1000))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match="Bad CRC-32"):
        load_npz(path, ("observations",))


# ---- Minari's metadata ----


def metadata_of(path: Path, spec: dict, **changes) -> Path:
    """The folder of a Minari data set whose metadata name `spec` as its environment."""
    path.mkdir()
    (path / "metadata.json").write_text(json.dumps({"data_format": "hdf5", "env_spec": json.dumps(spec), **changes}))
    return path


def test_an_environment_that_is_a_program_is_never_run(tmp_path):
    """gymnasium imports and calls what an env_spec names, with its arguments: here a shell."""
    trace = tmp_path / "executed"
    command = {"command": f"touch {trace}"}
    good = {"id": "Pendulum-v1", "entry_point": gymnasium.registry["Pendulum-v1"].entry_point}
    shell = {"id": "Shell-v0", "entry_point": "os:system", "kwargs": command}
    refuses("names 'os:system' as its environment", open_storage, metadata_of(tmp_path / "a", shell))
    wrapper = {"name": "shell", "entry_point": "subprocess:getoutput", "kwargs": command}
    wrapped = metadata_of(tmp_path / "b", good | {"additional_wrappers": [wrapper]})
    refuses("names 'subprocess:getoutput' as its environment", open_storage, wrapped)
    refuses("names 'os:system'", open_storage, metadata_of(tmp_path / "c", good, eval_env_spec=json.dumps(shell)))
    refuses("is no readable Minari data set", open_storage, metadata_of(tmp_path / "good", good))
    assert not trace.exists()
    with pytest.raises(Exception):  # noqa: B017  (gymnasium's complaint, once the harm is done)
        gymnasium.make(gymnasium.envs.registration.EnvSpec("Shell-v0", "os:system", kwargs=command))
    assert trace.exists(), "the sample is no threat, so this test shows nothing"


# ---- YAML ----


@pytest.mark.parametrize(
    "text",
    [
        'task: !!python/object/apply:os.system ["touch TRACE"]\n',
        'task: !!python/object/new:os.system ["touch TRACE"]\n',
        "!!python/object/apply:os.system [touch TRACE]\n",
        '? !!python/object/apply:os.system ["touch TRACE"]\n: 1\n',
    ],
)
def test_a_malicious_config_runs_nothing(tmp_path, text):
    trace, path = tmp_path / "executed", tmp_path / "config.yaml"
    path.write_text(text.replace("TRACE", str(trace)))
    refuses("config.yaml: ", stored_config, path, DIPOLEConfig)
    assert not trace.exists()


def test_a_config_that_grows_without_end_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    bombs = [f"- &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 12)]
    for text in (
        "seed:\n" + "\n".join(["- &a0 [x, x]", *bombs]),  # 9^11 entries
        "seed: &a [*a, *a]\n",
        "seed: " + "[" * 5000 + "]" * 5000,
    ):
        path.write_text(text)
        refuses("config.yaml: ", stored_config, path, DIPOLEConfig)
