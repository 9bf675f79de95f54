"""Training: stages (a table), tasks (what a step computes), the run itself."""
