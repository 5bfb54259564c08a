"""Packaging of elc-bert; the versions are pinned in requirements.txt and nowhere else."""

import re
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).resolve().parent
MPI = ("openmpi", "mpi4py")
HF = ("transformers", "accelerate")
DEV = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "nltk", "ruff", "mypy", *HF)
BUILD = ("setuptools",)


def kernels(package: str, source: str) -> Extension:
    """The C kernels of a package, loaded through ctypes: they need a C compiler but no headers of Python.

    Where they cannot be built the package is installed without, and PyTorch's operations take their place.
    """
    return Extension(
        f"elc_bert.{package}._kernels",
        [f"elc_bert/{package.replace('.', '/')}/{source}"],
        # No -march=native: the nodes of a cluster differ, so the code chooses its instructions at run time.
        extra_compile_args=[
            "-O3",
            "-fopenmp-simd",
            "-fno-math-errno",
            "-fno-trapping-math",
            "-ffp-contract=fast",
        ],
        libraries=["m"],
        optional=True,
    )


def read_pins() -> dict[str, str]:
    """The requirements of requirements.txt by distribution name, as in ``{"torch": "torch==2.13.0"}``."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").open(encoding="utf-8"))
    return {line.partition("==")[0]: line for line in lines if line}


def read_version() -> str:
    """The package's version, read without importing it: that would need what is not installed yet."""
    text = (ROOT / "elc_bert" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError('elc_bert/__init__.py has no line __version__ = "..."')
    return match.group(1)


pins = read_pins()

setup(
    name="elc-bert",
    version=read_version(),
    description="Pretraining of ELC-BERT masked language models over DeepSpeed",
    python_requires=">=3.11",
    packages=find_packages(include=["elc_bert*", "data_tools*"]),
    package_data={
        "elc_bert.hub": ["files/*.py"],  # run by transformers, not imported here
        "elc_bert.report": ["*.j2"],
    },
    ext_modules=[kernels("kernels.cpu", "kernels.c"), kernels("optim", "lamb_cpu.c")],
    install_requires=[pin for name, pin in pins.items() if name not in MPI + DEV + BUILD],
    extras_require={
        "hf": [pins[name] for name in HF],
        "mpi": [pins[name] for name in MPI],
        "dev": [pins[name] for name in DEV],
    },
)
