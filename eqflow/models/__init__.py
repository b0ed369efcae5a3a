"""Networks (z, noise conditioning, condition) -> y, which do not depend on the process."""
