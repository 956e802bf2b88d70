"""Files from strangers: none runs code, leaves its folder, or makes a reader allocate what it only claims to hold."""

import io
import json
import os
import signal
import stat
import time
import zipfile
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
import torch

from algorithms.dipole import DIPOLE, DIPOLEConfig
from common.errors import UserError
from common.untrusted import check_hdf5, load_npz, plain_dataset
from envs.driving.navsim_results import read_result
from envs.exorl.source import open_source, read_episode
from envs.minari import check_metadata
from harness.config import stored_config
from harness.config_file import LARGEST_FILE
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
    loop = {"step": 1, "seconds": 1.0, "device": "cpu", "batches": torch.zeros(3)}
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


def npy_header(shape: tuple, dtype: str) -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": dtype, "fortran_order": False, "shape": shape})
    return content.getvalue()


def write_npz(path: Path, content: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("observations.npy", content)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    "shape, dtype",
    [((10**12, 4), "<f4"), ((10**12,), "|V0"), ((3,), "|O"), ((2**62, 8), "<f8"), ((100,), "<f4"), ((3,), "<U80")],
)
def test_an_array_that_is_not_as_its_header_says_or_no_numbers_is_refused(tmp_path, shape, dtype, compression):
    path = tmp_path / "data.npz"
    write_npz(path, npy_header(shape, dtype) + bytes(1000), compression)
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


# ---- CSV ----


def test_a_csv_that_a_spreadsheet_saved_again_is_read(tmp_path):
    path = tmp_path / "result.csv"
    rows = "token,valid,comfort,score\n0a,True,1.0,0.5\naverage,True,1.0,0.5\n"
    path.write_text(rows, encoding="utf-8")
    plain = read_result(path)
    path.write_text(rows, encoding="utf-8-sig")  # with a byte-order mark
    assert read_result(path) == plain


# ---- archives ----


