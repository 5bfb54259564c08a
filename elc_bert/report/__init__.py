"""Reports about runs: an HTML page and a summary for the terminal."""
