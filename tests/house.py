"""Prints the size of the house, the tables of docs/architecture.md.

python -m tests.house
"""

import ast
import inspect
import io
import re
import tokenize
from pathlib import Path

from harness.algorithms import algorithm_names, load_algorithm

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("common", "envs", "harness", "algorithms", "benchmarks", "examples", "tests")


def lines(folder: Path, pattern: str = "*.py") -> int:
    """Lines of all files below a folder whose names fit the pattern."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.rglob(pattern))


def words(text: str) -> int:
    """Words of a page: what stands between spaces and has a letter or a digit, so that rules of tables do not count."""
    return sum(bool(re.search(r"\w", word)) for word in text.split())


def pages() -> dict[str, int]:
    """{name of a page of docs/: its words}."""
    return {path.name: words(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "docs").glob("*.md"))}


def tokens_per_line(text: str) -> float:
    """Python's tokens per line that has one, without comments, docstrings and the config class; a string is one."""
    tree, left_out = ast.parse(text), set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            left_out |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            left_out |= set(range(node.lineno - 1, node.end_lineno + 1))
    ignored = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    count, lines, depth = 0, set(), 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        depth -= kind == "FSTRING_END"  # from Python 3.12 on an f-string comes in pieces
        if token.type not in ignored and token.start[0] not in left_out and depth == 0 and kind != "FSTRING_START":
            count += 1
            lines.add(token.start[0])
        depth += kind == "FSTRING_START"
    return count / len(lines)


def main() -> None:
    sizes = {folder: lines(ROOT / folder) for folder in FOLDERS}
    print("| folder | lines of Python |\n|---|---|")
    for folder, count in sizes.items():
        print(f"| {folder} | {count:,} |")
    print(f"| all but tests | {sum(sizes.values()) - sizes['tests']:,} |")
    print(f"\nYAML files in configs/: {len(list((ROOT / 'configs').rglob('*.yaml')))}.")
    print(f"Words in docs/: {sum(pages().values()):,} on {len(pages())} pages.")
    print("\n| algorithm | lines | tokens a line |\n|---|---|---|")
    for name in algorithm_names():
        path = Path(inspect.getfile(load_algorithm(name).config_class))
        print(f"| {name} | {lines(path.parent, path.name)} | {tokens_per_line(path.read_text(encoding='utf-8')):.1f} |")


if __name__ == "__main__":
    main()
