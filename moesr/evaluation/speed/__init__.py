"""What this machine makes of the networks: seconds, products and memory, measured so that ratios can be trusted."""
