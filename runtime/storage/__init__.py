"""Files on disk: whole writes, locks, free-space checks."""
