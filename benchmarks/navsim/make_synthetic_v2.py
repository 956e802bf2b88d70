"""Second-stage scenes for NAVSIM v2's two-stage script, from the synthetic logs: the ego put elsewhere at t + 4 s.

NAVSIM_V2_PYTHON -m benchmarks.navsim.make_synthetic_v2 LOGS OUT CONFIG_FOLDER

CONFIG_FOLDER is common/train_test_split of the NAVSIM copy, where a split own_two_stage is added.
"""

import os
import sys
from pathlib import Path

import numpy as np
import yaml
from navsim.common.dataclasses import Annotations, EgoStatus, Frame, Scene, SceneFilter, SceneMetadata
from navsim.common.dataloader import SceneLoader
from navsim.planning.scenario_builder.navsim_scenario import NavSimScenario
from nuplan.common.maps.maps_datatypes import TrafficLightStatuses

logs, out, config = map(Path, sys.argv[1:4])
out.mkdir(parents=True, exist_ok=True)
rng = np.random.default_rng(5)
filter_ = SceneFilter(num_history_frames=4, num_future_frames=20, frame_interval=1)
loader = SceneLoader(logs, None, filter_)
by_log = loader.get_tokens_list_per_log()
short = SceneLoader(logs, None, SceneFilter(num_history_frames=4, num_future_frames=8, frame_interval=1))


def moved(status, shift):
    x, y, h = status.ego_pose
    dx, dy, dh = shift
    pose = np.array([x + dx * np.cos(h) - dy * np.sin(h), y + dx * np.sin(h) + dy * np.cos(h), h + dh])
    return EgoStatus(pose, status.ego_velocity, status.ego_acceleration, status.driving_command, True)


def reboxed(annotations, old, new):
    """The boxes in the moved ego's frame."""
    boxes = np.array(annotations.boxes, float).copy()
    c, s = np.cos(old[2]), np.sin(old[2])
    wx, wy = old[0] + boxes[:, 0] * c - boxes[:, 1] * s, old[1] + boxes[:, 0] * s + boxes[:, 1] * c
    c2, s2 = np.cos(new[2]), np.sin(new[2])
    boxes[:, 0], boxes[:, 1] = (wx - new[0]) * c2 + (wy - new[1]) * s2, -(wx - new[0]) * s2 + (wy - new[1]) * c2
    boxes[:, 6] += old[2] - new[2]
    turn = old[2] - new[2]
    v = np.array(annotations.velocity_3d, float)
    turned = v.copy()
    turned[:, 0], turned[:, 1] = (
        v[:, 0] * np.cos(turn) - v[:, 1] * np.sin(turn),
        v[:, 0] * np.sin(turn) + v[:, 1] * np.cos(turn),
    )
    return Annotations(boxes, annotations.names, turned, annotations.instance_tokens, annotations.track_tokens)


mapping, first_tokens, synthetic, names = [], [], [], []
for log, tokens in list(by_log.items())[:8]:
    order = [t for t in short.scene_frames_dicts if t in set(tokens)]
    if len(order) < 12:
        continue
    prev_token, orig_token = order[6], order[7]
    pairs = []
    for variant in range(3):
        shift = np.array([rng.uniform(-1.5, 1.5), rng.uniform(-0.5, 0.5), rng.uniform(-0.05, 0.05)]) * (variant > 0)
        pair = []
        for token in (orig_token, prev_token):
            long = loader.get_scene_from_token(token)
            scenario = NavSimScenario(long, os.environ["NUPLAN_MAPS_ROOT"], "nuplan-maps-v1.0")
            at = 3 + 8  # the frame 4 s after the current one
            frames = []
            for k in range(at - 3, at + 1):
                f = long.frames[k]
                status = moved(f.ego_status, shift)
                frames.append(
                    Frame(
                        f.token,
                        f.timestamp,
                        f.roadblock_ids,
                        f.traffic_lights,
                        reboxed(f.annotations, f.ego_status.ego_pose, status.ego_pose),
                        status,
                        f.lidar,
                        f.cameras,
                    )
                )
            name = rng.bytes(9).hex()[:17]
            frames[-1].token = name
            tracks = [scenario.get_tracked_objects_at_iteration(k) for k in range(9, 17)]
            lights = [
                TrafficLightStatuses(list(scenario.get_traffic_light_status_at_iteration(k))) for k in range(9, 17)
            ]
            metadata = SceneMetadata(log, name, long.scene_metadata.map_name, name, 4, 0, long.frames[at].token, token)
            Scene(metadata, long.map_api, frames, lights, tracks).save_to_disk(out)
            pair.append(name)
        pairs.append(pair)
        synthetic += pair
    mapping.append([orig_token, prev_token, pairs])
    first_tokens += [orig_token, prev_token]
    names.append(log)
scene_filter = {
    "_target_": "navsim.common.dataclasses.SceneFilter",
    "_convert_": "all",
    "num_history_frames": 4,
    "num_future_frames": 8,
    "frame_interval": 1,
    "has_route": True,
    "max_scenes": None,
    "include_synthetic_scenes": True,
    "log_names": names,
    "tokens": first_tokens,
    "reactive_synthetic_initial_tokens": synthetic,
}
(config / "scene_filter" / "own_two_stage.yaml").write_text(yaml.safe_dump(scene_filter))
(config / "own_two_stage.yaml").write_text(
    "defaults:\n- scene_filter: own_two_stage\n"
    + yaml.safe_dump({"data_split": "mini", "reactive_all_mapping": mapping})
)
print(len(mapping), "pairs of original scenes,", len(synthetic), "synthetic scenes")
