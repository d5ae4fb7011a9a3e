"""What is exported: the models of a bundle, or a model made elsewhere."""
