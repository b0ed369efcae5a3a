"""python -m experiments.checkpoints: the memory in which published weights are read and written."""
