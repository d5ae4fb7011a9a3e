"""Check in CI that no stage lost accuracy or speed."""
