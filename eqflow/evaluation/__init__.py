"""Numbers and pictures of samples: distances in named feature spaces, baselines to read them by."""
