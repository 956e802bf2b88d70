"""The simulated vehicle: from a plan to the 41 states that a tracking controller drives, as NAVSIM simulates plans.

Formulas: NAVSIM's planning/simulation/planner/pdm_planner/simulation/ (batch_lqr.py, batch_kinematic_bicycle.py,
Apache-2.0), written anew from their definition for whole batches. Units are SI and radians; poses and states are those
of the rear axle. A plan is 8 poses (x, y, heading) at 0.5, 1.0, ..., 4.0 s in the frame of the first pose: x forward,
y to its left.
"""

import functools

import numpy as np

LENGTH, WIDTH = 5.176, 2.297  # of the box; nuPlan's Pacifica, as are the next two
WHEELBASE = 3.089
REAR_AXLE_TO_CENTRE = 1.461

DT = 0.1  # seconds between states
STEPS = 40  # of the simulation, which so has 41 states
KNOTS, KNOT_STEPS = 8, 5  # poses of a plan, and simulation steps from one to the next

HORIZON = 10  # steps the controller looks ahead
Q_SPEED, R_ACCELERATION = 10.0, 1.0
Q_LATERAL, Q_HEADING, R_STEER_RATE = 1.0, 10.0, 1.0
ACCELERATION_PENALTY, CURVATURE_RATE_PENALTY, INITIAL_CURVATURE_PENALTY = 1e-4, 1e-2, 1e-10
STOP_GAIN, STOP_SPEED = 0.5, 0.2
ACCELERATION_LAG, STEER_LAG = 0.2, 0.05  # seconds
MAX_STEER = np.pi / 3

STATE_NAMES = ("x", "y", "heading", "v_x", "v_y", "a_x", "a_y", "steer", "steer_rate", "yaw_rate", "yaw_acc")
X, Y, HEADING, V_X, V_Y, A_X, A_Y, STEER, STEER_RATE, YAW_RATE, YAW_ACC = range(len(STATE_NAMES))


def wrap(angle: np.ndarray) -> np.ndarray:
    """Angles in (-pi, pi]."""
    return np.pi - (np.pi - angle) % (2 * np.pi)


