"""Imports, the pins of requirements.txt and the package metadata agree; a built wheel is complete."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import elc_bert
from elc_bert.distributed.launchers import set_environment
from elc_bert.utils.errors import UserError
from elc_bert.utils.extras import PACKAGES
from tests.support.launching import environment

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for name in ("elc_bert", "data_tools", "launch", "benchmarks", "tests", "examples", "docs")
    for path in (ROOT / name).rglob("*.py")
)
# Scripts can import the modules in their own folder by their plain names.
OURS = {"elc_bert", "elc_bert_launch", "data_tools", "benchmarks", "tests"} | {
    path.stem for folder in ("benchmarks", "examples", "docs") for path in (ROOT / folder).glob("*.py")
}
# Packages that pip installs together with a pinned one or with a build of it.
UNPINNED = {
    "wandb": "used only by those who log to it, in whatever version they have",
    "comet_ml": "likewise",
    "triton": "part of torch's GPU builds; tests/kernels/triton.txt pins it for the CPU build",
    "pydantic_core": "part of pydantic",
    "packaging": "required by deepspeed and pytest",
    "typing_extensions": "required by torch and pydantic",
}
# Modules that are themselves imported inside the function that needs them.
LAZY = {
    ROOT / "elc_bert" / name
    for name in (
        "optim/lamb_triton.py",
        "kernels/triton/kernels.py",
        "kernels/triton/attention.py",
        # transformers runs these files, which are copied to every export.
        "hub/files/configuration_elc_bert.py",
        "hub/files/modeling_elc_bert.py",
    )
}
# Optional packages of the library, imported inside the functions that use them. Without them, something else
# takes their place or one line says what to install.
OPTIONAL = {"mpi4py", "scipy_openblas32", "triton"}


CLEAN = "clean --input tiny.txt --output clean --workers 1"
BUILD = "build --tokenizer tokenizer.json --output set --workers 1 --lengths 32"


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imported(tree: ast.AST, top_level_only: bool) -> Iterator[str]:
    """Yield the top-level package of every import of a module, except relative imports."""
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


def third_party(path: Path, top_level_only: bool = False) -> set[str]:
    """Return the third-party packages that a file imports."""
    names = imported(ast.parse(path.read_bytes()), top_level_only)
    return set(names) - OURS - sys.stdlib_module_names


def import_name(distribution: str) -> str:
    return distribution.replace("-", "_")


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    """Versions in requirements.txt by distribution name, parsed by a strict regular expression."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    requirements = [re.fullmatch(r"([a-z0-9-]+)==(\d+(?:\.\d+)*)", line) for line in lines if line]
    assert all(requirements), "every requirement must be a name and one exact version"
    versions = {match[1]: match[2] for match in requirements if match}
    assert len(versions) == len(requirements), "a distribution is pinned twice"
    return versions


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def required(project) -> dict[str, Requirement]:
    """Requirements of every installation, by distribution name."""
    return {each.name: each for each in map(Requirement, project["dependencies"])}


@pytest.fixture(scope="module")
def extras(project) -> dict[str, dict[str, Requirement]]:
    """Requirements of every extra, by distribution name; ``dev`` without the extras that it includes."""
    return {
        extra: {each.name: each for each in map(Requirement, lines) if each.name != "elc-bert"}
        for extra, lines in project["optional-dependencies"].items()
    }


def test_every_third_party_import_is_pinned(pins):
    known = UNPINNED.keys() | {import_name(name) for name in pins}
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in SOURCES
        for name in third_party(path)
        if name not in known
    }
    assert not missing, f"pin in requirements.txt: {sorted(missing)}"


def test_importing_the_library_needs_no_optional_package():
    optional = {
        "transformers",
        "wandb",
        "triton",
        "mpi4py",
        "nltk",
        "pyarrow",
        "sentencex",
        "scipy_openblas32",
    }
    eager = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] not in ("tests", "examples") and path not in LAZY
        for name in third_party(path, top_level_only=True) & optional
    }
    assert not eager, f"import inside the function that needs it: {sorted(eager)}"


@pytest.mark.parametrize(
    ("folder", "needs"),
    [
        ("elc_bert", []),
        ("elc_bert/report", ["report"]),
        ("data_tools", ["data", "mpi"]),
        ("launch", []),
        ("benchmarks", ["data"]),
    ],
)
def test_every_import_is_declared_where_it_is_needed(folder, needs, required, extras):
    declared = {import_name(name) for name in required}
    for extra in needs:
        declared |= {import_name(name) for name in extras[extra]}
    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in SOURCES
        if path.is_relative_to(ROOT / folder) and path not in LAZY
        if folder != "elc_bert" or not path.is_relative_to(ROOT / "elc_bert" / "report")
        for name in third_party(path) - declared - UNPINNED.keys() - OPTIONAL
    }
    assert not undeclared


def test_pins_lie_within_the_ranges_and_each_is_declared_once(pins, required, extras):
    declared = [*required.values(), *(each for extra in extras.values() for each in extra.values())]
    assert sorted(each.name for each in declared) == sorted(pins)
    for requirement in declared:
        assert requirement.specifier, f"{requirement.name}: needs a lower bound"
        assert "==" not in str(requirement.specifier), f"{requirement}: must be a range, not a pin"
        assert requirement.specifier.contains(pins[requirement.name]), requirement


def test_dev_includes_all_other_extras(project, extras):
    (included,) = (
        each.extras
        for each in map(Requirement, project["optional-dependencies"]["dev"])
        if each.name == "elc-bert"
    )
    assert included == extras.keys() - {"dev"}