def refuses_archive(root: Path, message: str, member, content: bytes) -> None:
    folder = root / "cartpole" / "rnd"
    folder.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder.with_name("rnd.zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)

    def read_all():
        with open_source(folder) as source:
            for episode in source.episodes:
                read_episode("cartpole", episode)

    before = sorted(root.parent.rglob("*"))
    refuses(message, read_all)
    assert sorted(root.parent.rglob("*")) == before, "something was unpacked"


@pytest.mark.parametrize("name", ["../buffer/e.npz", "/buffer/e.npz", "a/../../buffer/e.npz", "..\\buffer\\e.npz"])
def test_a_member_outside_its_archive_is_refused(tmp_path, name):
    refuses_archive(tmp_path, "lies outside the archive's folder", name, b"")


def test_a_link_in_an_archive_is_not_followed(tmp_path):
    """It is read as the few bytes that it is, like any member."""
    target = tmp_path / "secret.npz"
    np.savez(target, observation=np.zeros((1001, 5)))
    link = zipfile.ZipInfo("buffer/episode_000000_1000.npz")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    refuses_archive(tmp_path, "truncated or not an npz of plain arrays", link, str(target).encode())


def test_a_bomb_in_an_archive_is_not_unpacked(tmp_path):
    name = "buffer/episode_000000_1000.npz"
    refuses_archive(tmp_path, "70000000 bytes are more than any episode", name, bytes(70_000_000))


# ---- HDF5 ----


def external_link(file: h5py.File, other: Path) -> None:
    file["observation"] = h5py.ExternalLink(str(other), "observation")


def soft_link(file: h5py.File, other: Path) -> None:
    file["observation"] = h5py.SoftLink("/elsewhere")


def virtual(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout((3, 5), np.float32)
    layout[:] = h5py.VirtualSource(str(other), "observation", (3, 5))
    file.create_virtual_dataset("observation", layout)


def external_storage(file: h5py.File, other: Path) -> None:
    file.create_dataset("observation", (3, 5), np.float32, external=[(str(other), 0, 60)])


def never_written(file: h5py.File, other: Path) -> None:
    file.create_dataset("observation", (10**12, 5), np.float32)


def never_written_chunks(file: h5py.File, other: Path) -> None:
    file.create_dataset("observation", (10**12, 5), np.float32, chunks=(1000, 5), compression="gzip")[0] = 1


def unknown_filter(file: h5py.File, other: Path) -> None:
    file.create_dataset("observation", (1000, 5), np.float32, chunks=(1000, 5), scaleoffset=3)[:] = 0


def endless_group(file: h5py.File, other: Path) -> None:
    file.create_group("group")["again"] = file["/"]


@pytest.mark.parametrize(
    "make, message",
    [
        (external_link, "observation is a link to elsewhere"),
        (soft_link, "observation is a link to elsewhere"),
        (virtual, "/observation lies in other files"),
        (external_storage, "/observation lies in other files"),
        (never_written, r"/observation claims shape \(1000000000000, 5\), but has 0 bytes"),
        (never_written_chunks, r"/observation claims shape \(1000000000000, 5\), but has \d+ bytes"),
        (unknown_filter, "/observation has filters .6., which are not known"),
        (endless_group, "is too deep"),
    ],
)
def test_hdf5_from_elsewhere_or_of_no_substance_is_refused(tmp_path, make, message):
    """By the check that ExORL's and Minari's readers begin with, and by the reading of one column."""
    other, path = tmp_path / "secret.h5", tmp_path / "data.h5"
    with h5py.File(other, "w") as file:
        file["observation"] = np.ones((3, 5), np.float32)
    with h5py.File(path, "w") as file:
        make(file, other)
    refuses(message, check_hdf5, path)
    if make is not endless_group:
        with h5py.File(path) as file:
            refuses(message, plain_dataset, file, "observation")


def test_an_hdf5_file_on_which_the_library_hangs_or_dies_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "data.h5"
    h5py.File(path, "w").close()
    check_hdf5(path)
    monkeypatch.setattr("common.untrusted.SECONDS_TO_CHECK", 0.3)
    monkeypatch.setattr("common.untrusted.check_group", lambda file: time.sleep(3600))
    refuses("HDF5 did not end within 0 s", check_hdf5, path)
    monkeypatch.setattr("common.untrusted.check_group", lambda file: os.kill(os.getpid(), signal.SIGKILL))
    monkeypatch.setattr("common.untrusted.SECONDS_TO_CHECK", 20.0)
    refuses("HDF5 ended its process", check_hdf5, path)


# ---- Minari's metadata ----


def metadata_of(path: Path, **changes) -> Path:
    """The folder of a Minari data set with metadata as minari writes them."""
    spec = {
        "id": "Pendulum-v1",
        "entry_point": gymnasium.registry["Pendulum-v1"].entry_point,
        "additional_wrappers": [],
    }
    spec |= changes.pop("spec", {})
    box = {"type": "Box", "dtype": "float32", "shape": [3], "low": [0, 0, 0], "high": [1, 1, 1]}
    metadata = {"total_episodes": 1, "env_spec": json.dumps(spec), "observation_space": json.dumps(box)}
    path.mkdir()
    (path / "metadata.json").write_text(json.dumps(metadata | changes))
    (path / "main_data.hdf5").write_bytes(b"")
    return path


def test_an_environment_that_is_a_program_is_never_run(tmp_path):
    """gymnasium imports and calls what an env_spec names, with its arguments: here a shell."""
    trace = tmp_path / "executed"
    command = {"command": f"touch {trace}"}
    shell = {"id": "Shell-v0", "entry_point": "os:system", "kwargs": command}
    refuses("names 'os:system' as its environment", check_metadata, metadata_of(tmp_path / "a", spec=shell))
    wrapper = {"name": "shell", "entry_point": "subprocess:getoutput", "kwargs": command}
    wrapped = metadata_of(tmp_path / "b", spec={"additional_wrappers": [wrapper]})
    refuses("names 'subprocess:getoutput' as its environment", check_metadata, wrapped)
    twice = metadata_of(tmp_path / "c", eval_env_spec=json.dumps(shell | {"additional_wrappers": []}))
    refuses("names 'os:system'", check_metadata, twice)
    assert not trace.exists()
    check_metadata(metadata_of(tmp_path / "good"))
    with pytest.raises(Exception):  # noqa: B017  (gymnasium's complaint, once the harm is done)
        gymnasium.make(gymnasium.envs.registration.EnvSpec("Shell-v0", "os:system", kwargs=command))
    assert trace.exists(), "the sample is no threat, so this test shows nothing"


def test_metadata_that_claim_too_much_are_refused(tmp_path):
    refuses("claims 1000000000000 episodes", check_metadata, metadata_of(tmp_path / "a", total_episodes=10**12))
    space = json.dumps({"type": "Dict", "subspaces": {"a": {"type": "Box", "shape": [10**6, 10**6]}}})
    refuses("entries of 1000000000000 numbers", check_metadata, metadata_of(tmp_path / "b", observation_space=space))


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
    path.write_text("# " + "x" * LARGEST_FILE)
    refuses("is larger than", stored_config, path, DIPOLEConfig)
