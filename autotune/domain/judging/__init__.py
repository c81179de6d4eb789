"""What a measurement is worth: SLAs, scores, verdicts on windows, ledgers, quality."""
