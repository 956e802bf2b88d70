"""What the field scores on tasks, from published runs with a score for each seed; nothing of ours is needed.

    python -m harness.peers --tasks ogbench/cube-double-play --protocol A

Prints tables with means, intervals, interquartile means and probabilities of improvement, and writes them to --out with
figures and every seed (peers.md, peers.html, scores.csv). Sources: harness/report/peers/sources.yaml.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from common.errors import CommandParser, UserError, exit_on_user_error
from common.files import make_folder, write_text
from common.names import nearest_names
from harness.comparison.results import to_csv
from harness.report.blocks import Block
from harness.report.per_seed import Beside, Source, blocks_of, key_of, load_sources
from harness.report.report import FIGURES, to_html, to_markdown


def parser(sources: Sequence[Source]) -> argparse.ArgumentParser:
    flags = CommandParser("python -m harness.peers", __doc__, advice="; --help lists the flags")
    flags.add_argument("--tasks", nargs="+", required=True, metavar="TASK", help="tasks, or data sets: all their tasks")
    protocols = sorted({source.protocol for source in sources})
    flags.add_argument("--protocol", choices=protocols, help="only this one's runs (default: each in its own tables)")
    flags.add_argument("--out", type=Path, default=Path("runs/peers"), metavar="FOLDER", help="default: runs/peers")
    return flags


def keys_of(names: Sequence[str], sources: Sequence[Source]) -> list[str]:
    """The keys of the tasks that the names ask for, in order. Raises UserError for a name without any."""
    known = sorted({key for source in sources for key in source.scores["task"]})
    found: dict[str, None] = {}
    for name in names:
        key = key_of(name)
        keys = [one for one in known if one == key or one.startswith(key + "/")]
        if not keys:
            groups = {one.rpartition("/")[0] if one.startswith("ogbench") else one for one in known}
            raise UserError(f"command line: --tasks {name}: nobody's seeds are here for it{nearest_names(key, groups)}")
        found |= dict.fromkeys(keys)
    return list(found)


def table_of(source: Source, keys: Sequence[str]) -> Beside | None:
    """The source's rows on these tasks alone."""
    own = [key for key in keys if key in set(source.scores["task"])]
    categories = {key: key.split("/")[1] for key in own}
    return Beside(source, source.lines(dict(zip(own, own, strict=True)), categories), (), {}) if own else None


def write_peers(names: Sequence[str], protocol: str | None, out: Path) -> str:
    """Writes everything to `out`; returns the Markdown. Raises UserError."""
    sources = load_sources()
    keys = keys_of(names, sources)
    tables = [table_of(source, keys) for source in sources if protocol in (None, source.protocol)]
    tables = [table for table in tables if table is not None]
    if not tables:
        raise UserError(f"command line: --protocol {protocol}: nobody's seeds are here for {', '.join(names)}")
    figures = out / FIGURES
    make_folder(figures, "out")
    blocks = [Block("What others score", level=1, text=["Rows of different protocols are not comparable."])]
    for table in tables:
        blocks += blocks_of(table, figures)
    text = to_markdown(blocks)
    write_text(out / "peers.md", text)
    write_text(out / "peers.html", to_html("What others score", blocks, figures))
    write_text(out / "scores.csv", to_csv(pd.concat([table.scores for table in tables]).dropna(axis="columns")))
    return text


def main(argv: Sequence[str] | None = None) -> None:
    with exit_on_user_error():
        options = parser(load_sources()).parse_args(argv)
        print(write_peers(options.tasks, options.protocol, options.out))
        print(f"written: {options.out}")


if __name__ == "__main__":
    main()
