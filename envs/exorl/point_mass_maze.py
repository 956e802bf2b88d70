"""ExORL's point_mass_maze: four rooms, a start in the top left one and a target in each; on dm_control's point mass.

Known of the original are its widths, step, start, targets and rewards, which are kept. Its walls are not, so the cross
here (WALLS) is this repository's own: rewards relabelled from ExORL's files agree, while a policy learned from them
meets other walls than its data did. Whether the original's mass, gear and damping are the suite's is not known either.
"""

from collections import OrderedDict
from typing import Dict, Tuple
from xml.etree import ElementTree

import numpy as np
from dm_control.rl import control
from dm_control.suite import base, common, point_mass
from dm_control.utils import rewards

TIME_LIMIT = 20.0  # seconds: 1000 steps
TARGETS = {  # metres
    "reach_top_left": (-0.15, 0.15, 0.01),
    "reach_top_right": (0.15, 0.15, 0.01),
    "reach_bottom_left": (-0.15, -0.15, 0.01),
    "reach_bottom_right": (0.15, -0.15, 0.01),
}
TARGET_RADIUS = 0.015  # metres
START_LOWER, START_UPPER = (-0.29, 0.15), (-0.15, 0.29)  # metres
WALLS = {  # half the size of boxes about the centre, metres; the arena reaches to 0.3, so 10 cm stay open at each end
    "cross_x": (0.2, 0.01, 0.02),
    "cross_y": (0.01, 0.2, 0.02),
}


def make_model(target: Tuple[float, float, float]) -> str:
    """XML of the suite's point mass among WALLS, which are all that it collides with, and the target's picture."""
    root = ElementTree.fromstring(common.read_model("point_mass.xml"))
    option = root.find("option")
    option.remove(option.find("flag"))  # the flag that disables contacts
    world = root.find("worldbody")
    for geom in world.findall("geom"):
        geom.attrib.update(contype="0", conaffinity="0")
    world.find("geom[@name='target']").set("pos", " ".join(map(str, target)))
    for name, size in WALLS.items():
        sizes = " ".join(map(str, size))
        ElementTree.SubElement(
            world, "geom", name=name, type="box", pos=f"0 0 {size[2]}", size=sizes, material="decoration"
        )
    return ElementTree.tostring(root, encoding="unicode")


class Reach(base.Task):
    """Stay near the target with small controls."""

    def __init__(self, target: Tuple[float, float, float]):
        super().__init__()
        self._target = np.array(target)

    def initialize_episode(self, physics: point_mass.Physics) -> None:
        """Draws the position in the top left room; the mass is at rest."""
        physics.data.qpos[:] = self.random.uniform(START_LOWER, START_UPPER)
        super().initialize_episode(physics)

    def get_observation(self, physics: point_mass.Physics) -> Dict[str, np.ndarray]:
        return OrderedDict(position=physics.position(), velocity=physics.velocity())

    def get_reward(self, physics: point_mass.Physics) -> float:
        """1 within TARGET_RADIUS, falling as a Gaussian to 0.1 at twice that, times (4 + c) / 5.

        c is the mean over the controls of 1 - control², 1 at rest.
        """
        distance = np.linalg.norm(physics.named.data.geom_xpos["pointmass"] - self._target)
        near = rewards.tolerance(distance, bounds=(0, TARGET_RADIUS), margin=TARGET_RADIUS)
        small_control = rewards.tolerance(physics.control(), margin=1, value_at_margin=0, sigmoid="quadratic").mean()
        return near * (small_control + 4) / 5


def load(task: str) -> control.Environment:
    """The environment of `task`, one of TARGETS. Raises KeyError for another name."""
    target = TARGETS[task]
    physics = point_mass.Physics.from_xml_string(make_model(target), common.ASSETS)
    return control.Environment(physics, Reach(target), time_limit=TIME_LIMIT)
