"""Store measurements, compare them with the committed ones, and draw tables and plots."""
