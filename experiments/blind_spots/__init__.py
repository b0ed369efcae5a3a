"""python -m experiments.blind_spots: the blind spots of eps, x, v and u, on trained networks."""