def to_world(poses: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Poses [..., 3] given in the frame of `pose` [3] as world poses; headings are not wrapped."""
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    x, y, heading = np.moveaxis(poses, -1, 0)
    return np.stack([pose[0] + x * cos - y * sin, pose[1] + x * sin + y * cos, pose[2] + heading], axis=-1)


def to_frame(poses: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """World poses [..., 3] in the frame of `pose` [3], headings wrapped; the inverse of `to_world`."""
    cos, sin = np.cos(pose[2]), np.sin(pose[2])
    x, y = poses[..., 0] - pose[0], poses[..., 1] - pose[1]
    return np.stack([x * cos + y * sin, -x * sin + y * cos, wrap(poses[..., 2] - pose[2])], axis=-1)


def initial_state(pose: np.ndarray, speed: float, acceleration: float, steer: float, yaw_rate: float) -> np.ndarray:
    """A state [11] without lateral motion, as simulations start."""
    return np.array([*pose, speed, 0.0, acceleration, 0.0, steer, 0.0, yaw_rate, 0.0])


def reference_path(plans: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """World poses [B, 41, 3] of plans [B, 8, 3] that start at `pose` [3]: linear between the knots, 0.1 s apart."""
    start = np.zeros((len(plans), 1, 3))
    knots = to_world(np.concatenate([start, plans], axis=1), pose)
    knots[..., 2] = np.unwrap(knots[..., 2], axis=1)
    step = np.arange(STEPS)
    before, part = step // KNOT_STEPS, (step % KNOT_STEPS / KNOT_STEPS)[:, None]
    between = (1 - part) * knots[:, before] + part * knots[:, before + 1]
    return np.concatenate([between, knots[:, -1:]], axis=1)


# ---- Profiles of speed and curvature ----


@functools.cache
def _integration() -> np.ndarray:
    """[40, 40]: from a first value and 39 rates to 40 values DT apart."""
    matrix = np.zeros((STEPS, STEPS))
    matrix[:, 0] = 1.0
    matrix[:, 1:] = DT * np.tri(STEPS, STEPS - 1, -1)
    return matrix


@functools.cache
def _speed_fit() -> np.ndarray:
    """[40, 40]: from displacements along the headings to speeds, the least squares solution.

    The penalty is NAVSIM's own: of the 38 differences of accelerations that were meant, an overwritten matrix leaves
    the first 37 accelerations themselves and the last difference.
    """
    penalty = np.zeros((STEPS - 2, STEPS))
    penalty[np.arange(STEPS - 3), np.arange(1, STEPS - 2)] = 1.0
    penalty[-1, -2:] = -1.0, 1.0
    rows = np.concatenate([DT * _integration(), np.sqrt(ACCELERATION_PENALTY) * penalty])
    displacements = np.eye(len(rows), STEPS)
    return _integration() @ np.linalg.lstsq(rows, displacements, rcond=None)[0]


def speed_profile(reference: np.ndarray) -> np.ndarray:
    """Speeds [B, 40] of reference poses [B, 41, 3]: the fit to the displacements with small accelerations."""
    displacements = np.diff(reference[..., :2], axis=1)
    headings = reference[:, :-1, 2]
    along = displacements[..., 0] * np.cos(headings) + displacements[..., 1] * np.sin(headings)
    return along @ _speed_fit().T


def curvature_profile(reference: np.ndarray, speeds: np.ndarray) -> np.ndarray:
    """Curvatures [B, 40] of reference poses [B, 41, 3] driven at speeds [B, 40]: the fit to the turns."""
    turns = wrap(np.diff(reference[..., 2], axis=1))
    integration, distances = _integration(), DT * speeds
    penalty = np.full(STEPS, CURVATURE_RATE_PENALTY)
    penalty[0] = INITIAL_CURVATURE_PENALTY
    normal = integration.T @ (distances[..., None] ** 2 * integration) + np.diag(penalty)
    projected = (distances * turns) @ integration
    return np.linalg.solve(normal, projected[..., None])[..., 0] @ integration.T


# ---- Controller and vehicle ----


def _acceleration(speed: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The constant acceleration over the horizon that the speed regulator asks for; all [B]."""
    seconds = HORIZON * DT
    return -seconds * Q_SPEED * (speed - target) / (seconds**2 * Q_SPEED + R_ACCELERATION)


def _steer_rate(
    lateral: np.ndarray, heading: np.ndarray, steer: np.ndarray, speeds: np.ndarray, curvatures: np.ndarray
) -> np.ndarray:
    """The constant steering rate [B] over the horizon that the lateral regulator asks for.

    lateral and heading [B] are the errors now; speeds and curvatures [B, 10] are those of the horizon's steps. Errors
    and their sensitivity to the rate follow the linearised bicycle, both rolled out from values of the step before.
    """
    count = np.arange(HORIZON)
    distances = DT * speeds
    turns = distances * (steer[:, None] / WHEELBASE - curvatures)
    turned = np.cumsum(turns, axis=1)
    lateral = lateral + (distances * (heading[:, None] + turned - turns)).sum(axis=1)
    heading = wrap(heading + turned[:, -1])
    turns = distances * (DT * count / WHEELBASE)
    turned = np.cumsum(turns, axis=1)
    by_lateral, by_heading = (distances * (turned - turns)).sum(axis=1), turned[:, -1]
    gradient = Q_LATERAL * by_lateral * lateral + Q_HEADING * by_heading * heading
    return -gradient / (Q_LATERAL * by_lateral**2 + Q_HEADING * by_heading**2 + R_STEER_RATE)


def _command(
    state: np.ndarray, reference: np.ndarray, speeds: np.ndarray, curvatures: np.ndarray, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Acceleration and steering rate [B] for states [11, B] at `step` of the reference [B, 41, 3]."""
    x, y, heading, speed, steer = state[[X, Y, HEADING, V_X, STEER]]
    target = speeds[:, min(step + HORIZON, STEPS - 1)]
    acceleration = _acceleration(speed, target)
    count = np.arange(HORIZON)
    ahead = np.minimum(step + count, STEPS - 1)
    reference_x, reference_y, reference_heading = reference[:, step].T
    lateral = (y - reference_y) * np.cos(reference_heading) - (x - reference_x) * np.sin(reference_heading)
    steer_rate = _steer_rate(
        lateral,
        wrap(heading - reference_heading),
        steer,
        speed[:, None] + DT * count * acceleration[:, None],
        curvatures[:, ahead],
    )
    stopping = (target <= STOP_SPEED) & (speed <= STOP_SPEED)
    return np.where(stopping, -STOP_GAIN * (speed - target), acceleration), np.where(stopping, 0.0, steer_rate)


def drive(state: np.ndarray, acceleration: np.ndarray, steer_rate: np.ndarray) -> np.ndarray:
    """States [11, B] one step later: a kinematic bicycle behind first-order lags, one Euler step from old values."""
    x, y, heading, speed, _, a_x, _, steer, _, yaw_rate, _ = state
    after = np.zeros_like(state)
    after[X] = x + DT * speed * np.cos(heading)
    after[Y] = y + DT * speed * np.sin(heading)
    after[HEADING] = wrap(heading + DT * speed * np.tan(steer) / WHEELBASE)
    after[A_X] = a_x + DT / (DT + ACCELERATION_LAG) * (acceleration - a_x)
    after[V_X] = speed + DT * after[A_X]
    turned = steer + DT / (DT + STEER_LAG) * (DT * steer_rate)
    after[STEER_RATE] = (turned - steer) / DT
    after[STEER] = np.clip(turned, -MAX_STEER, MAX_STEER)
    after[YAW_RATE] = after[V_X] * np.tan(after[STEER]) / WHEELBASE
    after[YAW_ACC] = (after[YAW_RATE] - yaw_rate) / DT
    return after


def track(reference: np.ndarray, initial: np.ndarray) -> np.ndarray:
    """States [B, 41, 11] of the vehicle that tracks reference poses [B, 41, 3] from `initial` [11] or [B, 11]."""
    speeds = speed_profile(reference)
    curvatures = curvature_profile(reference, speeds)
    states = np.empty((STEPS + 1, len(STATE_NAMES), len(reference)))
    states[0] = np.broadcast_to(initial, (len(reference), len(STATE_NAMES))).T
    for step in range(STEPS):
        states[step + 1] = drive(states[step], *_command(states[step], reference, speeds, curvatures, step))
    return states.transpose(2, 0, 1)


def simulate(plans: np.ndarray, initial: np.ndarray) -> np.ndarray:
    """World states [B, 41, 11] of the vehicle that drives plans [B, 8, 3] from the state `initial` [11]."""
    return track(reference_path(plans, initial[[X, Y, HEADING]]), initial)
