"""What a compiled step costs on the devices it is compiled for: memory, FLOPs, communication, time."""
