"""The landscape of an equilibrium field: where its zeros are, and what descending to them can do."""
