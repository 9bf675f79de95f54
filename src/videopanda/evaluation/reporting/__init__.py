"""Reports of scores: tables, intervals, baselines, published numbers, plots."""
