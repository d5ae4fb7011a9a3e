"""Opening Keras files of other people: their contents are checked before Keras sees them."""
