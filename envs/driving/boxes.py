"""Oriented rectangles: corners and overlap tests, for whole arrays of them."""

import numpy as np


def corners(poses: np.ndarray, length: float, width: float) -> np.ndarray:
    """Corners [..., 4, 2] of boxes with centre poses (x, y, heading) [..., 3], counter-clockwise from front left."""
    along = np.array([0.5, -0.5, -0.5, 0.5]) * length
    across = np.array([0.5, 0.5, -0.5, -0.5]) * width
    cos, sin = np.cos(poses[..., 2:]), np.sin(poses[..., 2:])
    return np.stack([poses[..., :1] + cos * along - sin * across, poses[..., 1:2] + sin * along + cos * across], -1)


def overlap(poses: np.ndarray, size: np.ndarray, other_poses: np.ndarray, other_size: np.ndarray) -> np.ndarray:
    """Whether boxes of centre poses [..., 3] and sizes (length, width) [..., 2] share a point: [...] bool.

    The separating-axis test: exact for rectangles, also for a side of length 0, which makes a segment of one. Touching
    counts; a NaN overlaps nothing. All arguments broadcast.
    """
    half_l, half_w = size[..., 0] / 2, size[..., 1] / 2
    other_l, other_w = other_size[..., 0] / 2, other_size[..., 1] / 2
    dx, dy = other_poses[..., 0] - poses[..., 0], other_poses[..., 1] - poses[..., 1]
    cos, sin = np.cos(poses[..., 2]), np.sin(poses[..., 2])
    other_cos, other_sin = np.cos(other_poses[..., 2]), np.sin(other_poses[..., 2])
    c, s = np.abs(cos * other_cos + sin * other_sin), np.abs(cos * other_sin - sin * other_cos)
    return (
        (np.abs(dx * cos + dy * sin) <= half_l + other_l * c + other_w * s)
        & (np.abs(dy * cos - dx * sin) <= half_w + other_l * s + other_w * c)
        & (np.abs(dx * other_cos + dy * other_sin) <= other_l + half_l * c + half_w * s)
        & (np.abs(dy * other_cos - dx * other_sin) <= other_w + half_l * s + half_w * c)
    )
