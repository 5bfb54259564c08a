"""The file that a report is written to."""

from collections.abc import Sequence
from pathlib import Path

from elc_bert.utils.errors import UserError

PAGE = "report.html"


def page_path(runs: Sequence[Path], output: Path | None) -> Path:
    """Return the file for the page about the runs.

    Args:
        runs: Directories of the runs.
        output: File that the user named. By default the page of a single run goes to its directory.

    Raises:
        UserError: No file was named for several runs, or the named one cannot be written.
    """
    if output is None:
        if len(runs) > 1:
            raise UserError(
                "--output: missing; several runs are compared, so name the page with --output FILE"
            )
        return runs[0] / PAGE
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder; name a file, such as {output / PAGE}")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: the folder {output.parent} does not exist; create it first")
    return output
