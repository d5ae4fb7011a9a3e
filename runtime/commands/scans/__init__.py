"""What commands do with scans: classify them one by one or as series, and inspect their headers."""
