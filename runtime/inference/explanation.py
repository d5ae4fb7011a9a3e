"""Explain a prediction: how much the log-odds of a label fall when a region of the head is covered."""

HOT_SPOT = 2.0  # log-odds; a map that stays below it has no hot spot
