"""Training recipes: programs and settings that use ``lightning_balq`` on real data."""
