"""What carries a study out: launches, load levels, the loop, the finals; all through ports."""
