"""The structure of the code: which module may import which, and how large files may become.

``make lint`` checks the direction of imports with import-linter. These tests do not depend on it.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"elc_bert": "elc_bert", "data_tools": "data_tools", "elc_bert_launch": "launch"}
"""Folder of each package, by the name under which it is imported."""
EXPORTED = ROOT / "elc_bert" / "hub" / "files"
"""Files that are copied to every export and run by transformers. This project does not import them."""
MAX_LINES = 350
MAX_LINES_OF_TRAIN = 60
MAX_FILES_OF_TRAINING = 20

Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    """Return the file of every module of the project, by name of the module."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not path.is_relative_to(EXPORTED):
                parts = path.relative_to(ROOT / folder).with_suffix("").parts
                found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


MODULES = modules()


def imported_names(path: Path, module: str) -> Iterator[str]:
    """Yield the full names of all imports of a file, at the top level and inside functions."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def nearest_module(name: str, known: Mapping[str, object]) -> str | None:
    """Return the module of this project that a full name belongs to, or None."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def import_graph() -> Graph:
    """Return the modules that each module imports."""
    graph: Graph = {}
    for module, path in MODULES.items():
        targets = {nearest_module(name, MODULES) for name in imported_names(path, module)}
        graph[module] = {target for target in targets if target and target != module}
    return graph


def cycles(graph: Graph) -> list[list[str]]:
    """Return groups of modules that import each other (strongly connected components, Tarjan's algorithm)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in index:
                visit(target)
                lowest[node] = min(lowest[node], lowest[target])
            elif target in stack:
                lowest[node] = min(lowest[node], index[target])
        if lowest[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def test_the_search_finds_cycles():
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": set(), "f": {"g"}, "g": {"f", "a"}}
    assert cycles(graph) == [["a", "b", "c"], ["f", "g"]]
    assert cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_search_finds_imports_inside_functions(tmp_path: Path):
    path = tmp_path / "module.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import elc_bert.config.schema\n"
        "def f():\n    from elc_bert.utils import files\n    from ..other import name\n"
    )
    found = {nearest_module(name, MODULES) for name in imported_names(path, "elc_bert.model.module")} - {None}
    assert found >= {"elc_bert.config.schema", "elc_bert.utils.files"}
    assert "elc_bert.other.name" in set(imported_names(path, "elc_bert.model.module"))


def test_there_are_no_import_cycles():
    assert cycles(import_graph()) == []


def importers(package: str) -> set[str]:
    """Return the modules that import a package or a part of it."""
    return {
        module
        for module, path in MODULES.items()
        for name in imported_names(path, module)
        if f"{name}.".startswith(f"{package}.")
    }


def test_the_library_does_not_parse_command_lines():
    assert [name for name in importers("argparse") if name.startswith("elc_bert.")] == []


def test_deepspeed_is_known_in_one_package_and_in_its_configuration():
    allowed = ("elc_bert.engine.", "elc_bert.config.deepspeed")
    assert [name for name in importers("deepspeed") if not name.startswith(allowed)] == []


def test_the_model_knows_nothing_of_processes():
    assert importers("deepspeed") | importers("torch.distributed"), "the search finds something"
    for package in ("deepspeed", "torch.distributed"):
        assert [name for name in importers(package) if name.startswith("elc_bert.model")] == []


def test_data_tools_uses_the_data_format_and_utilities_only():
    allowed = ("elc_bert.data.format", "elc_bert.utils", "data_tools")
    graph = import_graph()
    used = {target for module in graph if module.startswith("data_tools") for target in graph[module]}
    # The root package has the version only.
    assert [target for target in used - {"elc_bert"} if not target.startswith(allowed)] == []


def test_files_do_not_exceed_their_limit_of_lines():
    allowed = (EXPORTED, ROOT / "elc_bert" / "kernels")
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for folder in (*PACKAGES.values(), "benchmarks", "examples")
        for path in (ROOT / folder).rglob("*.py")
        if not path.is_relative_to(allowed[0]) and not path.is_relative_to(allowed[1])
    }
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}


def test_the_training_package_is_small():
    files = [path.name for path in (ROOT / "elc_bert" / "training").glob("*.py")]
    assert len(files) <= MAX_FILES_OF_TRAINING, sorted(files)


def test_the_training_loop_fits_on_a_screen():
    tree = ast.parse((ROOT / "elc_bert" / "training" / "loop.py").read_bytes())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    train = functions["train"]
    assert train.end_lineno is not None
    assert train.end_lineno - train.lineno + 1 <= MAX_LINES_OF_TRAIN


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_searched(package: str):
    assert sum(module.split(".")[0] == package for module in MODULES) > 5
