"""Training loops, their checkpoints and their progress."""
