"""Sub-scores of planners that need no learning, of the data and of runs, in the scenes of one split, times 100.

python -m harness.driving.table --split test --run RUN_DIR --run RUN_DIR --greediness 0 0.5 1

Every run gives --samples plans per scene and each value of --greediness, where its agent has that option; --best adds
the best of these by their own scores, which no driver has: the most that choosing among them could give. These are
PDM-style scores of this repository's own scenes, not NAVSIM's; choose settings by --split validation.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.errors import CommandParser, exit_on_user_error
from envs.driving.curate import score_matrix
from envs.driving.planner import constant_velocity
from envs.driving.scene_files import SCORE_NAMES, SPLITS, SceneSet, read_split
from envs.driving.score import score
from harness.driving.policies import Policy, open_runs
from harness.measurement import format_rows

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


def best_of(scores: np.ndarray) -> np.ndarray:
    """The scores [S, 1, 6] of each scene's best plan."""
    best = scores[..., SCORE_NAMES.index("pdms")].argmax(axis=1)
    return scores[np.arange(len(scores)), best][:, None]


def planner_scores(scenes: SceneSet) -> dict[str, np.ndarray]:
    """Scores [S, K, 6] of what needs no learning, by label; the best of each scene's own plans the last."""
    found = {label: scores_of(scenes, plans(scenes), label) for label, plans in BASELINES.items()}
    return found | {f"data: best of {found[DATA].shape[1]}": best_of(found[DATA])}


def run_scores(
    policy: Policy, split: str, scenes: SceneSet, greediness: Sequence[float], samples: int
) -> Iterator[tuple[str, np.ndarray]]:
    """(label, scores [S, samples, 6]) of a run, for each value of greediness where its agent has that option."""
    run_dir = policy.run_dir
    settings = [{"greediness": value} for value in greediness if "greediness" in policy.agent.act_options]
    for options in settings or [{}]:
        suffix = "".join(f", {name} {value:g}" for name, value in options.items())
        label = f"{run_dir.parent.parent.parent.name}{suffix} ({run_dir.name})"
        plans = policy.sample(scenes, policy.data.observations[split], samples, **options)
        yield label, scores_of(scenes, plans, label)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = CommandParser("python -m harness.driving.table", __doc__)
    parser.add_argument("--data_dir", help="folder of the set, default the first run's")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--run", type=Path, action="append", default=[], help="a run's folder; may be repeated")
    parser.add_argument("--greediness", type=float, nargs="+", default=[], help="act option; default: the run's")
    parser.add_argument("--samples", type=int, default=8, help="plans per scene of a run")
    parser.add_argument("--best", action="store_true", help="also the best plan of each scene, a row of its own")
    with exit_on_user_error():
        options = parser.parse_args(arguments)
        folder, policies = open_runs(options.run, options.data_dir)
        scenes = read_split(folder, options.split)
        found = planner_scores(scenes)
        for policy in policies:
            for label, scores in run_scores(policy, options.split, scenes, options.greediness, options.samples):
                found[label] = scores
                if options.best:
                    found[f"{label}: best of {options.samples}"] = best_of(scores)
        rows = []
        for label, scores in found.items():
            cells = [f"{100 * value:.1f}" for value in scores.mean(axis=(0, 1))]
            rows.append({f"{options.split} scenes": label, **dict(zip(TITLES, cells, strict=True))})
        print(format_rows(rows))


if __name__ == "__main__":
    main()