def test_error_messages_name_the_right_extra_of_every_optional_package(extras):
    runtime = {
        import_name(name): extra
        for extra in extras.keys() - {"dev"}
        for name in extras[extra]
        if name != "openmpi"  # it consists of programs and has no Python package
    }
    assert runtime == PACKAGES


@pytest.mark.parametrize(
    ("package", "extra", "module", "arguments", "ranks"),
    [
        ("plotly", "report", "elc_bert_launch.report", ".", 1),
        ("jinja2", "report", "elc_bert_launch.report", ".", 1),
        ("ftfy", "data", "data_tools.__main__", CLEAN, 1),
        ("sacremoses", "data", "data_tools.__main__", f"{CLEAN} --corpus bnc_spoken", 1),
        ("sentencex", "data", "data_tools.__main__", f"{BUILD} --input tiny.txt", 1),
        ("nltk", "data", "data_tools.__main__", f"{BUILD} --input tiny.txt --sentences punkt", 1),
        ("pyarrow", "data", "data_tools.__main__", f"{BUILD} --input text.parquet", 1),
        ("pyarrow", "data", "data_tools.__main__", f"{BUILD} --input text.txt.zst", 1),
        ("sentencex", "data", "data_tools.__main__", f"{BUILD} --input tiny.txt", 2),
        ("pyarrow", "data", "data_tools.__main__", f"{BUILD} --input text.txt.zst", 2),
    ],
)
def test_a_missing_extra_is_named_in_one_line(
    package, extra, module, arguments, ranks, tiny_text, tiny_tokenizer, tmp_path
):
    text = tiny_text.read_text(encoding="utf-8")
    (tmp_path / "tiny.txt").write_text(
        f"{text}\nIt 's ''a caf\u00e9'' &amp; is n't one .\n", encoding="utf-8"
    )
    shutil.copy(tiny_tokenizer, tmp_path / "tokenizer.json")
    # Only the first bytes are read without the package.
    (tmp_path / "text.parquet").write_bytes(b"PAR1 and so on PAR1")
    (tmp_path / "text.txt.zst").write_bytes(b"\x28\xb5\x2f\xfd and so on")
    # Every Python process, including workers, behaves as if the package were not installed.
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(f"import sys; sys.modules[{package!r}] = None")
    variables = environment()
    variables["PYTHONPATH"] = f"{site}{os.pathsep}{variables['PYTHONPATH']}"
    mpirun = [Path(sys.executable).with_name("mpirun"), "--oversubscribe", "-n", "2"] if ranks == 2 else []
    variables |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(
        [*mpirun, sys.executable, "-m", module, *arguments.split()],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "error: " in line)
    if ranks == 1:
        assert done.stderr == f"{line}\n"
    assert package in line
    assert f"elc-bert[{extra}]" in line


def test_mpi_without_its_extra_is_named_in_one_line(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(UserError, match=r"mpi4py.*elc-bert\[mpi\]"):
        set_environment()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Folder of an unpacked wheel that was built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"
    for name in ("elc_bert", "data_tools", "launch"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, sources / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    build = "import setuptools.build_meta as backend; backend.build_wheel('..')"
    done = subprocess.run([sys.executable, "-c", build], cwd=sources, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def test_a_wheel_holds_every_module_and_the_files_that_they_read(wheel):
    def python_files(folder: Path) -> set[Path]:
        return {path.relative_to(folder) for path in folder.rglob("*.py")}

    for installed, name in (
        ("elc_bert", "elc_bert"),
        ("data_tools", "data_tools"),
        ("elc_bert_launch", "launch"),
    ):
        assert python_files(wheel / installed) == python_files(ROOT / name)
    for name in ("elc_bert/py.typed", "data_tools/py.typed", "elc_bert/report/page.html.j2"):
        assert (wheel / name).is_file(), name
    assert {path.name for path in wheel.iterdir() if path.suffix != ".dist-info"} == {
        "elc_bert",
        "data_tools",
        "elc_bert_launch",
    }, "the wheel must not install packages with common names, such as launch or tests"


def test_the_metadata_of_a_wheel_name_its_version_license_and_requirements(wheel, required):
    (distribution,) = importlib.metadata.distributions(path=[str(wheel)])
    assert distribution.version == elc_bert.__version__
    assert distribution.metadata["Name"] == "elc-bert"
    assert distribution.metadata["License-Expression"] == "Apache-2.0"
    assert distribution.metadata["License-File"] == "LICENSE"
    needs = [Requirement(line) for line in distribution.requires or ()]
    assert {each.name for each in needs if each.marker is None} == required.keys()


def test_console_scripts_work_outside_of_a_checkout(wheel, tmp_path):
    (distribution,) = importlib.metadata.distributions(path=[str(wheel)])
    scripts = {entry.name: entry.value for entry in distribution.entry_points}
    assert scripts.keys() == {
        f"elc-bert-{name}" for name in ("pretrain", "evaluate", "export", "report", "plan", "data")
    }
    program = """
import importlib, sys
for argument in sys.argv[1:]:
    name, _, target = argument.partition("=")
    module, _, function = target.partition(":")
    sys.argv = [name, "--help"]
    try:
        getattr(importlib.import_module(module), function)()
    except SystemExit as end:
        assert end.code == 0, (name, end.code)
    print(sys.modules[module].__file__)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *(f"{name}={value}" for name, value in scripts.items())],
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": str(wheel), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    files = re.findall(r"^/.*\.py$", done.stdout, re.MULTILINE)
    assert len(files) == len(scripts)
    assert all(Path(file).is_relative_to(wheel) for file in files), files
    assert done.stdout.count("usage: ") == len(scripts)
