import torch

from elc_bert.model.positions import relative_buckets

CPU = torch.device("cpu")


def test_near_positions_have_buckets_of_their_own():
    row = relative_buckets(41, 32, 512, CPU)[20]  # distances 20 to -20
    assert row[4:37].tolist() == [31 + d for d in range(16, -17, -1)]


def test_far_positions_share_buckets_and_never_leave_the_table():
    buckets = relative_buckets(2000, 32, 512, CPU)
    first_column = buckets[:, 0].tolist()  # distances 0 to 1999
    assert first_column == sorted(first_column)
    assert buckets.min() == 0
    assert buckets.max() == 62
    assert set(first_column[511:]) == {62}  # beyond the range all are the outermost
    assert (buckets + buckets.T == 62).all()  # antisymmetric around the middle row 31
