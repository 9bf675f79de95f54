"""Judge models: benchmarks, predictions, scores."""
