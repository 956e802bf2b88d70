"""Reading files from elsewhere: arrays are plain numbers (no pickles) that equal their checksums.

Checkpoints are loaded with weights_only, archives are read in memory, never unpacked, and what a Minari set names as
its environment is looked at before it is built (envs/minari.py).
"""

import io
import zipfile
from pathlib import Path
from typing import BinaryIO, Collection, Union

import h5py
import numpy as np

PLAIN_KINDS = "fiub"  # numpy's kinds of floating point, integers and bool


def load_npz(file: Union[Path, BinaryIO], names: Collection[str]) -> dict[str, np.ndarray]:
    """The arrays `names`, as far as they are there, of an npz file.

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


def plain_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """The data set `name` of numbers. Raises KeyError where there is none and ValueError for something else."""
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in PLAIN_KINDS:
        raise ValueError(f"{name} is no array of numbers")
    return dataset
