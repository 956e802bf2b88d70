"""What the field scores on tasks, from published runs with a score for each seed; nothing of ours is needed.

    python -m harness.peers --tasks ogbench/cube-double-play --protocol A

Prints tables with means, intervals, interquartile means and probabilities of improvement, and writes them to --out with
figures and every seed (peers.md, peers.html, scores.csv). Sources: harness/report/peers/sources.yaml.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from common.errors import CommandParser, UserError, exit_on_user_error
from common.files import make_folder, write_text
from common.names import nearest_names
from harness.comparison.results import to_csv
from harness.report.blocks import Block
from harness.report.per_seed import Beside, blocks_of, key_of, load_sources
from harness.report.report import FIGURES, to_html, to_markdown


def write_peers(names: Sequence[str], protocol: str | None, out: Path) -> str:
    """Writes what the field scores on the tasks to `out`; returns the Markdown. Raises UserError."""
    sources = [source for source in load_sources() if protocol in (None, source.protocol)]
    known = sorted({key for source in sources for key in source.scores["task"]})
    keys: list[str] = []
    for name in names:
        key = key_of(name)
        found = [one for one in known if one == key or one.startswith(key + "/")]
        if not found:
            raise UserError(f"command line: --tasks {name}: nobody's seeds are here for it{nearest_names(key, known)}")
        keys += found
    figures = out / FIGURES
    make_folder(figures, "out")
    blocks = [Block("What others score", level=1, text=["Rows of different protocols are not comparable."])]
    scores = []
    for source in sources:
        tasks = {key: key for key in dict.fromkeys(keys) if key in set(source.scores["task"])}
        if tasks:
            scores.append(source.lines(tasks, {key: key.split("/")[1] for key in tasks}))
            blocks += blocks_of(Beside(source, scores[-1], (), {}), figures)
    text = to_markdown(blocks)
    write_text(out / "peers.md", text)
    write_text(out / "peers.html", to_html("What others score", blocks, figures))
    write_text(out / "scores.csv", to_csv(pd.concat(scores).dropna(axis="columns")))
    return text


def main(argv: Sequence[str] | None = None) -> None:
    flags = CommandParser("python -m harness.peers", __doc__, advice="; --help lists the flags")
    flags.add_argument("--tasks", nargs="+", required=True, metavar="TASK", help="tasks, or data sets: all their tasks")
    flags.add_argument("--protocol", choices=("A", "B"), help="only this one's runs (default: each in its own tables)")
    flags.add_argument("--out", type=Path, default=Path("runs/peers"), metavar="FOLDER", help="default: runs/peers")
    with exit_on_user_error():
        options = flags.parse_args(argv)
        print(write_peers(options.tasks, options.protocol, options.out))
        print(f"written: {options.out}")


if __name__ == "__main__":
    main()
