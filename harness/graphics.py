"""Whether pictures can be drawn here: MuJoCo's OpenGL backend, found before MuJoCo is imported."""

import os
import subprocess
import sys

from common.errors import UserError

BACKENDS = ("egl", "osmesa")  # of MuJoCo's, those that need no display
DRAWING_TEST = """
import mujoco
context = mujoco.GLContext(8, 8)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100)
"""


class NoPictures(UserError):
    """Nothing can be drawn, by this machine or of this task."""


def drawing_error(backend: str | None) -> str | None:
    """Why MuJoCo cannot draw with MUJOCO_GL=backend (None: unset), in one line; None if it can. In its own process."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    if backend is not None:
        environment["MUJOCO_GL"] = backend
    test = subprocess.run(
        [sys.executable, "-c", DRAWING_TEST], env=environment, capture_output=True, text=True, check=False
    )
    return None if test.returncode == 0 else (test.stderr.strip().splitlines() or ["no message"])[-1]


def choose_graphics() -> None:
    """Sets MUJOCO_GL, unless the user did, to the first backend that draws here; call it before MuJoCo's import.

    Raises NoPictures where the user's choice is one of BACKENDS and cannot draw: importing MuJoCo would fail.
    """
    chosen = os.environ.get("MUJOCO_GL")
    if chosen in BACKENDS:
        _refuse_broken(chosen)
    if chosen is not None:
        return
    for backend in BACKENDS:
        if drawing_error(backend) is None:
            os.environ["MUJOCO_GL"] = backend
            return


def check_graphics() -> None:
    """Raises NoPictures where MuJoCo, if the task's environment has imported it, cannot draw."""
    if "mujoco" in sys.modules:
        _refuse_broken(os.environ.get("MUJOCO_GL"))


def _refuse_broken(backend: str | None) -> None:
    error = drawing_error(backend)
    if error is not None:
        raise NoPictures(
            f"videos: MuJoCo cannot draw here with MUJOCO_GL {backend or 'unset'} ({error}): install EGL "
            f"(`apt install libegl1 libegl-mesa0 libgl1-mesa-dri`) or OSMesa (`apt install libosmesa6`), whichever is "
            f"missing, and unset MUJOCO_GL or set it to {' or '.join(BACKENDS)}"
        )
