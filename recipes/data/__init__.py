"""Data of the training recipes."""
