"""The nearest known names to a mistyped one, for error messages."""

import difflib
from typing import Iterable


def nearest_names(name: str, known: Iterable[str]) -> str:
    """`, did you mean a or b?` for the up to three names of `known` that resemble `name`; empty if none does."""
    nearest = difflib.get_close_matches(name, list(known), n=3)
    return f", did you mean {' or '.join(nearest)}?" if nearest else ""
