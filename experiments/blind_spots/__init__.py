"""python -m experiments.blind_spots: where eps, x, v and u are blind, on trained networks."""
