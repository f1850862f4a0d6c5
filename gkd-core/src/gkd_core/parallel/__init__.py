"""Models that are spread over several processes: tensor parallelism joined with ZeRO."""
