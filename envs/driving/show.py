"""Draws a scene from above: the road, the others, candidate plans with their scores and the one that is chosen.

python -m envs.driving.show log_000005_040 --run RUN_DIR --out scene.png

SCENE is a scene's token, or a number of the test split. The candidates are a run's samples and the chosen plan is the
one that it gives at evaluation's settings; without --run they are the set's own plans and the rule-based planner's.
"""

import argparse
from pathlib import Path
from typing import Optional, Sequence

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from envs.driving.bandit import SceneSet, load_data, read_split
from envs.driving.boxes import corners
from envs.driving.collect import data_folder, read_sidecar
from envs.driving.planner import along_route
from envs.driving.scene import DRIVABLE, Scene
from envs.driving.scene_files import SPLITS
from envs.driving.score import Scores, score
from envs.driving.vehicle import LENGTH, REAR_AXLE_TO_CENTRE, WIDTH, X, Y
from envs.errors import UserError, exit_on_user_error
from envs.files import replacing

RADIUS = 45.0  # metres around the ego
CANDIDATES = 16
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
    """The picture; candidates and chosen hold simulated states and scores of plans."""
    figure = Figure(figsize=(9, 8.5), layout="constrained")
    axes = figure.add_subplot()
    _draw_road(axes, scene)
    for step in range(0, len(scene.agents), EVERY):
        for box in corners_of_agents(scene, step):
            axes.add_patch(Polygon(box, facecolor="tab:blue", edgecolor="navy", alpha=1.0 if step == 0 else 0.12))
    colours = matplotlib.colormaps["RdYlGn"]
    for states, pdms in zip(candidates.states, candidates.pdms, strict=True):
        axes.plot(states[:, X], states[:, Y], color=colours(pdms), linewidth=1.2, alpha=0.9)
    axes.plot(chosen.states[0, :, X], chosen.states[0, :, Y], color="black", linewidth=3.0, label="chosen")
    centre = scene.pose + REAR_AXLE_TO_CENTRE * np.array([np.cos(scene.pose[2]), np.sin(scene.pose[2]), 0.0])
    axes.add_patch(Polygon(corners(centre, LENGTH, WIDTH), facecolor="black"))
    axes.plot(*scene.centreline.T, color="grey", linestyle=":", linewidth=1.0)
    axes.set(xlim=scene.pose[0] + [-RADIUS, RADIUS], ylim=scene.pose[1] + [-RADIUS, RADIUS], aspect="equal")
    axes.set(xlabel="x [m]", ylabel="y [m]", title=title)
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1), colours)
    figure.colorbar(scale, ax=axes, label="PDMS of a candidate", shrink=0.7)
    axes.text(0.01, 0.01, summary(chosen), transform=axes.transAxes, family="monospace", fontsize=9, va="bottom")
    return figure


def summary(chosen: Scores) -> str:
    """The chosen plan's scores as text."""
    names = {
        "PDMS": "pdms",
        "no at-fault collision": "no_collision",
        "drivable area": "drivable_area",
        "time to collision": "time_to_collision",
        "comfort": "comfort",
        "ego progress": "progress",
    }
    return "\n".join(f"{label:<22}{getattr(chosen, name)[0]:.2f}" for label, name in names.items())


def corners_of_agents(scene: Scene, step: int) -> list[np.ndarray]:
    """Corners [4, 2] of the agents that are present at a step."""
    present = np.flatnonzero(~np.isnan(scene.agents[step, :, 0]))
    return [corners(scene.agents[step, agent, :3], *scene.size[agent]) for agent in present]


def _draw_road(axes: object, scene: Scene) -> None:
    road = scene.road
    low = np.floor((scene.pose[:2] - RADIUS - road.origin) / road.resolution).astype(int).clip(0)
    high = np.ceil((scene.pose[:2] + RADIUS - road.origin) / road.resolution).astype(int).clip(1)
    part = road.raster[low[0] : high[0], low[1] : high[1]]
    first = road.origin + road.resolution * (low - 0.5)
    last = first + road.resolution * np.array(part.shape)
    extent = (first[0], last[0], first[1], last[1])
    kinds = ((part & DRIVABLE) > 0).astype(int) + ((part & ~DRIVABLE) > 0)
    palette = ListedColormap(["#f3f3ee", "#c8c8c8", "#dcdcdc"])
    axes.imshow(kinds.T, origin="lower", extent=extent, cmap=palette, vmin=0, vmax=2, interpolation="nearest")


def plans_to_show(folder: Path, name: str, run: Optional[Path], candidates: int) -> tuple[Scene, np.ndarray, str]:
    """(scene, candidate plans with the chosen one at the end [B + 1, 8, 3], title)."""
    split, scenes, index = find_scene(folder, name)
    scene, title = scenes.scenes[index], f"{scenes.tokens[index]} ({split})"
    if run is None:
        chosen = scenes.reference_plans[index]
        return scene, np.concatenate([scenes.plans[index][:candidates], chosen[None]]), f"{title}, rule-based planner"
    from envs.driving.policies import Policy  # here: torch and the harness are not needed without a run

    policy = Policy(run)
    policy.check_scenes(folder)
    data = load_data(folder, policy.kind)
    observations = data.observations[split][index][None].repeat(candidates + 1, axis=0)
    bases = along_route(scene)[None].repeat(candidates + 1, axis=0)
    return scene, policy.plans(data, observations, bases), f"{title}, {policy.algorithm.name}"


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m envs.driving.show", description=__doc__.splitlines()[0])
    parser.add_argument("scene", metavar="SCENE", help="a token such as log_000005_040, or a number of the test split")
    parser.add_argument("--run", type=Path, help="a run's folder; default: the set's own plans")
    parser.add_argument("--data_dir", help="folder of the set, as the task's")
    parser.add_argument("--candidates", type=int, default=CANDIDATES)
    parser.add_argument("--out", type=Path, help="picture to write, default <SCENE>.png")
    options = parser.parse_args(arguments)
    with exit_on_user_error():
        folder = data_folder(options.data_dir)
        read_sidecar(folder)
        scene, plans, title = plans_to_show(folder, options.scene, options.run, options.candidates)
        path = options.out or Path(f"{options.scene}.png")
        with replacing(path) as temporary, open(temporary, "wb") as file:
            draw(scene, score(scene, plans[:-1]), score(scene, plans[-1:]), title).savefig(file, format="png", dpi=110)
        print(path)


if __name__ == "__main__":
    main()
