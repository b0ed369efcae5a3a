"""Networks (z, label of noise, condition) -> y, that know nothing of processes."""
