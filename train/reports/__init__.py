"""Training and evaluation reports: HTML pages, plots and tables."""
