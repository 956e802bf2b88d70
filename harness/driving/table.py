"""Sub-scores of planners that need no learning, of the data and of runs, in the scenes of one split, times 100.

python -m harness.driving.table --data_dir DIR --split test --run RUN_DIR --run RUN_DIR --greediness 0 0.5 1

Every run gives --samples plans per scene and each value of --greediness, where its agent has that option; --best adds
the best of these by their own scores, which no driver has: the most that choosing among them could give. These are
PDM-style scores of this repository's own scenes, not NAVSIM's; choose settings by --split validation.
"""

from pathlib import Path
from typing import Callable, Iterable, Optional, Sequence

import numpy as np
from tqdm import tqdm

from common.errors import CommandParser, exit_on_user_error
from envs.driving.bandit import SceneSet, read_split
from envs.driving.collect import data_folder, read_sidecar
from envs.driving.curate import score_matrix
from envs.driving.planner import constant_velocity
from envs.driving.scene_files import SCORE_NAMES, SPLITS
from envs.driving.score import score
from harness.driving.policies import Policy, sample_plans

TITLES = ("NC", "DAC", "TTC", "C", "EP", "PDMS")  # of SCORE_NAMES
BASELINES: dict[str, Callable[[SceneSet], np.ndarray]] = {
    "constant velocity": lambda scenes: np.stack([constant_velocity(scene) for scene in scenes.scenes])[:, None],
    "logged driver": lambda scenes: scenes.logged_plans[:, None],
    "PDM-Closed-like planner": lambda scenes: scenes.reference_plans[:, None],
    "data: mean plan": lambda scenes: scenes.plans,
}


def scores_of(scenes: SceneSet, plans: np.ndarray, label: str) -> np.ndarray:
    """Scores [S, K, 6] by SCORE_NAMES of plans [S, K, 8, 3]."""
    pairs = tqdm(zip(scenes.scenes, plans, strict=True), desc=label, total=len(plans), disable=None, leave=False)
    return np.stack([score_matrix(score(scene, each)) for scene, each in pairs])


def best_of(scores: np.ndarray) -> np.ndarray:
    """The scores [S, 1, 6] of each scene's best plan."""
    best = scores[..., SCORE_NAMES.index("pdms")].argmax(axis=1)
    return scores[np.arange(len(scores)), best][:, None]


def rows(
    folder: Path, split: str, runs: Sequence[Path], greediness: Sequence[float], samples: int, best: bool
) -> Iterable[tuple]:
    """(label, mean scores [6]) of every row of the table, as they are computed."""
    scenes = read_split(folder, split)
    for label, plans in BASELINES.items():
        scores = scores_of(scenes, plans(scenes), label)
        yield label, scores.mean(axis=(0, 1))
    yield f"data: best of {scores.shape[1]}", best_of(scores).mean(axis=(0, 1))
    for run in runs:
        policy = Policy(run)
        settings: list[dict] = [{}]
        if greediness and "greediness" in policy.agent.act_options:
            settings = [{"greediness": value} for value in greediness]
        for options in settings:
            suffix = "".join(f", {name} {value:g}" for name, value in options.items())
            _, plans = sample_plans(policy, folder, split, samples, **options)
            label = f"{run.parent.parent.parent.name}{suffix} ({run.name})"
            scores = scores_of(scenes, plans, label)
            yield label, scores.mean(axis=(0, 1))
            if best:
                yield f"{label}: best of {samples}", best_of(scores).mean(axis=(0, 1))


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = CommandParser("python -m harness.driving.table", __doc__)
    parser.add_argument("--data_dir", help="folder of the set, as the task's")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--run", type=Path, action="append", default=[], help="a run's folder; may be repeated")
    parser.add_argument("--greediness", type=float, nargs="+", default=[], help="act option; default: the run's")
    parser.add_argument("--samples", type=int, default=8, help="plans per scene of a run")
    parser.add_argument("--best", action="store_true", help="also the best plan of each scene, a row of its own")
    with exit_on_user_error():
        options = parser.parse_args(arguments)
        folder = data_folder(options.data_dir)
        read_sidecar(folder)
        print(f"| {options.split} scenes | {' | '.join(TITLES)} |\n|---|{'---|' * len(TITLES)}", flush=True)
        for label, scores in rows(
            folder, options.split, options.run, options.greediness, options.samples, options.best
        ):
            print(f"| {label} | {' | '.join(f'{100 * value:.1f}' for value in scores)} |", flush=True)


if __name__ == "__main__":
    main()
