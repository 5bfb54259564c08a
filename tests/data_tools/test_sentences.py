"""The sentences of a paragraph, by each of the libraries."""

import pytest

from data_tools.sentences import sentence_finder
from elc_bert.utils.errors import UserError

PARAGRAPH = 'Dr. Smith arrived at 3 p.m. and left. "Where to?" asked the cat. It paid $3.50!'
SENTENCES = ["Dr. Smith arrived at 3 p.m. and left.", '"Where to?" asked the cat.', "It paid $3.50![PAR]"]


@pytest.fixture
def punkt_data(tmp_path, monkeypatch):
    """English data in NLTK's format, which knows two abbreviations."""
    folder = tmp_path / "tokenizers/punkt_tab/english"
    folder.mkdir(parents=True)
    (folder / "abbrev_types.txt").write_text("dr\np.m\n")
    for name in ("collocations.tab", "sent_starters.txt", "ortho_context.tab"):
        (folder / name).write_text("")
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])


def test_the_last_sentence_of_a_paragraph_is_marked():
    assert sentence_finder("split", "en")(PARAGRAPH) == SENTENCES


def test_languages_have_their_own_rules():
    text = "Er kam z. B. am 3. Mai. Dann ging er."
    assert sentence_finder("split", "de")(text) == ["Er kam z. B. am 3. Mai.", "Dann ging er.[PAR]"]


def test_punkt_splits_with_the_data_that_is_there(punkt_data):
    found = sentence_finder("punkt", "en")("Dr. Smith arrived at 3 p.m. and left. It paid $3.50!")
    assert found == ["Dr. Smith arrived at 3 p.m. and left.", "It paid $3.50![PAR]"]


def test_without_its_data_punkt_says_how_to_get_it(punkt_data):
    with pytest.raises(UserError, match="NLTK has no data for 'german' here; fetch it with: python -m nltk"):
        sentence_finder("punkt", "de")


def test_lines_are_left_as_they_are():
    assert sentence_finder("lines", "en")("One. Two.[PAR]") == ["One. Two.[PAR]"]
