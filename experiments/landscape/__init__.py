"""The landscape of an equilibrium field: where its zeros are, and what descent to them can do."""
