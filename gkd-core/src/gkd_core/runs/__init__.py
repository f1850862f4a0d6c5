"""The stages of a run in order: specs, fingerprints, reuse, directory, runner."""
