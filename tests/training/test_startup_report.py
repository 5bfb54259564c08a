"""The table that a run prints before its first step."""

import re

from elc_bert.data.format.indexed import IndexedDataset


def test_the_table_says_how_much_text_is_never_read(tiny_run, tiny_dataset):
    manifest = IndexedDataset(tiny_dataset).manifest
    short, long = (manifest.find_segments(length, "reference") for length in (32, 128))
    found = re.search(r"never read +of its tokens, (.*)\n", tiny_run.output)
    assert found
    shares = [f"{each.unread / manifest.tokens:.2%}" for each in (short, long)]
    assert found[1] in (
        f"{shares[0]} in no sequence of 32, {shares[1]} in no sequence of 128",
        f"{shares[0]} in no sequence of 32",
    )
    assert short.unread > 0.01 * manifest.tokens
    assert long.unread == 0
    assert re.findall(r"are in no segment of (\d+),", tiny_run.output) == ["32"]
    assert f"data_tools segments {tiny_dataset} --lengths 32 --policy packed" in tiny_run.output
