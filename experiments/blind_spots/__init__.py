"""python -m experiments.blind_spots: where eps, x, v and u cannot see, on networks that were trained."""
