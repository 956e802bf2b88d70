"""Published seeds: the files against their sources' means, their rows beside ours, the guard, and tuned settings."""

import csv
import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from common.errors import UserError
from harness import peers
from harness.algorithms import load_algorithm
from harness.comparison.matrix import Row, Variant
from harness.comparison.results import Results
from harness.config import load_settings
from harness.report.per_seed import SOURCES, beside, blocks_of, deviations, key_of, load_sources, peer_blocks
from harness.report.published import load_published
from harness.report.report import write_report
from harness.score_statistics import interval, standard_deviation
from tests.comparison_folders import Data, comparison_of, cube_double, fill

GFP, QAM, QAM_ONLINE = load_sources()
DIPOLE, FQL = Variant("dipole", "dipole", {}), Variant("fql", "fql", {})
ROWS = [Row("dipole", DIPOLE, {"num_candidates": 1}), Row("dipole", DIPOLE, {}), Row("fql", FQL, {})]
CUBE = [
    Data(f"ogbench/cube-double-play-singletask-task{n}-v0", "cube-double-play", "success", cube_double(n))
    for n in (1, 2)
]
STEPS = [700_000, 800_000, 900_000, 1_000_000]


# ---- The files ----


def seed_means(source, category, method):
    """Means [seeds] over a category's five tasks."""
    scores = source.scores[source.scores["task"].str.startswith(category + "/") & (source.scores["method"] == method)]
    wide = scores.pivot(index="seed", columns="task", values="score")
    assert wide.shape[1] == 5 and not wide.isna().any(axis=None)
    return wide.mean(axis="columns").to_numpy()


# GFP's means over five tasks, to a decimal, as they were read from its repository's tables.
GFP_MEANS = {
    "antmaze-giant-navigate": {"ReBRAC": 33.2, "FQL": 16.3, "GFP": 27.9},
    "antsoccer-arena-navigate": {"ReBRAC": 55.9, "GFP": 57.9},
    "cube-single-play": {"GFP": 98.8},
    "cube-double-play": {"ReBRAC": 12.6, "GFP": 47.2},
    "humanoidmaze-medium-navigate": {"ReBRAC": 59.2, "GFP": 72.0},
    "humanoidmaze-large-navigate": {"ReBRAC": 12.9, "FQL": 6.5, "GFP": 17.8},
    "scene-play": {"ReBRAC": 41.6, "GFP": 53.5},
    "puzzle-4x4-play": {"ReBRAC": 17.1, "GFP": 26.1},
    "cube-triple-play": {"IQL": 0.1, "ReBRAC": 2.9, "FQL": 3.9, "GFP": 15.9},
}
# QAM's mean ± standard deviation over 12 seeds at 1M; "" is the mean over all 50 tasks.
QAM_MEANS = {
    "": {"FQL": "36", "IFQL": "34", "ReBRAC": "40", "QSM": "42", "QAM-E": "46", "DSRL": "38"},
    "cube-double-play": dict(FQL="46±3", IFQL="11±2", ReBRAC="9±2", QSM="56±4", **{"QAM-E": "65±5"}, DSRL="74±3"),
    "humanoidmaze-medium-navigate": dict(FQL="68±6", IFQL="86±2", ReBRAC="69±9", QSM="83±4", DSRL="53±6"),
    "humanoidmaze-large-navigate": dict(FQL="9±3", IFQL="24±6", ReBRAC="17±3", QSM="10±3", DSRL="3±3"),
    "scene-play": dict(FQL="78±4", IFQL="84±3", ReBRAC="65±7", QSM="86±3", **{"QAM-E": "97±1"}, DSRL="99±1"),
    "antmaze-giant-navigate": dict(FQL="0", IFQL="1±1", ReBRAC="57±5", QSM="15±4", **{"QAM-E": "1±3"}, DSRL="3±3"),
}


@pytest.mark.parametrize("category", GFP_MEANS)
def test_gfps_seeds_give_its_means(category):
    for method, mean in GFP_MEANS[category].items():
        assert seed_means(GFP, f"ogbench/{category}", method).mean() == pytest.approx(mean, abs=0.06), method


