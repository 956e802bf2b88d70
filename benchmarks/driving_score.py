"""Scoring speed: plans per CPU-second of the PDM scorer by plans per scene, on the scenes of golden/driving.

python -m benchmarks.driving_score
"""

import time
from pathlib import Path

import numpy as np

from envs.driving.scene_files import read_split
from envs.driving.score import score

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "golden" / "driving" / "scenes"
GROUPS = (1, 4, 16, 64, 256)  # plans per scene
SCENES = 24
RUNS = 3  # the best counts: CPU time, so that other work on the machine matters less


def main() -> None:
    scenes = read_split(FOLDER, "train")
    for group in GROUPS:
        batches = [np.resize(plans, (group, 8, 3)) for plans in scenes.plans[:SCENES]]
        seconds = []
        for _ in range(RUNS):
            start = time.process_time()
            for scene, plans in zip(scenes.scenes, batches, strict=False):
                score(scene, plans)
            seconds.append(time.process_time() - start)
        speed = group * SCENES / min(seconds)
        print(f"{group:>4} plans per scene: {speed:7.0f} scored plans per CPU-second", flush=True)


if __name__ == "__main__":
    main()
