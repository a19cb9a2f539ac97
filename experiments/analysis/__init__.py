"""Numbers from runs: curves on one grid, intervals, comparisons."""
