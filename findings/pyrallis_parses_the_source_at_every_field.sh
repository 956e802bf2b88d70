#!/usr/bin/env bash
# pyrallis 0.3.1 (seen with Python 3.11): a parser takes each field's help from the comments in the class's source, asks
# inspect.getsource for it anew at every field, and inspect parses the whole file each time, as often as there are
# fields. With 80 fields in files of 400 lines this was 0.4 s of every command's start, with or without --help.
#
# Output seen:
#   1 field: its file is parsed 1 times
#   50 fields: their file is parsed 50 times
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pyrallis==0.3.1
cat > "$folder/parse.py" <<'PYTHON'
import ast
import importlib
import pathlib
import sys

import pyrallis

sys.path.insert(0, str(pathlib.Path(__file__).parent))
parse, parsed = ast.parse, []
ast.parse = lambda *arguments, **options: parsed.append(1) or parse(*arguments, **options)


def parses(fields):
    name = f"config_{fields}"
    lines = ["from dataclasses import dataclass", "@dataclass", "class Config:"]
    lines += [f"    field_{number}: int = 0  # help" for number in range(fields)]
    pathlib.Path(__file__).with_name(f"{name}.py").write_text("\n".join(lines) + "\n")
    module = importlib.import_module(name)
    parsed.clear()
    pyrallis.parse(config_class=module.Config, args=[])
    return len(parsed)


print(f"1 field: its file is parsed {parses(1)} times")
print(f"50 fields: their file is parsed {parses(50)} times")
PYTHON
"$folder/venv/bin/python" "$folder/parse.py" > "$folder/output"
cat "$folder/output"
diff "$folder/output" - <<'EXPECTED'
1 field: its file is parsed 1 times
50 fields: their file is parsed 50 times
EXPECTED
