"""The one error type for a user's mistake."""


class UserError(Exception):
    """A mistake of the user: one sentence that names the file, the field and the fix.

    Commands print it without a traceback and exit with code 2 (`harness.command_line.exit_on_user_error`).
    """
