"""Ways to run the network that a user might choose instead, one file each, written as their documentation shows.

Each file has ``open(model, threads)``, which imports its library and returns a function from uint8 (N, H, W, 3) RGB to
float32 probabilities (N, classes).
"""
