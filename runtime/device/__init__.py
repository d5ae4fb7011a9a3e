"""The machine: processor, cores, folders, and side effects of native libraries."""
