"""What to launch and which load to drive next: priors, trust, surrogates, the load boundary."""
