"""Launchers: one package per engine, which knows what to run and what its failures mean; starts nothing."""
