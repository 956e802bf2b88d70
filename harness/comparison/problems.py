"""Problems of a comparison, collected so that all are told at once."""

import contextlib
from pathlib import Path
from typing import Iterator, List, Sequence, Union

from common.errors import UserError


def problem_list(path: Union[str, Path], problems: Sequence[str]) -> UserError:
    """One error for all problems."""
    if len(problems) == 1:
        return UserError(problems[0])
    return UserError("\n  ".join([f"{path}: {len(problems)} problems:", *problems]))


@contextlib.contextmanager
def noting(problems: List[str]) -> Iterator[None]:
    """Adds the text of a UserError to `problems` and goes on behind the block."""
    try:
        yield
    except UserError as error:
        problems.append(str(error))
