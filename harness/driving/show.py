"""Draws a scene from above: the road, the others, candidate plans with their scores and the one that is chosen.

python -m harness.driving.show log_000005_040 --run RUN_DIR

SCENE is a scene's token, or a number of the test split. The candidates are a run's samples and the chosen plan is the
one that it gives at evaluation's settings; without --run they are the set's own plans and the rule-based planner's.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon

from common.errors import CommandParser, UserError, exit_on_user_error
from common.files import replacing
from envs.driving.boxes import corners
from envs.driving.curate import score_matrix
from envs.driving.scene import Scene
from envs.driving.scene_files import SPLITS, SceneSet, read_split
from envs.driving.score import Scores, score
from envs.driving.vehicle import LENGTH, REAR_AXLE_TO_CENTRE, WIDTH, X, Y
from harness.driving.policies import Policy, open_runs
from harness.driving.table import TITLES

MARGIN = 10.0  # metres of road around the plans
SMALLEST = 50.0  # metres that a picture shows at least
COLOURS = matplotlib.colormaps["RdYlGn"]  # of a score between 0 and 1
GROUND = ("#f3f3ee", "#b5b5b5", "#dcdcdc")  # off the road, drivable without a lane, lane
CANDIDATES = 16
PIXEL = 0.2  # metres
EVERY = 10  # steps between the drawn places of the others: a second


def find_scene(folder: Path, name: str) -> tuple[str, SceneSet, int]:
    """(split, its scenes, number of the scene) by token or by a number of the test split. Raises UserError."""
    for split in SPLITS if not name.isdigit() else ("test",):
        scenes = read_split(folder, split)
        if name.isdigit() and int(name) < len(scenes.tokens):
            return split, scenes, int(name)
        if name in scenes.tokens:
            return split, scenes, scenes.tokens.index(name)
    tokens = read_split(folder, "test").tokens
    raise UserError(f"scene {name}: not in {folder}; the test split has 0 to {len(tokens) - 1}, {tokens[0]} the first")


def draw(scene: Scene, candidates: Scores, chosen: Scores, title: str) -> Figure:
    """The picture; candidates and chosen hold simulated states and scores of plans. The best candidate is number 1."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    road, scores = figure.subplots(1, 2, width_ratios=(2.2, 1))
    order = np.argsort(-candidates.pdms, kind="stable")
    _draw_road(road, scene, *view(scene, np.concatenate([candidates.states, chosen.states])))
    for step in range(0, len(scene.agents), EVERY):
        for box in corners_of_agents(scene, step):
            road.add_patch(Polygon(box, facecolor="tab:blue", edgecolor="navy", alpha=1.0 if step == 0 else 0.12))
    centre = scene.pose + REAR_AXLE_TO_CENTRE * np.array([np.cos(scene.pose[2]), np.sin(scene.pose[2]), 0.0])
    road.add_patch(Polygon(corners(centre, LENGTH, WIDTH), facecolor="black"))
    road.plot(*scene.centreline.T, color="dimgrey", linestyle=":", linewidth=1.2)
    road.plot(chosen.states[0, :, X], chosen.states[0, :, Y], color="black", linewidth=4.0)
    for rank, index in list(enumerate(order, start=1))[::-1]:  # the best on top
        x, y = candidates.states[index][:, [X, Y]].T
        road.plot(x, y, color=COLOURS(candidates.pdms[index]), linewidth=1.4)
        road.annotate(str(rank), (x[-1], y[-1]), xytext=(2, 2), textcoords="offset points", fontsize=7)
    road.set(xlabel="x [m]", ylabel="y [m]", title=title)
    figure.legend(handles=_legend(), loc="outside lower left", ncols=5, fontsize=8, frameon=False)
    _draw_scores(scores, [str(rank) for rank in range(1, len(order) + 1)], score_matrix(candidates)[order], chosen)
    return figure


