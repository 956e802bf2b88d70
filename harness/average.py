"""Averages the weights of a run's last kept checkpoints; the average is one more checkpoint of the run.

    python algorithms/dipole.py --task driving/bandit --checkpoint_interval 2500 --keep_checkpoints true
    python -m harness.average RUN_DIR ... --last 5

writes RUN_DIR/checkpoints/average_<first>_<last step>/, which harness.evaluate and an agent's `load` take as a run, as
they do checkpoints/<step>/. Every network is averaged, critics too; optimisers and random states are the last's. Where
the weights lie close together, their mean acts much as the mean of the policies does (Izmailov et al. 2018, "Averaging
Weights Leads to Wider Optima and Better Generalization").
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from common.errors import CommandParser, UserError, exit_on_user_error
from common.files import make_folder, replacing
from harness import run_files
from harness.run_folder import checkpoint_folder, copy_files, load_run, networks_must_fit, read_checkpoint


def kept_steps(run_dir: Path) -> list[int]:
    """The updates after which the run kept a checkpoint, in order."""
    kept = run_dir / run_files.KEPT_CHECKPOINTS
    return sorted(int(folder.name) for folder in kept.glob("*") if folder.name.isdigit())


def average(run_dir: Path, last: int) -> Path:
    """Writes the mean of the run's last `last` kept checkpoints and returns its folder. Raises UserError."""
    algorithm, _, _ = load_run(run_dir)
    steps = kept_steps(run_dir)
    if len(steps) < last:
        raise UserError(
            f"{run_dir}: keeps {len(steps)} checkpoints, and --last is {last}: lower it, or train with "
            "--keep_checkpoints true and a smaller --checkpoint_interval"
        )
    steps = steps[-last:]
    folders = [checkpoint_folder(run_dir, str(step)) for step in steps]
    checkpoints = [read_checkpoint(folder / run_files.CHECKPOINT, algorithm.name) for folder in folders]
    networks = checkpoints[-1]["agent"]["networks"]
    with networks_must_fit(run_dir / run_files.KEPT_CHECKPOINTS):
        for name, own in networks.items():
            if own.is_floating_point():
                parts = [checkpoint["agent"]["networks"][name].double() for checkpoint in checkpoints]
                networks[name] = torch.stack(parts).mean(dim=0).to(own.dtype)
    out = checkpoint_folder(run_dir, f"average_{steps[0]}_{steps[-1]}")
    make_folder(out, "RUN_DIR")
    copy_files(folders[-1], out, (run_files.ENVIRONMENT, run_files.CONFIG))
    with replacing(out / run_files.CHECKPOINT) as temporary:
        torch.save(checkpoints[-1], temporary)
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    parser = CommandParser("python -m harness.average", __doc__, advice="; --help lists the flags")
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", type=Path)
    parser.add_argument("--last", type=int, default=5, help="so many checkpoints, the newest (default 5)")
    with exit_on_user_error():
        options = parser.parse_args(arguments)
        if options.last < 2:
            raise UserError(f"command line: --last is {options.last}; an average is of 2 checkpoints or more")
        for run_dir in options.run_dirs:
            print(f"written: {average(run_dir, options.last)}")


if __name__ == "__main__":
    main()
