"""What a compiled program needs of the devices it is for: memory, multiplications, traffic, time."""