def view(scene: Scene, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corner of the square that holds the ego and all plans' states [B, T, 9], with a margin."""
    points = np.concatenate([states[..., [X, Y]].reshape(-1, 2), scene.pose[None, :2]])
    low, high = points.min(axis=0), points.max(axis=0)
    half = max(MARGIN + (high - low).max() / 2, SMALLEST / 2)
    return (low + high) / 2 - half, (low + high) / 2 + half


def _legend() -> list:
    faded = {"facecolor": "tab:blue", "edgecolor": "navy", "alpha": 0.2}
    return [
        Patch(facecolor="black", label="ego"),
        Patch(facecolor="tab:blue", edgecolor="navy", label="others"),
        Patch(**faded, label="the same, second by second"),
        Line2D([], [], color="dimgrey", linestyle=":", label="route"),
        Line2D([], [], color="black", linewidth=4.0, label="chosen plan; thin lines: candidates, coloured by PDMS"),
    ]


def _draw_scores(axes: Axes, labels: list[str], candidates: np.ndarray, chosen: Scores) -> None:
    """The scores as a coloured table: the chosen plan, then the candidates [B, 6], best first."""
    table = np.concatenate([score_matrix(chosen), candidates])
    axes.imshow(table, cmap=COLOURS, vmin=0.0, vmax=1.0, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        shade = "white" if abs(value - 0.5) > 0.4 else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=shade)
    axes.axhline(0.5, color="black", linewidth=2.0)
    axes.set_xticks(range(len(TITLES)), TITLES)
    axes.set_yticks(range(len(table)), ["chosen", *labels])
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)


def corners_of_agents(scene: Scene, step: int) -> list[np.ndarray]:
    """Corners [4, 2] of the agents that are present at a step."""
    present = np.flatnonzero(~np.isnan(scene.agents[step, :, 0]))
    return [corners(scene.agents[step, agent, :3], *scene.size[agent]) for agent in present]


def _draw_road(axes: Axes, scene: Scene, low: np.ndarray, high: np.ndarray) -> None:
    """Draws the road between two corners, which become the limits of the axes."""
    x, y = (np.arange(low[axis], high[axis], PIXEL) + PIXEL / 2 for axis in (0, 1))
    rows = np.stack(np.meshgrid(x, y), axis=-1)
    kinds = np.stack([scene.road.drivable_at(row).astype(int) + scene.road.lane_at(row) for row in rows])
    extent = (low[0], low[0] + PIXEL * len(x), low[1], low[1] + PIXEL * len(y))
    palette = ListedColormap(GROUND)
    axes.imshow(kinds, origin="lower", extent=extent, cmap=palette, vmin=0, vmax=2, interpolation="nearest")
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", facecolor=GROUND[0])


def plans_to_show(
    folder: Path, name: str, policy: Policy | None, candidates: int
) -> tuple[Scene, np.ndarray, np.ndarray, str]:
    """(scene, candidate plans [B, 8, 3], the chosen one [1, 8, 3], title)."""
    split, scenes, index = find_scene(folder, name)
    scene, title = scenes.scenes[index], f"{scenes.tokens[index]} ({split})"
    if policy is None:
        chosen = scenes.reference_plans[index]
        return scene, scenes.plans[index][:candidates], chosen[None], f"{title}, rule-based planner"
    observation = policy.data.observations[split][[index]]
    plans = policy.sample(replace(scenes, scenes=[scene]), observation, candidates + 1)[0]
    return scene, plans[:-1], plans[-1:], f"{title}, {policy.algorithm.name}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = CommandParser("python -m harness.driving.show", __doc__)
    parser.add_argument("scene", metavar="SCENE", help="a token such as log_000005_040, or a number of the test split")
    parser.add_argument("--run", type=Path, help="a run's folder; default: the set's own plans")
    parser.add_argument("--data_dir", help="folder of the set, default the run's")
    parser.add_argument("--candidates", type=int, default=CANDIDATES)
    parser.add_argument("--out", type=Path, help="picture to write, default scene_<SCENE>.png beside run or set")
    with exit_on_user_error():
        options = parser.parse_args(arguments)
        folder, policies = open_runs([options.run] if options.run else [], options.data_dir)
        policy = policies[0] if policies else None
        scene, candidates, chosen, title = plans_to_show(folder, options.scene, policy, options.candidates)
        path = options.out or (options.run or folder) / f"scene_{options.scene}.png"
        with replacing(path) as temporary:
            figure = draw(scene, score(scene, candidates), score(scene, chosen), title)
            figure.savefig(temporary, format="png", dpi=110)
        print(path)


if __name__ == "__main__":
    main()
