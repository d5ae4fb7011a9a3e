"""Heatmap pictures: how they are drawn, which files they are written to, and how good they must be."""
