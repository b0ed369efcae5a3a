"""What every solver is measured to do: orders, biases, equalities."""
