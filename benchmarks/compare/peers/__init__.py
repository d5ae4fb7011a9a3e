"""Ways to run the network that a user might take instead, one file each, as their own documentation shows them.

Each file offers ``open(model, threads)``, which returns a function from uint8 (N, H, W, 3) RGB to float32
probabilities (N, classes), and imports its library inside ``open``.
"""
