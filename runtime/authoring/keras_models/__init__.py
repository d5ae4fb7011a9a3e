"""Open Keras files of unknown origin, after checking their contents."""
