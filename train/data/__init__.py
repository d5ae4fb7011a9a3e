"""A folder of labelled scans: reading, auditing, grouping and splitting it."""
