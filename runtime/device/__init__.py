"""The machine that this runs on: processor, cores, folders, and side effects of native libraries."""
