"""The commands of `python -m moesr`, one subject a file: each adds its arguments and runs."""
