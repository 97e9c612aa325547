"""Training, for every model."""
