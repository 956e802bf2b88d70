"""Copies the blocks that algorithm files share from the first file that defines them into the others.

    python -m tests.sync_blocks

A block is a top-level function, class or constant other than a file's agent and config. Of a class a file keeps the
methods that it has: those that it leaves out stay out, and those of its own stay in.
"""

import ast
from pathlib import Path

from harness.algorithms import ROOT, algorithm_names

ORDER = ("dipole", "dipole_diffusion", "dipole_lora", "fql")  # files whose blocks come first; the others by name


def files() -> dict[str, Path]:
    """{algorithm name: its file}, the sources first."""
    names = [*ORDER, *(name for name in algorithm_names() if name not in ORDER)]
    return {name: next((ROOT / "algorithms").rglob(f"{name}.py")) for name in names}


def name_of(node: ast.stmt) -> str:
    """What a block is called: its name, or the names that an assignment makes."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return node.name
    return ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else ""


def text_of(node: ast.stmt, text: str) -> str:
    """The lines of a block, with decorators and the comments on its lines."""
    start = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
    return "\n".join(text.splitlines()[start - 1 : node.end_lineno])


def blocks_of(text: str) -> dict[str, ast.stmt]:
    """{name: node} of a file's blocks, without its config <Agent>Config and its agent."""
    found = {name_of(node): node for node in ast.parse(text).body if name_of(node)}
    config = next(name for name in found if name.endswith("Config"))
    return {name: node for name, node in found.items() if name not in (config, config.removesuffix("Config"))}


def merged(source: ast.stmt, source_text: str, target: ast.stmt, target_text: str) -> str:
    """The source's block as the target file should have it."""
    if not isinstance(source, ast.ClassDef):
        return text_of(source, source_text)
    wanted = {name_of(node) for node in target.body if name_of(node)}
    parts = [text_of(node, source_text) for node in source.body if not name_of(node) or name_of(node) in wanted]
    known = {name_of(node) for node in source.body}
    parts += [text_of(node, target_text) for node in target.body if name_of(node) and name_of(node) not in known]
    header = source_text.splitlines()[source.lineno - 1]
    return header + "\n" + "\n\n".join(parts)


def synchronise(texts: dict[str, str]) -> dict[str, str]:
    """{algorithm name: text of its file with the shared blocks of the files before it}."""
    sources: dict[str, tuple[ast.stmt, str]] = {}
    for name, text in texts.items():
        for block, node in blocks_of(text).items():
            source, source_text = sources.setdefault(block, (node, text))
            replaced = merged(source, source_text, node, text)
            texts[name] = texts[name].replace(text_of(node, text), replaced, 1)
    return texts


def main() -> None:
    paths = files()
    before = {name: path.read_text() for name, path in paths.items()}
    for name, text in synchronise(dict(before)).items():
        if text != before[name]:
            paths[name].write_text(text)
            print(f"{paths[name].relative_to(ROOT)}: shared blocks copied")


if __name__ == "__main__":
    main()
