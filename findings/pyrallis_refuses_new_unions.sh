#!/usr/bin/env bash
# pyrallis 0.3.1 (seen with Python 3.11): a config class with a field of type `int | None` cannot be parsed at all, even
# without a flag: the type is handed to argparse as if it were a function. Optional[int], the same type to Python, works.
#
# Output seen:
#   Optional[int]: 3, None
#   int | None: ValueError: int | None is not callable
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pyrallis==0.3.1
cat > "$folder/parse.py" <<'PYTHON'
from dataclasses import dataclass
from typing import Optional

import pyrallis


@dataclass
class Old:
    size: Optional[int] = None


@dataclass
class New:
    size: int | None = None


values = [pyrallis.parse(config_class=Old, args=["--size", text]).size for text in ("3", "null")]
print(f"Optional[int]: {values[0]}, {values[1]}")
try:
    pyrallis.parse(config_class=New, args=[])
except ValueError as error:
    print(f"int | None: ValueError: {error}")
PYTHON
"$folder/venv/bin/python" "$folder/parse.py" > "$folder/output"
cat "$folder/output"
diff "$folder/output" - <<'EXPECTED'
Optional[int]: 3, None
int | None: ValueError: int | None is not callable
EXPECTED
