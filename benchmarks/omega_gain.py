"""What greediness adds to each row of a driving comparison, beside the spread of beta A that its weights are made from.

    python -m harness.driving.results --comparison FILE --out FOLDER --greediness 0 0.5 1 --noise_scale 1 0 ...
    python -m benchmarks.omega_gain --comparison FILE --out FOLDER

The second command reads the first one's scores.csv in FOLDER (the test scenes) and the runs' logs, and writes

    omega.png    the score against omega, a line for each row with two policies, a panel for each start noise
    omega.csv    by row and noise scale: mean score at omega 0; the most that another omega adds to it, that omega, and
                 its least and largest gain over the seeds; over the last half of the log the standard deviation of
                 beta A, the share of weights within 0.01 of 0 or 1, and the largest over the median positive loss; of
                 several seeds with two policies how much their difference varies by seed (`by_seed`)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch

from common.errors import CommandParser, UserError, exit_on_user_error, one_line
from common.files import write_text
from harness import run_files
from harness.comparison.matrix import load_comparison
from harness.comparison.results import Results, RunResult, with_checkpoint
from harness.loggers import read_rows
from harness.plots import new_figure, plot_line, save
from harness.run_folder import checkpoint_folder, load_agent, load_run_task

LOGGED = ("value/advantage_std", "actor/weight_saturated", "actor/positive_loss")
SPREAD = ("spread_seeds", "spread_share", "spread_left")
POINTS = 4096  # validation transitions, each with a noise and a time of its own


def logged(run: RunResult, titles: Mapping[str, str]) -> dict[str, float]:
    """Of the last half of a run's log the three measures, beside its row's title, by the labels of the runs."""
    log = pd.DataFrame(read_rows(run.planned.folder / run_files.TRAIN_LOG))[["step", *LOGGED]].apply(pd.to_numeric)
    last = log[2 * log["step"] > run.run.total_updates]
    deviation, saturated, loss = (last[name] for name in LOGGED)
    return {
        "label": titles[run.planned.variant.label],
        "beta_advantage_std": run.config.inverse_temperature * deviation.mean(),
        "saturated": saturated.mean(),
        "loss_spike": loss.max() / loss.median(),
    }


@torch.no_grad()
def by_seed(runs: Sequence[RunResult], titles: Mapping[str, str], checkpoint: str = "") -> dict[str, float]:
    """How much of v+ - v-, which omega multiplies, differs between runs of other seeds: at validation data, full noise.

    spread_share: the variance over the seeds of v+ - v- over its mean square (0: all alike; above 1 where nothing is
    common to them). spread_left: the same variance over those of v+ and v- together (1: they are uncorrelated; 0: they
    cancel). What all seeds get wrong alike is not seen.
    """
    data, generator = load_run_task(runs[0].run).validation, torch.Generator().manual_seed(0)
    batch = data.sample(POINTS, generator)
    x0 = torch.randn(batch["actions"].shape, generator=generator)
    t = torch.rand(POINTS, 1, generator=generator)
    x_t = (1 - t) * x0 + t * batch["actions"]
    variant = runs[0].planned.variant
    folders = [checkpoint_folder(run.planned.folder, checkpoint) for run in runs]
    agents = [load_agent(variant.agent_class, folder, variant.algorithm) for folder in folders]
    velocities = torch.stack([agent.flow(batch["observations"], x_t, t) for agent in agents])  # [seeds, 2, B, A]
    difference = velocities[:, 0] - velocities[:, 1]
    spread = difference.var(dim=0).mean()
    return {
        "label": titles[variant.label],
        "spread_seeds": len(runs),
        "spread_share": float(spread / difference.square().mean()),
        "spread_left": float(spread / velocities.var(dim=0).sum(dim=0).mean()),
    }


def gains(scores: pd.DataFrame) -> pd.DataFrame:
    """A line for each row and noise scale. scores: PDMS by label, noise_scale, greediness and seed."""
    lines = []
    for (label, noise), group in scores.groupby(["label", "noise_scale"], sort=False):
        by_omega = group.pivot(index="seed", columns="greediness", values="pdms")
        added = by_omega.drop(columns=0.0).sub(by_omega[0.0], axis="index")
        line = {"label": label, "noise_scale": noise, "seeds": len(by_omega), "omega_0": by_omega[0.0].mean()}
        if added.size:
            best = added.mean().idxmax()
            line |= {"omega": best, "gain": added[best].mean(), "least": added[best].min(), "most": added[best].max()}
        lines.append(line)
    return pd.DataFrame(lines)


def draw(scores: pd.DataFrame, path: Path) -> None:
    """A panel for each noise scale; bars from the lowest to the highest seed."""
    scales, omegas = scores["noise_scale"].unique(), sorted(scores["greediness"].unique())
    figure, panels = new_figure(len(scales), 4.2, 3.6, len(scales))
    for scale, axes in zip(scales, panels, strict=True):
        for index, (label, group) in enumerate(scores[scores["noise_scale"] == scale].groupby("label", sort=False)):
            points = group.groupby("greediness")["pdms"].agg(["mean", "min", "max"])
            plot_line(axes, index, label, omegas, *points.to_numpy().T)
        axes.set_title(f"start noise x {scale:g}", fontsize=9)
        axes.set_xlabel("greediness ω", fontsize=8)
    panels[0].set_ylabel("PDMS x 100, test", fontsize=8)
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    save(figure, path)


def read_scores(folder: Path) -> pd.DataFrame:
    """The lines of scores.csv in the test scenes that have a noise scale; one policy has greediness 0."""
    path = folder / "scores.csv"
    if not path.is_file():
        raise UserError(f"{path}: no such file, write it with harness.driving.results --out {folder}")
    try:
        scores = pd.read_csv(path)
        scores = scores[(scores["split"] == "test") & scores["noise_scale"].notna()].fillna({"greediness": 0.0})
        has_zero = scores["greediness"].eq(0).groupby([scores["label"], scores["noise_scale"]]).any()
    except (ValueError, KeyError) as error:  # pandas' own are of these
        raise UserError(
            f"{path}: is no table of harness.driving.results ({one_line(error)}); write it again"
        ) from error
    if scores.empty or not has_zero.all():
        raise UserError(
            f"{path}: lacks omega 0 or noise scales; give harness.driving.results --greediness 0 ... and both"
        )
    return scores


def main() -> None:
    parser = CommandParser("python -m benchmarks.omega_gain", __doc__)
    parser.add_argument("--comparison", required=True, metavar="FILE", help="the file that harness.compare ran")
    parser.add_argument("--run_dir", metavar="FOLDER", help="in place of the file's, as harness.compare's")
    parser.add_argument("--checkpoint", default="", metavar="NAME", help="as harness.driving.results'")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="has scores.csv, takes the files")
    with exit_on_user_error():
        asked = parser.parse_args()
        comparison = load_comparison(asked.comparison, asked.run_dir)
        titles = {row.variant.label: row.title for row in comparison.rows}
        scores = read_scores(asked.out)
        runs = with_checkpoint(Results(comparison).runs, asked.checkpoint)
        runs = [run for run in runs if hasattr(run.config, "weighting")]
        measures = pd.DataFrame(logged(run, titles) for run in runs).groupby("label").mean()
        groups = [[run for run in runs if run.planned.variant is variant] for variant in comparison.variants()]
        several = [own for own in groups if len(own) > 1 and own[0].config.num_policies == 2]
        spread = pd.DataFrame((by_seed(own, titles, asked.checkpoint) for own in several), columns=["label", *SPREAD])
        table = gains(scores).merge(measures, on="label", how="left").merge(spread, on="label", how="left")
        write_text(asked.out / "omega.csv", table.round(4).to_csv(index=False, lineterminator="\n"))
        swept = scores.groupby("label")["greediness"].transform("nunique") > 1
        draw(scores[swept], asked.out / "omega.png")
        print(table.round(2).to_string(index=False))
        print(f"written: {asked.out / 'omega.csv'}, {asked.out / 'omega.png'}")


if __name__ == "__main__":
    main()
