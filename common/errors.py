"""The one error type for a user's mistake, and how every command ends on one."""

import argparse
import errno
import os
import signal
import sys
import traceback
from contextlib import contextmanager
from typing import Any, Iterator, NoReturn, Optional, Sequence

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class UserError(Exception):
    """A mistake of the user: one sentence that names the file, the field and the fix.

    Commands print it without a traceback and exit with code 2 (`exit_on_user_error`).
    """


def one_line(error: object, length: Optional[int] = 200) -> str:
    """The text of an error, or of what it is about, in one line of at most so many characters (None: all).

    Its type where it has none.
    """
    return " ".join(str(error).split())[:length] or type(error).__name__


def with_place(error: BaseException) -> str:
    """An error of others' code in one line: its type, its text and where it was raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {one_line(error)}; {place.filename}, line {place.lineno}"


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a `UserError`, a full or read-only disk, or a missing permission, into one line on stderr and exit code 2.

    And Ctrl-C into exit code 130.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader, as of `| head`, has left; Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        is_forbidden = isinstance(error, PermissionError) and error.filename  # of a file, not of a process
        if error.errno not in DISK_ERRORS and not is_forbidden:
            raise
        fix = "change its permissions" if is_forbidden else "make room"
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}; {fix} and give the same command again", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def check_given_once(arguments: Sequence[str], repeatable: Sequence[str] = ()) -> None:
    """Raises UserError for a flag that stands twice among the arguments: argparse would take the last one silently."""
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    for flag in flags:
        if flags.count(flag) > 1 and flag not in repeatable:
            raise UserError(f"command line: {flag} is given twice, keep one")


def check_at_least(options: argparse.Namespace, **least: int) -> None:
    """Raises UserError for an option of that name whose value is below its least one; None is no value."""
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and value < smallest:
            raise UserError(f"command line: --{name} is {value}; it must be at least {smallest}")


class CommandParser(argparse.ArgumentParser):
    """A command's flags: whole names only, each given once, and a UserError instead of argparse's own exit.

    advice: the end of its sentence.
    """

    def __init__(self, prog: str, description: str = "", advice: str = ""):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=prog, description=description, formatter_class=formatter, allow_abbrev=False)
        self.advice = advice

    def parse_known_args(self, args: Optional[Sequence[str]] = None, namespace: Any = None) -> tuple:
        parsed = super().parse_known_args(args, namespace)  # parse_args calls it, too
        appended = [action.option_strings for action in self._actions if isinstance(action, argparse._AppendAction)]
        check_given_once(sys.argv[1:] if args is None else args, repeatable=sum(appended, []))
        return parsed

    def error(self, message: str) -> NoReturn:
        raise UserError(f"command line: {message}{self.advice}")
