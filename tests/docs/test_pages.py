"""Links, lengths and languages of README.md and the pages in docs/."""

import re

import pytest
from pydantic import BaseModel

from elc_bert.config.schema import RunConfig
from tests.docs.pages import HISTORY, PAGES, README, REPOSITORY, anchors, blocks, links, prose

LANGUAGES = {"bash", "python", "json", "text", "diff"}


@pytest.mark.parametrize("page", [*PAGES, HISTORY], ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_relative_link_and_anchor_resolves(page):
    broken = []
    for link in links(page):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_fenced_block_names_a_language_that_is_checked(page):
    assert [(str(block), block.language) for block in blocks(page) if block.language not in LANGUAGES] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_file_that_the_text_names_exists(page):
    """Check the files of this repository, except those that the examples in docs/add-*.md create."""
    made = {block.marks.get("file") for block in blocks(page)}
    folders = "benchmarks|data_tools|docs|ds_configs|elc_bert|examples|launch|tests"
    named = re.findall(rf"`((?:{folders})/[\w./-]*)`", prose(page))
    assert [path for path in named if path not in made and not (REPOSITORY / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_key_that_the_text_names_exists(page):
    unknown = []
    for key in re.findall(r"`(elc_bert\.(?:model|data|training|evaluation|checkpoint)\.\w+)", prose(page)):
        section: type[BaseModel] = RunConfig
        for name in key.split(".")[:-1]:
            section = section.model_fields[name].annotation  # type: ignore[assignment]  # a section
        if key.split(".")[-1] not in section.model_fields:
            unknown.append(key)
    assert unknown == []


def test_every_page_is_in_the_index():
    index = REPOSITORY / "docs" / "README.md"
    listed = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    pages = [page for page in PAGES if page.parent == index.parent and page != index]
    assert [page.name for page in pages if page not in listed] == []


def test_every_picture_is_used():
    used = {(page.parent / link).resolve() for page in PAGES for link in links(page)}
    assert [path.name for path in (REPOSITORY / "docs" / "images").iterdir() if path not in used] == []


def test_the_readme_is_short():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 160
    assert [line for line in lines if len(line) > 120] == []


def test_the_pages_are_short():
    lengths = {page.name: len(page.read_text(encoding="utf-8").splitlines()) for page in PAGES}
    assert {name: length for name, length in lengths.items() if length > 250} == {}
