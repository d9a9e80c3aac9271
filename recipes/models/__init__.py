"""Networks of the training recipes."""
