"""Long-running services."""
