"""Build-time part of the packaging: C extensions and packages. All other metadata is in pyproject.toml."""

from setuptools import Extension, find_packages, setup


def kernels(package: str, source: str) -> Extension:
    """Return the C kernels of a package; they are loaded with ctypes and need no Python headers to build.

    If they cannot be built, the package is installed without them and falls back to PyTorch's operations.
    """
    return Extension(
        f"elc_bert.{package}._kernels",
        [f"elc_bert/{package.replace('.', '/')}/{source}"],
        # Not -march=native: the nodes of a cluster differ, so the code selects its instructions at run time.
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


setup(
    # "launch" is too common a name for an installed package.
    packages=[*find_packages(include=["elc_bert*", "data_tools*"]), "elc_bert_launch"],
    package_dir={"elc_bert_launch": "launch"},
    package_data={
        "elc_bert": ["py.typed"],
        "elc_bert.hub": ["files/*.py"],  # run by transformers, not imported here
        "elc_bert.report": ["*.j2"],
        "data_tools": ["py.typed"],
    },
    ext_modules=[kernels("kernels.cpu", "kernels.c"), kernels("optim", "lamb_cpu.c")],
)
