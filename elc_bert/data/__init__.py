"""Token datasets: their files on disk, and how samples are drawn from them."""
