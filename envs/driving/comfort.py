"""Comfort of simulated states: six filtered signals and their bounds, as versions 1 and 2 of NAVSIM define them.

Source: NAVSIM's pdm_comfort_metrics.py, branch v1.1 and version 2.0.0; definitions in tests/golden/driving.
"""

import functools

import numpy as np
from scipy.signal import savgol_filter

from envs.driving.vehicle import A_X, A_Y, DT, HEADING, REAR_AXLE_TO_CENTRE, YAW_ACC, YAW_RATE

SIGNALS = ("lon_acc", "lat_acc", "jerk", "lon_jerk", "yaw_acc", "yaw_rate")
LOWER = np.array([-4.05, -4.89, -8.37, -4.13, -1.93, -0.95])  # strict; m/s^2, m/s^2, m/s^3, m/s^3, rad/s^2, rad/s
UPPER = np.array([2.40, 4.89, 8.37, 4.13, 1.93, 0.95])
DECIMALS = 8  # every filtered signal is rounded to so many
SHORT, YAW = 8, 5  # windows: of the acceleration inside a jerk, and of the heading's derivatives
# version: (windows of acceleration and jerk in samples, whether the longitudinal acceleration is the box centre's)
VERSIONS = {1: (41, 41, False), 2: (8, 15, True)}


@functools.cache
def _filter(samples: int, window: int, degree: int, derivative: int) -> np.ndarray:
    """The Savitzky-Golay filter of a series of that length as a matrix [samples, samples]."""
    return savgol_filter(np.eye(samples), window, degree, deriv=derivative, delta=DT, axis=0)


def _filtered(series: np.ndarray, window: int, degree: int = 2, derivative: int = 0) -> np.ndarray:
    """Series [B, T] smoothed by a polynomial of `degree` in a window of samples, or its derivative per second."""
    return np.round(series @ _filter(series.shape[1], window, degree, derivative).T, DECIMALS)


def comfort_signals(states: np.ndarray, version: int = 1) -> np.ndarray:
    """The six SIGNALS [B, T, 6] of simulated states [B, T, 11], by NAVSIM's version 1 or 2.

    Version 2 looks at the box centre, adding the angular acceleration along the vehicle instead of across it; that and
    the lateral acceleration of 0, whose bound therefore never fails, are NAVSIM's own.
    """
    acceleration_window, jerk_window, at_centre = VERSIONS[version]
    rear = states[..., A_X]
    longitudinal = rear
    if at_centre:
        longitudinal = rear + REAR_AXLE_TO_CENTRE * (states[..., YAW_RATE] ** 2 + states[..., YAW_ACC])
    heading = np.unwrap(states[..., HEADING], axis=1)
    signals = (
        _filtered(longitudinal, acceleration_window),
        _filtered(states[..., A_Y], acceleration_window),
        _filtered(_filtered(np.hypot(rear, states[..., A_Y]), SHORT), jerk_window, derivative=1),
        _filtered(_filtered(longitudinal, SHORT), jerk_window, derivative=1),
        _filtered(heading, YAW, degree=3, derivative=2),
        _filtered(heading, YAW, degree=2, derivative=1),
    )
    return np.stack(signals, axis=-1)


def comfort_verdicts(states: np.ndarray, version: int = 1) -> np.ndarray:
    """Whether each of the six signals stays within its bounds at all steps: [B, 6] bool."""
    signals = comfort_signals(states, version)
    return ((signals > LOWER) & (signals < UPPER)).all(axis=1)
