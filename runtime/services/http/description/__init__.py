"""Describe the routes: OpenAPI, and a page that shows it."""
