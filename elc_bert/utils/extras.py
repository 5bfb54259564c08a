"""Optional packages, which the extras of this distribution install."""

PACKAGES = {
    "ftfy": "data",
    "nltk": "data",
    "pyarrow": "data",
    "sacremoses": "data",
    "sentencex": "data",
    "jinja2": "report",
    "plotly": "report",
    "accelerate": "hf",
    "transformers": "hf",
    "mpi4py": "mpi",
    "scipy_openblas32": "cpu",
}
"""Name of the extra that installs a package, by the name under which the package is imported."""


def explain_missing_package(error: ModuleNotFoundError) -> str | None:
    """Return a message that names the extra to install, or None if no extra installs the missing package."""
    package = (error.name or "").partition(".")[0]
    extra = PACKAGES.get(package)
    if extra is None:
        return None
    return f"{package}: this package is not installed; run: pip install 'elc-bert[{extra}]'"
