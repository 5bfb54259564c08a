"""Token datasets: reading them as masked batches, in an order that does not depend on the layout of a run.

# The files of a dataset

A dataset `corpus/train` is the files below. All numbers are little-endian. `.bin` and `.idx` are the
format of Megatron-LM and GPT-NeoX, version 1, which these programs read and write too; a dataset that
they wrote has only these two. A *sentence* here is a sequence there.

## `train.bin`: the token stream

Token ids on end and nothing else: `file size / size of one` ids of the type that `.idx` names. The
stream has places 0, 1, 2, ...

## `train.idx`: sentences and documents

| byte        | type       | content                                                                   |
|-------------|------------|---------------------------------------------------------------------------|
| 0           | 9 bytes    | `4D 4D 49 44 49 44 58 00 00`, which is `MMIDIDX` and two zeros            |
| 9           | uint64     | version, 1                                                                |
| 17          | uint8      | type of a token id: 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 8 uint16  |
| 18          | uint64     | n, number of sentences                                                    |
| 26          | uint64     | d, number of documents and 1                                              |
| 34          | int32 [n]  | length of each sentence in tokens, 0 or more                              |
| 34 + 4 n    | int64 [n]  | where each sentence begins in `.bin`, in bytes                            |
| 34 + 12 n   | int64 [d]  | number of the first sentence of each document, then n                     |

The file ends there. The first document begins with sentence 0, none begins before the one ahead of it,
and one that begins where the next does is empty. Type codes 6 and 7 are floats and are refused.

In datasets built here a document is a list of sentences, and sentences lie on end from byte 0 to the end
of `.bin`, in order. Elsewhere a document is often one sequence. Sequences that do not lie on end can be
read, but the reference policy, see below, needs them on end.

## `train.segments-128.npy`, `train.segments-128-packed.npy`: segments

One file for each sequence length T and policy, the policy `reference` going without its name. A segment
is a slice of the stream of at most T - 2 tokens, which `[CLS]` and `[SEP]` make a sample of. The file
is NumPy's format, version 1.0: `93 4E 55 4D 50 59 01 00`, the length of the text that follows as uint16,
that text, which is at most 4,086 bytes of

    {'descr': [('offset', '<i8'), ('length', '<i4')], 'fortran_order': False, 'shape': (1234,), }

and spaces up to a line feed, and then as many records as it says of 12 bytes: place of the segment's first
token in the stream, int64, and its number of tokens, int32, 1 or more. They are in the order of the stream.

Which segments there are, `elc_bert.data.policies` tells: `reference` takes whole sentences of one
document, `packed` takes every T - 2 tokens.

## `train.json`: the manifest

One JSON object in UTF-8 with the fields of `elc_bert.data.manifest.Manifest`: `format`, here
`elc-bert-dataset-2`; the counts `sequences` (n), `documents` (d - 1) and `tokens`; of the text
`words`; of the tokenizer `vocab_size` and `tokenizer_sha256`; `bin_sha256` and `idx_sha256`;
`versions`, `inputs` and `skipped` about how it was built; `segments`, a list that says of each segment
index its `sequence_length`, `policy`, `file`, `count`, sum of lengths in `tokens` and `sha256`; and
`manifest_sha256`, of the manifest's own bytes as they are with `null` in this field. Checksums are 64
hexadecimal digits. What is unknown is `null` or empty.

`python -m data_tools verify` checks all of this.
"""
