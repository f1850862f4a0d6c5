"""One step, the loop, engines, checkpoints, stages."""
