"""Networks (z, c_noise, condition) -> y, which do not depend on the process."""
