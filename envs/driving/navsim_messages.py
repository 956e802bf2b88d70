"""Arrays through a pipe between NAVSIM's Python and this project's: 8 bytes of length, then an npz without pickles."""

import io
from typing import BinaryIO, Dict

import numpy as np

from envs.driving.scene import Road, Scene

LENGTH_BYTES = 8
SCENE_ARRAYS = ("ego", "history", "agents", "size", "static", "centreline", "speed_limit")


def send(stream: BinaryIO, **arrays: np.ndarray) -> None:
    """Writes one message. Raises BrokenPipeError where the other side has ended."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    stream.write(buffer.tell().to_bytes(LENGTH_BYTES, "little"))
    stream.write(buffer.getbuffer())
    stream.flush()


def receive(stream: BinaryIO) -> Dict[str, np.ndarray]:
    """The next message. Raises EOFError where the other side has ended."""
    length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
    content = stream.read(length)
    if not length or len(content) < length:
        raise EOFError
    with np.load(io.BytesIO(content)) as arrays:
        return dict(arrays)


def scene_to_arrays(scene: Scene) -> Dict[str, np.ndarray]:
    """What an observation needs of a scene, by name."""
    road = scene.road
    arrays = {name: np.asarray(getattr(scene, name)) for name in SCENE_ARRAYS}
    return {**arrays, "raster": road.raster, "origin": road.origin, "resolution": np.asarray(road.resolution)}


def scene_from_arrays(arrays: Dict[str, np.ndarray]) -> Scene:
    """The inverse of `scene_to_arrays`; the scene has no intersections and no reference progress."""
    raster = arrays["raster"]
    road = Road(raster, np.zeros(raster.shape, bool), arrays["origin"], float(arrays["resolution"]))
    values = {name: arrays[name] for name in SCENE_ARRAYS}
    return Scene(**{**values, "speed_limit": float(values["speed_limit"])}, road=road, reference_progress=0.0)
