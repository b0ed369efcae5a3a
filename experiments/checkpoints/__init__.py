"""python -m experiments.checkpoints: the memory needed to read and write published weights."""
