"""Random and fixed changes of pictures: augmentation, drawn lesions, distribution shifts."""
