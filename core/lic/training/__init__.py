"""Training: data, schedules, checkpoints."""
