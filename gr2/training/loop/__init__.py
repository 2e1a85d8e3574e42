"""What every training loop shares: optimiser, precision, checkpoints, processes."""
