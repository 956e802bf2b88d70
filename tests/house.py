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
LAYOUT = {  # tokens that are no code
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING),
    tokenize.ENDMARKER,
}


def lines(folder: Path, pattern: str = "*.py") -> int:
    """Lines of all files below a folder whose names fit the pattern."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.rglob(pattern))


def words(text: str) -> int:
    """Words of a page: what stands between spaces and has a letter or a digit, so that rules of tables do not count."""
    return sum(bool(re.search(r"\w", word)) for word in text.split())


def pages() -> dict[str, int]:
    """{name of a page of docs/: its words}."""
    return {path.name: words(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "docs").glob("*.md"))}


def density(path: Path, config_class: str) -> float:
    """Tokens a line of code, comments, docstrings and the config class left out."""
    text = path.read_text(encoding="utf-8")
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef) and node.name == config_class:
            skipped |= set(range(node.lineno - len(node.decorator_list), node.end_lineno + 1))
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            skipped |= set(range(first.lineno, first.end_lineno + 1))
    tokens = [
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in LAYOUT and token.start[0] not in skipped
    ]
    return len(tokens) / len(set(tokens))


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
        config_class = load_algorithm(name).config_class
        path = Path(inspect.getfile(config_class))
        print(f"| {name} | {lines(path.parent, path.name)} | {density(path, config_class.__name__):.1f} |")


if __name__ == "__main__":
    main()
