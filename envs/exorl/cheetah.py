"""ExORL's own task of the cheetah, run_backward, on dm_control's model."""

from dm_control.rl import control
from dm_control.suite import cheetah
from dm_control.utils import rewards

TIME_LIMIT = 10.0  # seconds, as cheetah run
TARGET_SPEED = 10.0  # m/s, backwards; as cheetah run's forwards


class RunBackward(cheetah.Cheetah):
    """Cheetah run with the direction reversed."""

    def get_reward(self, physics: cheetah.Physics) -> float:
        """clip(-v_x / 10, 0, 1), v_x the torso's subtree velocity in m/s."""
        return rewards.tolerance(
            -physics.speed(),
            bounds=(TARGET_SPEED, float("inf")),
            margin=TARGET_SPEED,
            value_at_margin=0,
            sigmoid="linear",
        )


def load(task: str) -> control.Environment:
    """The environment of `task`, run_backward. Raises KeyError for another name."""
    task_class = {"run_backward": RunBackward}[task]
    physics = cheetah.Physics.from_xml_string(*cheetah.get_model_and_assets())
    return control.Environment(physics, task_class(), time_limit=TIME_LIMIT)