@pytest.mark.parametrize("category", QAM_MEANS)
def test_qams_seeds_give_its_means(category):
    for method, text in QAM_MEANS[category].items():
        if category:
            means = seed_means(QAM, f"ogbench/{category}", method)
        else:
            means = QAM.scores[QAM.scores["method"] == method].groupby("seed")["score"].mean().to_numpy()
        mean, _, spread = text.partition("±")
        assert means.mean() == pytest.approx(float(mean), abs=0.51), method
        if spread:
            assert standard_deviation(means) == pytest.approx(float(spread), abs=0.51), method


def test_qams_seeds_give_the_published_table_without_seeds():
    (table,) = (table for table in load_published()[1] if table.protocol == "B")
    for category, scores in table.scores.items():
        for method, mean in scores.items():
            assert seed_means(QAM, f"ogbench/{category}", method).mean() == pytest.approx(float(mean), abs=0.51)
    online = QAM_ONLINE.scores.groupby("method")["score"].mean()
    assert online[["FQL", "QSM", "QAM-E"]].tolist() == pytest.approx([82, 76, 85], abs=0.51)


def test_every_source_is_whole_and_has_its_licence():
    sizes = [(len(one.scores.groupby(["task", "method"])), one.scores["seed"].nunique()) for one in load_sources()]
    assert sizes == [(705, 8), (800, 12), (850, 12)]
    assert QAM.scores["task"].nunique() == 50 and QAM_ONLINE.scores["method"].nunique() == 17
    ogbench = GFP.scores[GFP.scores["task"].str.startswith("ogbench/")]
    assert ogbench["task"].nunique() == 100 and ogbench["score"].between(0, 100).all()
    for name in ("gfp", "qam"):
        assert "Permission is hereby granted" in SOURCES.with_name(f"LICENSE.{name}").read_text()


def test_copied_columns_repeat_fqls_table():
    """DIPOLE's OGBench baselines, and its online ones, are the means of FQL's tables but for one misprint."""
    dipole, fql = ([t for t in load_published()[1] if t.source.startswith(name)] for name in ("Liang", "Park"))
    for category, scores in dipole[1].scores.items():
        for method in ("IQL", "ReBRAC", "IFQL", "FQL"):
            found = re.match(r"\d+", scores[method])[0]
            misprint = (category, method) == ("humanoidmaze-medium-navigate", "ReBRAC")
            assert (found == fql[0].scores[category][method]) is not misprint, (category, method)
    assert dipole[1].scores["humanoidmaze-medium-navigate"]["ReBRAC"] == "2±8 (FQL: 22±8, a misprint)"
    for task, scores in dipole[2].before_after.items():
        for method in ("IQL", "ReBRAC", "IFQL", "FQL"):
            assert re.sub(r"±\d+", "", scores[method]) == fql[1].before_after[task][method], (task, method)


# ---- Beside ours ----


def made_up(folder, data=CUBE, rows=ROWS, steps=STEPS, **fields):
    """Eight seeds; at 1M updates 0.5 plus 0.01 for each seed, 0.1 less for FQL; evaluations rise to that in a line."""
    values = {"offline_steps": 1_000_000} | fields
    comparison = comparison_of(folder, [DIPOLE, FQL], rows, data, range(8), **values)

    def final(run, cell=None):
        return 0.5 + 0.01 * run.seed - 0.1 * (run.variant.label == "fql")

    fill(comparison, data, final)
    for run in comparison.runs:
        lines = [f"{step},{final(run) * step / 1_000_000}" for step in steps]
        (run.folder / "eval.csv").write_text("\n".join(["step,success", *lines]) + "\n")
    return comparison


def line(block, name):
    (found,) = (row for row in block.rows if first(row) == name)
    return found


def first(row):
    return next(iter(row.values()))


def titles(blocks):
    return [block.title for block in blocks]


