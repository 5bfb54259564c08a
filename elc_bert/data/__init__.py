"""Token datasets: the files on disk, and how training samples are drawn from them."""
