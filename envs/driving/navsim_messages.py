"""Arrays through a pipe between NAVSIM's Python and this project's: 8 bytes of length, then an npz without pickles."""

import io
from typing import BinaryIO, Dict

import numpy as np

from envs.driving.polygons import PolygonRoad
from envs.driving.scene import Scene

LENGTH_BYTES = 8
OF_AGENTS = ("size", "static")  # beside their boxes
SCENE_ARRAYS = ("ego", "history", "centreline", "speed_limit")
ROAD_ARRAYS = ("points", "rows", "kinds")


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
    """What an observation needs of a scene on a PolygonRoad, by name; the others that are known, at the start only."""
    known = scene.known
    arrays = {name: np.asarray(getattr(scene, name)) for name in SCENE_ARRAYS}
    arrays.update({name: getattr(scene, name)[known] for name in OF_AGENTS})
    return {**arrays, "agents": scene.agents[:1, known], **{name: getattr(scene.road, name) for name in ROAD_ARRAYS}}


def scene_from_arrays(arrays: Dict[str, np.ndarray]) -> Scene:
    """The inverse of `scene_to_arrays`; there is no reference progress."""
    values = {name: arrays[name] for name in (*SCENE_ARRAYS, *OF_AGENTS, "agents")}
    values["speed_limit"] = float(values["speed_limit"])
    road = PolygonRoad(*(arrays[name] for name in ROAD_ARRAYS))
    return Scene(**values, road=road, reference_progress=0.0)