def test_rows_of_the_same_protocol_share_tables_and_figures(tmp_path):
    blocks = peer_blocks(Results(made_up(tmp_path / "runs")), tmp_path)
    assert titles(blocks)[:2] == ["Beside published seeds: GFP, protocol A", "cube-double-play (success, %)"]
    head, table = blocks[:2]
    assert "mean of the evaluations after 800,000, 900,000 and 1,000,000 updates" in head.text[0]
    ours, theirs = line(table, "FQL"), line(table, "ReBRAC (published: GFP, protocol A)")
    seeds = 90 * (0.4 + 0.01 * np.arange(8))  # the mean at 0.8, 0.9 and 1 of the way, in %
    low, high = interval([seeds, seeds])
    assert ours["mean"] == f"{seeds.mean():.1f} ± {standard_deviation(seeds):.1f} [{low:.1f}, {high:.1f}]"
    seeds = [GFP.scores[(GFP.scores["task"] == f"ogbench/cube-double-play/{n}") & (GFP.scores["method"] == "ReBRAC")]
             ["score"].to_numpy() for n in (1, 2)]  # fmt: skip
    low, high = interval(seeds)
    std = standard_deviation(np.mean(seeds, axis=0))
    assert theirs["mean"] == f"{np.mean(seeds):.1f} ± {std:.1f} [{low:.1f}, {high:.1f}]"
    assert "DIPOLE, N = 1: no score by their rule for these act options" in head.text[1]
    parts = dict(zip(titles(blocks), blocks, strict=True))
    aggregate, pairs = parts["Over all tasks"], parts["Probability of improvement"]
    names = {row["policy"] for row in aggregate.rows}
    assert names == set(map(first, table.rows)) == {row["policy"] for row in pairs.rows}
    assert list(aggregate.rows[0])[:3] == ["policy", "runs", "final: IQM"]
    for block in (head, parts["Performance profiles"]):
        assert (tmp_path / block.figure).stat().st_size > 10_000


def test_rows_of_another_protocol_stand_apart_with_the_reason(tmp_path):
    found = beside(Results(made_up(tmp_path)), QAM)
    assert found.own == () and set(found.apart) == {"DIPOLE, N = 1", "DIPOLE", "FQL"}
    assert found.apart["FQL"] == "action_chunk 1, theirs 5; num_critics 2, theirs 10; pessimism 0.0, theirs 0.5"
    head, table = blocks_of(found, tmp_path)
    assert head.title == "Published seeds: QAM, protocol B" and "stands apart" in head.text[1]
    assert len(table.rows) == 16 and all("published: QAM" in first(row) for row in table.rows)
    assert not list(tmp_path.glob("qam/*"))


def change(results, **changes):
    """The first finished run with other values in its config, its identity or its evaluations."""
    run = results.runs[0]
    identity = run.identity | changes.pop("identity", {})
    run = dataclasses.replace(run, environment=run.environment | {"data": identity})
    if "steps" in changes:
        return dataclasses.replace(run, evaluations=[{"step": str(step)} for step in changes["steps"]])
    return dataclasses.replace(
        run,
        run=dataclasses.replace(run.run, **{k: v for k, v in changes.items() if hasattr(run.run, k)}),
        config=dataclasses.replace(run.config, **{k: v for k, v in changes.items() if not hasattr(run.run, k)}),
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"eval_episodes": 100, "discount": 0.9}, ""),
        ({"offline_steps": 500_000}, "offline_steps 500000, theirs 1000000"),
        ({"online_steps": 10}, ""),  # comes after what is compared
        ({"action_chunk": 5}, "action_chunk 5, theirs 1"),
        ({"sparse": True}, "sparse True, theirs False"),
        ({"num_critics": 10}, "num_critics 10, theirs 2"),
        ({"identity": {"source": "locally generated"}}, "data locally generated, theirs official"),
        ({"steps": [850_000, 900_000, 950_000, 1_000_000]}, "no evaluation after 800,000 updates"),
        ({"steps": [1_000_000]}, "no evaluation after 800,000, 900,000 updates"),
    ],
)
def test_the_guard_names_what_differs(tmp_path, changes, reason):
    run = change(Results(made_up(tmp_path, CUBE[:1], ROWS[1:2])), **changes)
    found = deviations(run, GFP, "ogbench/cube-double-play/1")
    assert len(found) == bool(reason) and reason in "".join(found)


