"""Special tokens in the text that ``build`` and ``tokenizer`` read."""

import numpy as np
import pytest

from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.vocabulary import PAR, SPECIAL_TOKENS, TAB, load_tokenizer
from tests.data_tools.running import run
from tests.data_tools.test_build import build


@pytest.mark.parametrize("sentences", ["split", "lines"])
def test_special_tokens_in_the_text_are_text(tiny_tokenizer, tmp_path, sentences):
    """Only markers at the ends of lines are special tokens, and ``[PAR]`` only with ``--sentences lines``."""
    names = " ".join(SPECIAL_TOKENS)
    (tmp_path / "t.txt").write_text(
        f"[TAB] Fi {names} go.\n[PAR] ka [MASK]\nTa [PAD][PAR]\n", encoding="utf-8"
    )
    done = build(
        tmp_path / "t.txt", tiny_tokenizer, tmp_path / "d", "--lengths", 32, "--sentences", sentences
    )
    assert done.returncode == 0, done.stderr
    dataset, tokenizer = IndexedDataset(tmp_path / "d"), load_tokenizer(tiny_tokenizer)
    ends = np.cumsum(dataset.lengths)
    found = [dataset.tokens[end - n : end].tolist() for end, n in zip(ends, dataset.lengths, strict=True)]
    special = [[token for token in each if token < len(SPECIAL_TOKENS)] for each in found]
    texts = [tokenizer.decode(each) for each in found]
    if sentences == "lines":
        assert special == [[TAB], [], [PAR]]
        assert texts == [f" Fi {names} go.", " [PAR] ka [MASK]", " Ta [PAD]"]
    else:
        assert special == [[TAB, PAR], [PAR], [PAR]]
        assert texts == [f" Fi {names} go.", " [PAR] ka [MASK]", " Ta [PAD][PAR]"]
    assert found[0][0] == TAB
    assert found[2][-1] == PAR


def test_markers_keep_their_places(tiny_tokenizer, tmp_path):
    text = "[TAB] Fi.[PAR]\n[TAB][PAR]\n[TAB]\n[PAR]\n[TAB] Go.[PAR]\n"
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    assert (
        build(
            tmp_path / "t.txt", tiny_tokenizer, tmp_path / "d", "--lengths", 32, "--sentences", "lines"
        ).returncode
        == 0
    )
    dataset = IndexedDataset(tmp_path / "d")
    fi, go = (load_tokenizer(tiny_tokenizer).encode(each).ids for each in ("Fi.", "Go."))
    assert dataset.tokens.tolist() == [TAB, *fi, PAR, TAB, PAR, TAB, PAR, TAB, *go, PAR]
    assert dataset.lengths.tolist() == [len(fi) + 2, 2, 1, 1, len(go) + 2]


def test_the_tokenizer_is_trained_and_measured_on_text(tiny_text, tmp_path):
    """``[MASK]`` in the training text is text; markers at the ends of lines are not."""
    lines = tiny_text.read_text(encoding="utf-8").splitlines()
    plain, marked, named = (tmp_path / f"{name}.txt" for name in ("plain", "marked", "named"))
    plain.write_text("\n".join(lines) + "\n", encoding="utf-8")
    marked.write_text("\n".join(line and f"[TAB]{line}[PAR]" for line in lines) + "\n", encoding="utf-8")
    named.write_text("\n".join(line and f"{line} [MASK]" for line in lines) + "\n", encoding="utf-8")
    printed, tokenizers = {}, {}
    for text in (plain, marked, named):
        output = tmp_path / "tokenizer.json"
        done = run(
            *("tokenizer", "--input", text, "--vocab-size", 400, "--min-frequency", 2, "--output", output)
        )
        assert done.returncode == 0, done.stderr
        printed[text] = [line for line in done.stdout.splitlines() if "F95" in line or "unknown" in line]
        tokenizers[text] = load_tokenizer(output)
    assert tokenizers[marked].to_str() == tokenizers[plain].to_str()
    assert printed[marked] == printed[plain]
    assert printed[named] != printed[plain]
    assert "MASK" in tokenizers[named].get_vocab()
    assert "MASK" not in tokenizers[plain].get_vocab()
