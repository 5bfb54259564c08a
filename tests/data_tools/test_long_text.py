"""Long texts are cut without changing their subwords, and take a bounded amount of memory."""

import random
import time
from itertools import chain

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import long_text
from data_tools.long_text import cut_text, encode, in_batches
from elc_bert.data.format.vocabulary import load_tokenizer
from tests.data_tools.running import start


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(long_text, "LONGEST_TEXT", 100)
    monkeypatch.setattr(long_text, "CHARACTERS_AT_ONCE", 250)


PIECES = st.sampled_from(
    ["word", " ", "  ", "\u6f22\u5b57", "e\u0301", "3.50", "isn't", "(", "x" * 130, "\u00a0", "\t"]
)


@settings(deadline=None)
@given(pieces=st.lists(PIECES, max_size=200))
def test_the_parts_of_a_text_make_up_the_text(pieces):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_text, "LONGEST_TEXT", 100)
        text = "".join(pieces)
        parts = cut_text(text)
        assert "".join(parts) == text
        assert all(0 < len(part) <= 100 for part in parts) or text == ""


def test_parts_begin_between_words(small_parts):
    assert cut_text("y" * 98 + " zz " + "w" * 70) == ["y" * 98, " zz " + "w" * 70]
    # Not before a symbol, and not at one of several spaces.
    assert cut_text("y" * 20 + " z" * 10 + " (b" + "  " + "c" * 120)[0] == "y" * 20 + " z" * 9
    assert cut_text("y" * 130) == ["y" * 100, "y" * 30]


@pytest.mark.parametrize("name", ["tiny", "tokenizer.json", "tokenizer_small_104.json"])
def test_a_text_has_the_same_subwords_in_parts(tiny_text, tiny_tokenizer, name, small_parts, request):
    path = tiny_tokenizer if name == "tiny" else request.getfixturevalue("shared") / "tokenizers" / name
    tokenizer = load_tokenizer(path)
    lines = tiny_text.read_text(encoding="utf-8").splitlines()
    texts = [
        "",
        " ".join(lines),
        lines[0],
        "",
        'In 1984, (he) said: "caf\u00e9" ' * 40,
        "x" * 300,
        "",
    ]
    whole = [each.ids for each in tokenizer.encode_batch(texts[:-2], add_special_tokens=False)]
    ids, sizes = encode(tokenizer, texts, "<u2")
    assert sizes.dtype == "<i4"
    assert ids.dtype == "<u2"
    assert sizes[:-2].tolist() == [len(each) for each in whole]
    assert sizes[-1] == 0
    assert ids[: sizes[:-2].sum()].tolist() == list(chain.from_iterable(whole))
    assert len(ids) == sizes.sum()
    assert encode(tokenizer, [], "<i4")[1].tolist() == []


def test_batches_are_bounded(small_parts):
    draw = random.Random(3)
    texts = ["x" * draw.randint(0, 100) for _ in range(500)]
    batches = list(in_batches(texts))
    assert list(chain.from_iterable(batches)) == texts
    sizes = [sum(map(len, batch)) for batch in batches]
    assert max(sizes) <= 250
    assert min(sizes[:-1]) > 150


@pytest.mark.parametrize("command", ["build", "tokenizer"])
def test_a_line_of_5_mb_takes_little_memory(tiny_tokenizer, tmp_path, command):
    draw = random.Random(4)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(1, 8))) for _ in range(1000)]
    text = tmp_path / "long.txt"
    text.write_text(" ".join(draw.choices(words, k=1_000_000))[:5_000_000] + "\n")
    options = {
        "build": ["--tokenizer", tiny_tokenizer, "--sentences", "lines", "--workers", 1],
        "tokenizer": ["--vocab-size", 400],
    }
    process = start(command, "--input", text, "--output", tmp_path / "out", *options[command])
    peak = 0
    while process.poll() is None:
        for each in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
            try:
                peak = max(peak, each.memory_info().rss)
            except psutil.Error:
                continue
        time.sleep(0.02)
    assert process.returncode == 0, process.stderr.read()
    assert peak < 400 << 20, peak
