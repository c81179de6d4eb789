"""What was measured, and with what certainty: requests, power, counters, intervals."""