def test_the_settings_of_a_protocol_depend_on_the_task():
    assert QAM.settings_on("ogbench/humanoidmaze-large-navigate/1") | {} == QAM.settings | {
        "action_chunk": 1,
        "pessimism": 0.0,
    }
    assert QAM_ONLINE.settings_on("ogbench/puzzle-4x4-play-100m/2") == QAM.settings | {
        "sparse": True,
        "online_steps": 500_000,
        "online_start": 5_000,
    }


def test_rows_apart_share_the_table_when_asked_and_are_marked(tmp_path):
    found = beside(Results(made_up(tmp_path)), QAM, allow_mixed=True)
    assert set(found.own) == found.marked == {"DIPOLE, N = 1", "DIPOLE", "FQL"}
    head, table, *_ = blocks_of(found, tmp_path)
    assert line(table, "DIPOLE, N = 1 †")["mean"] == line(table, "DIPOLE †")["mean"]  # the same final score
    assert "is marked †" in head.text[1] and line(table, "FQL †")["mean"].startswith("43.5")


def test_the_end_of_an_offline_phase_is_compared_with_offline_scores(tmp_path):
    """QAM's runs go on for 500,000 steps online: one run of ours has the scores for both of its tables."""
    config = {"num_critics": 10, "pessimism": 0.5, "action_chunk": 5, "online_steps": 500_000, "online_start": 5_000}
    comparison = made_up(tmp_path, steps=[500_000, 1_000_000, 1_500_000], **config)
    results = Results(comparison)
    offline, online = (beside(results, source) for source in (QAM, QAM_ONLINE))
    assert offline.own == ("DIPOLE", "FQL") and online.own == ("DIPOLE, N = 1", "DIPOLE", "FQL")
    assert set(offline.apart) == {"DIPOLE, N = 1"} and not online.apart
    scores = [
        found.scores[found.scores["policy"] == "FQL"].groupby("seed")["final"].mean() for found in (offline, online)
    ]
    np.testing.assert_allclose(scores[0], 0.4 + 0.01 * np.arange(8))  # eval.csv's at 1M
    np.testing.assert_allclose(scores[1], 0.4 + 0.01 * np.arange(8))  # the final one: result.json's
    other = beside(results, GFP)
    assert not other.own and "num_critics 10, theirs 2" in other.apart["FQL"]


def test_local_data_and_other_tasks(tmp_path):
    local = [dataclasses.replace(one, identity=one.identity | {"source": "locally generated"}) for one in CUBE]
    results = Results(made_up(tmp_path / "local", local))
    found = beside(results, GFP)
    assert found.own == () and all("data locally generated" in reason for reason in found.apart.values())
    walker = [Data("exorl/rnd/walker_walk", "walker", "return", {"source": "official"})]
    assert peer_blocks(Results(made_up(tmp_path / "walker", walker)), tmp_path) == []


