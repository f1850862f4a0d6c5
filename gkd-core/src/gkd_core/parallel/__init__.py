"""Models divided over several processes: tensor parallelism combined with ZeRO."""
