"""Sentence splitting with each of the libraries."""

import pytest

from data_tools.languages import language_note
from data_tools.sentences import Sentence, sentence_splitter, without_markers
from elc_bert.utils.errors import UserError

PARAGRAPH = 'Dr. Smith arrived at 3 p.m. and left. "Where to?" asked the cat. It paid $3.50!'
SENTENCES = [
    Sentence("Dr. Smith arrived at 3 p.m. and left."),
    Sentence('"Where to?" asked the cat.'),
    Sentence("It paid $3.50!", ends_paragraph=True),
]

GERMAN = [Sentence("Er kam z. B. am 3. Mai."), Sentence("Dann ging er.", ends_paragraph=True)]


@pytest.fixture
def punkt_data(tmp_path, monkeypatch):
    """English data in NLTK's format that knows two abbreviations."""
    folder = tmp_path / "tokenizers/punkt_tab/english"
    folder.mkdir(parents=True)
    (folder / "abbrev_types.txt").write_text("dr\np.m\n")
    for name in ("collocations.tab", "sent_starters.txt", "ortho_context.tab"):
        (folder / name).write_text("")
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])


def test_the_last_sentence_of_a_paragraph_is_marked():
    assert sentence_splitter("split", "en")(PARAGRAPH) == SENTENCES


def test_each_language_has_its_own_rules():
    text = "Er kam z. B. am 3. Mai. Dann ging er."
    assert sentence_splitter("split", "de")(text) == GERMAN


def test_punkt_uses_the_installed_data(punkt_data):
    found = sentence_splitter("punkt", "en")("Dr. Smith arrived at 3 p.m. and left. It paid $3.50!")
    assert found == [SENTENCES[0], SENTENCES[2]]


def test_an_error_names_the_missing_data_of_punkt(punkt_data):
    with pytest.raises(UserError, match=r"--sentences punkt: .*'german'.*python -m nltk"):
        sentence_splitter("punkt", "de")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("One. Two.", ("One. Two.", False, False)),
        ("One. Two.[PAR]", ("One. Two.", False, True)),
        ("One. [PAR]", ("One.", False, True)),
        ("[TAB] One.", (" One.", True, False)),
        ("[TAB][PAR]", ("", True, True)),
        ("One [TAB] two [PAR] three", ("One [TAB] two [PAR] three", False, False)),
        ("[PAR] One [TAB]", ("[PAR] One [TAB]", False, False)),
    ],
)
def test_lines_are_not_split_and_have_markers_at_their_ends(line, sentence):
    assert sentence_splitter("lines", "en")(line) == [sentence]
    assert without_markers(line) == sentence[0]


def test_a_paragraph_is_indented_only_by_a_marker_at_its_start():
    split = sentence_splitter("split", "en")
    assert split("[TAB] He left. She [TAB] stayed.") == [
        (" He left.", True, False),
        ("She [TAB] stayed.", False, True),
    ]
    assert split("[TAB] Alone.") == [(" Alone.", True, True)]
    assert split("Text ends in [PAR]") == [("Text ends in [PAR]", False, True)]


@pytest.mark.parametrize("language", ["de", "DE", "de-DE", "de_AT", "nds"])
def test_a_language_has_many_codes(language):
    text = "Er kam z. B. am 3. Mai. Dann ging er."
    assert sentence_splitter("split", language)(text) == GERMAN


@pytest.mark.parametrize("name", ["split", "punkt"])
@pytest.mark.parametrize("language", ["klingon", "xx", "eng", "", "de;"])
def test_an_unknown_language_is_an_error(name, language):
    with pytest.raises(UserError, match=f"--language {language}: "):
        sentence_splitter(name, language)


@pytest.mark.parametrize(("language", "rules"), [("gl", "pt"), ("cs", "sk"), ("hu", "en"), ("zh-cn", "en")])
def test_a_language_without_rules_gets_a_note(language, rules):
    assert f"--language {language}: " in language_note(language)
    assert f"those of {rules!r} are used" in language_note(language)
    text = "Dr. A. Bc kom z. B. p.ex. e.g. am 3. Mai. Dann ging er. U.S. etc. Fin."
    assert sentence_splitter("split", language)(text) == sentence_splitter("split", rules)(text)


@pytest.mark.parametrize("language", ["en", "EN", "en-US", "de", "ja", "te"])
def test_a_language_with_rules_gets_no_note(language):
    assert language_note(language) == ""
