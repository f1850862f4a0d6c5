"""Training: stages, the loop, optimizer steps and checkpoints."""
