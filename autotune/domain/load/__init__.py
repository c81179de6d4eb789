"""The load: workloads, arrivals, lengths, prompts, and the plan of what is sent when."""
