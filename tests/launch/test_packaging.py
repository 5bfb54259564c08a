"""What the code imports, what requirements.txt pins and what setup.py declares agree."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import setuptools

import elc_bert

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for name in ("elc_bert", "data_tools", "launch", "benchmarks", "tests")
    for path in (ROOT / name).rglob("*.py")
)
# Scripts find modules beside them.
OURS = {"elc_bert", "data_tools", "launch", "benchmarks", "tests"} | {
    path.stem for path in (ROOT / "benchmarks").glob("*.py")
}
# What pip brings with a pinned package or with an extra that is not installed by default.
UNPINNED = {
    "triton": "part of torch's GPU builds",
    "pydantic_core": "part of pydantic",
}
# Modules that are themselves imported inside the function that needs them.
LAZY = {
    ROOT / "elc_bert" / name
    for name in (
        "optim/lamb_triton.py",
        "kernels/triton/kernels.py",
        "kernels/triton/attention.py",
        # Not imported here at all: transformers runs it, out of an export.
        "hub/files/configuration_elc_bert.py",
        "hub/files/modeling_elc_bert.py",
    )
}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imported(tree: ast.AST, top_level_only: bool) -> Iterator[str]:
    """First components of the names that a module imports; relative imports are ours."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]
        elif not (
            top_level_only
            and (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(node))
        ):
            yield from imported(node, top_level_only)


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    """Version by distribution name, read here by rules of its own."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    requirements = [re.fullmatch(r"([a-z0-9-]+)==(\d+(?:\.\d+)*)", line) for line in lines if line]
    assert all(requirements), "every requirement is a name and one exact version"
    versions = {match[1]: match[2] for match in requirements if match}
    assert len(versions) == len(requirements), "no distribution is pinned twice"
    return versions


@pytest.fixture(scope="module")
def metadata() -> dict:
    """What setup.py hands to setuptools."""
    captured: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", captured.update)
        patch.chdir(ROOT)
        path = ROOT / "setup.py"
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), {"__file__": str(path)})
    return captured


def test_every_third_party_import_is_pinned(pins):
    known = OURS | sys.stdlib_module_names | UNPINNED.keys() | {name.replace("-", "_") for name in pins}
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in SOURCES
        for name in imported(ast.parse(path.read_bytes()), top_level_only=False)
        if name not in known
    }
    assert not missing, f"pin in requirements.txt: {sorted(missing)}"


def test_importing_the_library_needs_no_optional_package():
    optional = {"transformers", "wandb", "triton", "mpi4py", "nltk"}
    eager = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] != "tests" and path not in LAZY
        for name in imported(ast.parse(path.read_bytes()), top_level_only=True)
        if name in optional
    }
    assert not eager, f"import inside the function that needs it: {sorted(eager)}"


def test_setup_declares_each_pin_once_and_with_its_version(pins, metadata):
    by_name = {name: f"{name}=={version}" for name, version in pins.items()}
    required, extras = metadata["install_requires"], metadata["extras_require"]
    mpi_and_dev = [*extras["mpi"], *extras["dev"]]
    assert sorted([*required, *mpi_and_dev, by_name["setuptools"]]) == sorted(by_name.values())
    assert set(extras["hf"]) <= set(extras["dev"])


def test_setup_reads_the_version_and_finds_the_packages(metadata):
    assert metadata["version"] == elc_bert.__version__
    assert {"elc_bert", "data_tools"} <= set(metadata["packages"])
    assert {name.partition(".")[0] for name in metadata["packages"]} == {"elc_bert", "data_tools"}
