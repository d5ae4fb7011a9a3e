"""Serve models over HTTP: the Open Inference Protocol, ``/v1/classify`` for whole scans, metrics, and a web page."""
