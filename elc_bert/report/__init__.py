"""What came of runs: as a page to look at, and as text on the terminal."""
