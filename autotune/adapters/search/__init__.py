"""Optuna, and what it is taught by: samplers, priors, importances."""
