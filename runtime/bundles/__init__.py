"""Read the model format: bundle, manifest, split record, archive and signatures."""
