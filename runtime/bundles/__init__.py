"""The model format, read side: bundle, manifest, split record, archive and signatures."""