def test_a_report_holds_them(tmp_path):
    write_report(made_up(tmp_path / "runs"), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "## Beside published seeds: GFP, protocol A" in text and "## Published seeds: QAM, protocol B" in text
    assert 'src="data:image/png;base64' in (tmp_path / "report.html").read_text()
    assert "figures/gfp/scores.png" in text and (tmp_path / "figures/gfp/scores.png").exists()


@pytest.mark.parametrize(
    ("task", "identity", "key"),
    [
        ("ogbench/scene-play-singletask-task3-v0", None, "ogbench/scene-play/3"),
        ("ogbench/scene-play-singletask-v0", {"dataset": "scene-play", "reward_task": 2}, "ogbench/scene-play/2"),
        ("minari/D4RL/pen/human-v2", {"dataset": "D4RL/pen/human-v2"}, "minari/D4RL/pen/human-v2"),
    ],
)
def test_keys(task, identity, key):
    assert key_of(task, identity) == key and key in set(GFP.scores["task"])


# ---- The command ----


def test_the_command_prints_what_the_field_scores(tmp_path, capsys):
    peers.main(["--tasks", "ogbench/cube-double-play", "--protocol", "A", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    assert "GFP (published: GFP, protocol A) | 40 | 0.504" in text.replace("\\", "") and "protocol B" not in text
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert len(scores) == 5 * 5 * 8 and (tmp_path / "figures/gfp/profiles.png").exists()
    assert (tmp_path / "peers.md").read_text() in text and "</html>" in (tmp_path / "peers.html").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--tasks", "ogbench/cube-duble-play"],
            "nobody's seeds are here for it, did you mean ogbench/cube-double-play",
        ),
        (
            ["--tasks", "ogbench/antsoccer-arena-navigate", "--protocol", "B"],
            "antsoccer-arena-navigate: nobody's seeds are here for it",
        ),
    ],
)
def test_the_command_refuses_what_it_does_not_have(tmp_path, flags, message):
    protocol = flags[3] if len(flags) > 2 else None
    with pytest.raises(UserError, match=message):
        peers.write_peers([flags[1]], protocol, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- Settings ----

GFP_FIELDS = {
    "iql": {"expectile": "expectile", "alpha": "inverse_temperature"},
    "rebrac": {"alpha_actor": "actor_bc_weight", "alpha_critic": "critic_bc_weight", "q_agg": "pessimism"},
    "fql": {"alpha": "distillation_weight", "flow_steps": "flow_steps", "q_agg": "pessimism"},
}


def gfp_settings(algorithm):
    with open(SOURCES.parent / "gfp_settings" / f"{algorithm}_params.csv", encoding="utf-8") as file:
        return [pytest.param(algorithm, row, id=f"{algorithm}-{row['env_name']}") for row in csv.DictReader(file)]


@pytest.mark.parametrize(("algorithm", "row"), [case for name in GFP_FIELDS for case in gfp_settings(name)])
def test_variant_gfp_is_gfps_table(algorithm, row):
    parts = row["env_name"].split("_")
    task = f"ogbench/{'-'.join(parts)}-singletask-task1-v0"
    if row["benchmark"] == "Minari":
        task = f"minari/{'/'.join(parts[:2])}/{'-'.join(parts[2:])}"
    found = load_settings(load_algorithm(algorithm).config_class, {"task": task}, variant="gfp")
    run = (found.run.offline_steps, found.run.batch_size, found.config.discount)
    assert run == (int(row["offline_steps"]), int(row["batch_size"]), float(row["discount"]))
    for theirs, ours in GFP_FIELDS[algorithm].items():
        value = {"mean": 0.0, "min": None}[row[theirs]] if theirs == "q_agg" else float(row[theirs])
        assert getattr(found.config, ours) == value, ours


OMEGAS = {  # by data set, of tasks 1 to 5; None: no video names one
    "antsoccer-arena-navigate": (0.5, 0, 0.5, 0, None),
    "cube-single-play": (None, 0, 4, None, None),
    "cube-double-play": (None, 0.5, None, None, 0),
    "humanoidmaze-large-navigate": (0.5, None, 0.5, None, None),
    "humanoidmaze-medium-navigate": (None,) * 5,
}


@pytest.mark.parametrize("dataset", OMEGAS)
def test_variant_demo_omegas(dataset):
    config_class = load_algorithm("dipole").config_class
    for number, omega in enumerate(OMEGAS[dataset], start=1):
        task = {"task": f"ogbench/{dataset}-singletask-task{number}-v0"}
        config = load_settings(config_class, task, variant="demo_omegas").config
        assert config == dataclasses.replace(load_settings(config_class, task).config, greediness=omega or 0.0)
    walker = {"task": "exorl/rnd/walker_walk"}
    assert load_settings(config_class, walker, variant="demo_omegas").config.greediness == 4.0
    written = yaml.safe_load((Path(__file__).parents[1] / "configs" / "dipole" / "ogbench.yaml").read_text())
    named = sum(omega is not None for omegas in OMEGAS.values() for omega in omegas)
    assert len(written["variants"]["demo_omegas"]["tasks"]) == 7 and named == 10
