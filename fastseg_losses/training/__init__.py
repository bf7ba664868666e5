"""The trainer: parquet data, census, model, collapse monitor, training loop and report."""
