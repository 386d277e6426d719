"""Metrics, benchmarks and reports. Training uses the same metrics as losses: there is no second copy."""
