"""The training loop and what a run leaves behind: rollouts, checkpoints, logs, provenance."""
