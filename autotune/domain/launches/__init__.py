"""What a launch is: processes, endpoints, transport between pools, what is deployed of it."""
