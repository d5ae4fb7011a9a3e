"""Speed and accuracy measurements of a checkout: not installed with the package."""
