"""docs/configuration.md, which docs/generate_configuration.py writes."""

import json
import runpy

import pytest

from elc_bert.config.schema import RunConfig
from tests.docs.pages import REPOSITORY

SCRIPT = REPOSITORY / "docs" / "generate_configuration.py"


@pytest.fixture(scope="module")
def generator():
    return runpy.run_path(str(SCRIPT))


def test_the_page_is_up_to_date(generator, capsys):
    assert generator["main"](["--check"]) == 0, capsys.readouterr().err


def test_a_stale_page_is_reported(generator, tmp_path, capsys):
    stale = tmp_path / "configuration.md"
    stale.write_text("# Configuration\n", encoding="utf-8")
    main = generator["main"]
    page, main.__globals__["PAGE"] = main.__globals__["PAGE"], stale
    try:
        assert main(["--check"]) == 1
        assert "docs/generate_configuration.py" in capsys.readouterr().err
        assert stale.read_text(encoding="utf-8") == "# Configuration\n"
        assert main([]) == 0
        assert stale.read_text(encoding="utf-8") == generator["render"]()
    finally:
        main.__globals__["PAGE"] = page


def test_every_key_of_every_configuration_file_is_on_the_page(generator):
    """The page is compared with the files in ds_configs, which are written by hand."""
    keys = {key: set(model.model_fields) for key, model in generator["sections"](RunConfig)}

    def documented(section: dict, path: tuple[str, ...]) -> list[str]:
        found = []
        for name, value in section.items():
            where = ".".join((*path, name))
            if name in keys.get(".".join(path), ()):
                found += documented(value, (*path, name)) if isinstance(value, dict) else [where]
            elif path:
                pytest.fail(f"{where} is in ds_configs, but not on the page")
        return found

    for path in sorted((REPOSITORY / "ds_configs").glob("*.json")):
        assert len(documented(json.loads(path.read_text(encoding="utf-8")), ())) >= 40, path.name


def test_every_row_describes_its_key(generator):
    rows = [line for line in generator["render"]().splitlines() if line.startswith("| `")]
    described = [row for row in rows if not row.endswith("|  |")]
    assert len(rows) >= 60
    assert [row for row in rows if row not in described] == []
