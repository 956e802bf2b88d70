"""The nearest known names to a mistyped one, for error messages."""

import difflib
from typing import Iterable


def nearest_names(name: str, known: Iterable[str]) -> str:
    """`, did you mean a or b?` for up to three names of `known` that resemble `name` in any case, else empty."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    nearest = [by_lower[match] for match in difflib.get_close_matches(name.lower(), list(by_lower), n=3)]
    return f", did you mean {' or '.join(nearest)}?" if nearest else ""
