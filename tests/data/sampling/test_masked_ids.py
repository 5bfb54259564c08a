"""Which ids are masked and drawn, by their numbers: 4 is [MASK], 5 [PAR], 6 [TAB], 7 the first subword."""

import numpy as np

from elc_bert.data.sampling.masking import Masking, mask_spans
from elc_bert.data.sampling.random import CounterRandom


def masked(token: int, masking: Masking) -> tuple[np.ndarray, np.ndarray]:
    """Mask 400 samples of 30 times one token, from a vocabulary of 20 ids."""
    tokens = np.full((400, 32), token, dtype=np.int32)
    tokens[:, 0], tokens[:, -1] = 1, 2
    random = CounterRandom(3, np.zeros(400, dtype=np.int64), np.arange(400))
    return mask_spans(tokens, np.full(400, 32), 20, masking, random)


def test_ids_below_6_are_never_masked():
    for token in (0, 3, 4, 5):
        assert not masked(token, Masking(mask_p=0.9))[1].any()
    assert masked(6, Masking(mask_p=0.9))[1].any()


def test_random_replacements_are_the_ids_from_5_to_the_last():
    inputs, predicted = masked(7, Masking(mask_p=0.5, random_p=1.0, keep_p=0.0))
    assert np.unique(inputs[predicted]).tolist() == list(range(5, 20))


def test_masked_tokens_become_id_4():
    inputs, predicted = masked(7, Masking(mask_p=0.5, random_p=0.0, keep_p=0.0))
    assert np.unique(inputs[predicted]).tolist() == [4]
