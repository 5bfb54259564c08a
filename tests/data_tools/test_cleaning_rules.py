"""Cleaning rules, one for each kind of text."""

import json
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.cleaning import steps
from data_tools.cleaning.parallel import clean_chunk, make_chunks
from data_tools.cleaning.passes import LONGEST_PARAGRAPH, is_stub, join_paragraphs
from data_tools.cleaning.rules import RULES, corpus_name

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/clean.json").read_text(encoding="utf-8"))


def cleaned(corpus, *lines):
    return list(RULES[corpus].apply(lines))


@pytest.mark.parametrize("corpus", GOLDEN)
def test_each_corpus_is_cleaned_as_the_reference_does(corpus):
    assert cleaned(corpus, *GOLDEN[corpus]["input"]) == GOLDEN[corpus]["output"]


def test_every_corpus_has_a_golden_file():
    assert set(RULES) - {"generic"} == set(GOLDEN)


# Lines that at least one of the rules treats specially.
LINES = st.lists(
    st.sampled_from(sorted({line for each in GOLDEN.values() for line in each["input"]})), max_size=40
)


@given(st.sampled_from(sorted(RULES)), LINES, st.integers(1, 400))
def test_chunks_of_any_size_give_the_same_text(corpus, lines, characters):
    chunks = list(make_chunks(corpus, lines, characters))
    assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    results = [line for chunk in chunks for line in clean_chunk(chunk).lines]
    assert list(RULES[corpus].run_after(results)) == cleaned(corpus, *lines)


@pytest.mark.parametrize(
    ("name", "corpus"),
    [
        ("aochildes.train", "aochildes"),
        ("cbt.dev.txt", "cbt"),
        ("simple_wikipedia.test.gz", "simple_wikipedia"),
        ("brown.train", "generic"),
        ("my_cbt.txt", "generic"),
    ],
)
def test_the_name_up_to_the_first_dot_is_the_corpus(name, corpus):
    assert corpus_name(Path("some.folder", name)) == corpus


# ---- rules beyond the golden files -----------------------------------------------------------------


def test_generic_text_keeps_its_words_and_lines():
    assert cleaned(
        "generic",
        "",
        "  Title\t(word(s) and f(x) :) ",
        "naÃ¯ve — “quoted” &lt;b&gt; l’été…",
        "",
        " ",
        "is n't , 20 %of",
        "is n't , 20 %of",
    ) == [
        "Title (word(s) and f(x) :)",
        'naïve - "quoted" <b> l\'été...',
        "",
        "is n't , 20 %of",
        "is n't , 20 %of",
    ]


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("get 'em and the 'old' one", "get 'em and the 'old' one"),
        ("we 're gon na see , you got ta !", "we're gonna see, you gotta!"),
        ("the dogs ' bones", "the dogs' bones"),
        ('he ca n\'t say " no . "', 'he can\'t say "no."'),
        ("a Ph.D from www.example.com at 3:30", "a Ph.D from www.example.com at 3:30"),
        ("pay $ 5 , or 5 %now", "pay $5, or 5% now"),
    ],
)
def test_tokens_are_joined(tokens, text):
    assert steps.detokenize(steps.space_punctuation(tokens)) == text


@given(st.text("abs'n\"t .?!,$()é’“", max_size=30).map(lambda text: " ".join(text.split())))
def test_detokenizing_shortcuts_agree_with_moses(text):
    from data_tools.cleaning.moses import Detokenizer

    if text:
        assert steps.detokenize(text) == Detokenizer("en").detokenize(text.split(" "), unescape=False)


@given(st.text(st.one_of(st.sampled_from(" \t'&;“”‘’–—…Ã©â€™\x85\xa0\x1b"), st.characters()), max_size=30))
def test_normalizing_shortcuts_agree_with_ftfy_and_moses(text):
    assert steps.normalize(text) == steps.normalize_reference(text)


def test_compounds_of_childes_are_hyphenated():
    assert cleaned("aochildes", "a merry+go+round and 2 + 2 .") == ['"A merry-go-round and 2 + 2."']


def test_stage_directions_names_and_times_get_no_quotes():
    lines = ["(sighs) I know", "(sighs)", "ANN:", "1:02:03", "-5 degrees", "-- So", "♪"]
    assert cleaned("qed", *lines) == [
        '"(sighs) I know"',
        "(sighs)",
        "ANN:",
        '"-5 degrees"',
        '"So"',
        '"♪"',
    ]


def test_wiki_links_inside_captions_are_dropped_with_them():
    line = "See [[File:a.jpg|thumb|A [[cat]] of [[Oslo|town]]]]there [[Oslo (town)|x]]."
    assert cleaned("wikipedia", line) == ["See there Oslo (town)."]


@pytest.mark.parametrize(
    ("line", "stub"),
    [
        ("Ames is a city in Iowa.", True),
        ("Bex is a Swiss municipality of the canton of Vaud.", True),
        ("It was a small fishing village near the coast.", True),
        ("He is a city planner.", False),
        ("London is the capital city of England.", False),
        ("Ames is a city in Iowa." + " It has much to show." * 20, False),
    ],
)
def test_stubs_are_short_lines_about_places(line, stub):
    assert is_stub(line) == stub


def test_a_file_without_blank_lines_does_not_become_one_paragraph():
    paragraphs = list(join_paragraphs(["word " * 1000] * 1000))
    assert len(paragraphs) > 1
    assert all(len(each) < LONGEST_PARAGRAPH + 6000 for each in paragraphs)


# ---- real text -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def raw(shared) -> dict[str, list[str]]:
    """Lines of the dev part of each source."""
    with tarfile.open(shared / "corpus/corpus.tar.xz") as archive:
        members = (member for member in archive if "dev/" in member.name and member.isfile())
        return {
            Path(member.name).stem: archive.extractfile(member).read().decode("utf-8").splitlines()
            for member in members
        }


def test_real_text_keeps_its_words(raw):
    for name, lines in raw.items():
        corpus = corpus_name(Path(name))
        output = cleaned(corpus, *lines)
        words_in, words_out = (
            len([word for line in part for word in line.split() if any(map(str.isalnum, word))])
            for part in (lines, output)
        )
        repeats_dropped = 0.85 if corpus == "aochildes" else 0.97
        assert repeats_dropped * words_in < words_out < 1.03 * words_in, name
        assert not any(mark in line for line in output for mark in ("Ã©", "â€", "“", "’", "&amp;")), name


def test_real_documents_begin_where_they_should(raw):
    titles = [line for line in raw["wikipedia"] if line.startswith("= = =")]
    assert len(titles) > 2
    output = cleaned("wikipedia", *raw["wikipedia"])
    assert output.count("") in (len(titles), len(titles) - 1)
    assert not any(line.startswith("=") for line in output)
    novel = cleaned("gutenberg", *raw["gutenberg"])
    assert sum(len(line.split()) > 60 for line in novel) > 50, "lines are joined to paragraphs"
    assert 0 < novel.count("") < len(novel) / 5


@pytest.mark.parametrize("corpus", ["generic", "open_subtitles", "qed"])
def test_cleaning_clean_text_changes_nothing(raw, corpus):
    lines = [line for part in raw.values() for line in random.Random(1).sample(part, min(len(part), 300))]
    once = cleaned(corpus, *lines)
    assert cleaned(corpus, *once) == once
