"""The common vocabulary of configurations, spaces of them, recipes."""
