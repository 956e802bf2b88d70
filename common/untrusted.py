"""Checks of files from elsewhere before anything is read from them: nothing is allocated on a header's word alone.

No reader here runs code of a file: arrays are plain numbers (no pickles), checkpoints are loaded with weights_only, and
archives are read in memory, never unpacked. What a file claims to hold must fit its own size (times what its
compression can reach) and the machine's memory.
"""

import io
import math
import os
import select
import signal
import zipfile
from pathlib import Path
from typing import BinaryIO, Collection, Union

import h5py
import numpy as np

from common.errors import one_line

COMPRESSION_RATIO = 1032  # the largest that deflate reaches (zlib's technical details); lzf stays far below it
PLAIN_KINDS = "fiub"  # numpy's kinds of floating point, integers and bool
KNOWN_FILTERS = {
    h5py.h5z.FILTER_DEFLATE,
    h5py.h5z.FILTER_SHUFFLE,
    h5py.h5z.FILTER_FLETCHER32,
    h5py.h5z.FILTER_LZF,
}
SOUND = "sound"
SECONDS_TO_CHECK, BYTES_PER_SECOND = 20.0, 1e6  # small data sets are the slowest to check, for their size
GROUP_DEPTH = 16  # a group may contain itself


def machine_memory() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_fits(what: str, claimed: int) -> None:
    """Raises ValueError where `claimed` bytes are more than the machine has."""
    if claimed > machine_memory():
        raise ValueError(f"{what} claims {claimed / 1e9:.1f} GB, the machine has {machine_memory() / 1e9:.1f} GB")


# ---- zip and npz ----


def load_npz(file: Union[Path, BinaryIO], names: Collection[str]) -> dict[str, np.ndarray]:
    """The arrays `names`, as far as they are there, of an npz file: plain numbers, equal to their checksums.

    Raises ValueError, and what zipfile and numpy raise for a damaged file.
    """
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        for name in {info.filename.removesuffix(".npy") for info in archive.infolist()} & set(names):
            content = io.BytesIO(archive.read(f"{name}.npy"))  # read to its end, where zipfile compares the checksum
            arrays[name] = np.lib.format.read_array(content, allow_pickle=False)
            if content.read(1) or arrays[name].dtype.kind not in PLAIN_KINDS:
                raise ValueError(f"{name} is no array of numbers, or longer than its shape {arrays[name].shape}")
    return arrays


def check_stored_zip(path: Path) -> None:
    """Raises ValueError or zipfile.BadZipFile unless all members are uncompressed and equal their checksums."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{info.filename} is compressed")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} differs from its checksum")


# ---- HDF5 ----


def check_hdf5(path: Path) -> None:
    """Checks all that an HDF5 file holds, see `check_group`, in a process of its own. Raises ValueError.

    On some damaged files HDF5's C library never returns, or ends its process: the fuzz test has found such.
    """
    seconds = SECONDS_TO_CHECK + path.stat().st_size / BYTES_PER_SECOND
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, (_damage(path) or SOUND).encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        answered = select.select([reader], [], [], seconds)[0]
        answer = os.read(reader, 4096).decode() if answered else f"HDF5 did not end within {seconds:.0f} s"
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if answer != SOUND:
        raise ValueError(answer or "HDF5 ended its process")


def _damage(path: Path) -> str:
    """What is wrong with an HDF5 file, in one line, empty where nothing is."""
    try:
        with h5py.File(path) as file:
            dict(file.attrs)
            check_group(file)
    except Exception as error:  # h5py raises many types for a damaged file
        return one_line(error)
    return ""


def plain_dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    """The data set `name` of numbers. Raises ValueError where its bytes are not in this file or not all there."""
    dataset = _own_object(group, name)
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in PLAIN_KINDS:
        raise ValueError(f"{dataset.name} is no array of numbers")
    check_dataset(dataset)
    return dataset


def check_dataset(dataset: h5py.Dataset) -> None:
    """Raises ValueError where a data set lies outside its file or claims more than is stored there."""
    properties = dataset.id.get_create_plist()
    if dataset.is_virtual or properties.get_external_count() > 0:
        raise ValueError(f"{dataset.name} lies in other files, which is not read")
    filters = [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
    if not set(filters) <= KNOWN_FILTERS:
        raise ValueError(f"{dataset.name} has filters {filters}, which are not known")
    claimed = math.prod(dataset.shape or ()) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    compressed = filters and set(filters) != {h5py.h5z.FILTER_FLETCHER32}
    if stored > os.path.getsize(dataset.file.filename) or claimed > (COMPRESSION_RATIO if compressed else 1) * stored:
        raise ValueError(f"{dataset.name} claims shape {dataset.shape}, but has {stored} bytes")
    check_fits(dataset.name, max(claimed, math.prod(dataset.chunks or ()) * dataset.dtype.itemsize))


def check_group(group: h5py.Group, depth: int = GROUP_DEPTH) -> None:
    """`check_dataset` for all data sets below `group`. Raises ValueError for links out of it and for endless ones."""
    if depth == 0:
        raise ValueError(f"{group.name[:60]} is too deep")
    for name in group:
        member = _own_object(group, name)
        if isinstance(member, h5py.Group):
            check_group(member, depth - 1)
        elif isinstance(member, h5py.Dataset):
            check_dataset(member)


def _own_object(group: h5py.Group, name: str) -> h5py.HLObject:
    """What `name` links to in this very file. Raises ValueError for symbolic and external links."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is a link to elsewhere, which is not followed")
    return group[name]
