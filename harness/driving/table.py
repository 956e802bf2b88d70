"""Sub-scores of planners that need no learning, of the data and of runs, in the scenes of one split, times 100.

python -m harness.driving.table --split test --run RUN_DIR --run RUN_DIR --greediness 0 0.5 1

Every run gives --samples plans per scene and each value of --greediness, where its agent has that option. These are
PDM-style scores of this repository's own scenes, not NAVSIM's; choose settings by --split validation.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.errors import CommandParser, check_at_least, exit_on_user_error
from common.files import format_rows
from envs.driving.curate import score_matrix
from envs.driving.planner import constant_velocity
from envs.driving.scene_files import SCORE_NAMES, SPLITS, SceneSet, read_split
from envs.driving.score import score
from harness.driving.policies import Policy, open_runs

TITLES = ("NC", "DAC", "TTC", "C", "EP", "PDMS")  # of SCORE_NAMES
DATA = "data: mean plan"
BASELINES: dict[str, Callable[[SceneSet], np.ndarray]] = {
    "constant velocity": lambda scenes: np.stack([constant_velocity(scene) for scene in scenes.scenes])[:, None],
    "logged driver": lambda scenes: scenes.logged_plans[:, None],
    "PDM-Closed-like planner": lambda scenes: scenes.reference_plans[:, None],
    DATA: lambda scenes: scenes.plans,
}


def scores_of(scenes: SceneSet, plans: np.ndarray, label: str) -> np.ndarray:
    """Scores [S, K, 6] by SCORE_NAMES of plans [S, K, 8, 3]."""
    pairs = tqdm(zip(scenes.scenes, plans, strict=True), desc=label, total=len(plans), disable=None, leave=False)
    return np.stack([score_matrix(score(scene, each)) for scene, each in pairs])


def planner_scores(scenes: SceneSet) -> dict[str, np.ndarray]:
    """Scores [S, K, 6] of what needs no learning, by label; the best of each scene's own plans the last."""
    found = {label: scores_of(scenes, plans(scenes), label) for label, plans in BASELINES.items()}
    best = found[DATA][..., [SCORE_NAMES.index("pdms")]].argmax(axis=1, keepdims=True)
    return found | {f"data: best of {found[DATA].shape[1]}": np.take_along_axis(found[DATA], best, axis=1)}


def run_scores(
    policy: Policy, split: str, scenes: SceneSet, greediness: Sequence[float], samples: int
) -> dict[str, np.ndarray]:
    """Scores [S, samples, 6] of a run by label, for each value of greediness where its agent has that option."""
    found = {}
    for options in [{"greediness": value} for value in greediness if "greediness" in policy.agent.act_options] or [{}]:
        suffix = "".join(f", {name} {value:g}" for name, value in options.items())
        label = f"{policy.run_dir.parents[2].name}{suffix} ({policy.run_dir.name})"
        plans = policy.sample(scenes, policy.data.observations[split], samples, **options)
        found[label] = scores_of(scenes, plans, label)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = CommandParser("python -m harness.driving.table", __doc__)
    parser.add_argument("--data_dir", help="folder of the set, default the first run's")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--run", type=Path, action="append", default=[], help="a run's folder; may be repeated")
    parser.add_argument("--greediness", type=float, nargs="+", default=[], help="act option; default: the run's")
    parser.add_argument("--samples", type=int, default=8, help="plans per scene of a run")
    with exit_on_user_error():
        options = parser.parse_args(arguments)
        check_at_least(options, samples=1)
        folder, policies = open_runs(options.run, options.data_dir)
        scenes = read_split(folder, options.split)
        found = planner_scores(scenes)
        for policy in policies:
            found |= run_scores(policy, options.split, scenes, options.greediness, options.samples)
        rows = []
        for label, scores in found.items():
            cells = [f"{100 * value:.1f}" for value in scores.mean(axis=(0, 1))]
            rows.append({f"{options.split} scenes": label, **dict(zip(TITLES, cells, strict=True))})
        print(format_rows(rows))


if __name__ == "__main__":
    main()
