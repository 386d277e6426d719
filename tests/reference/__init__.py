"""Plain implementations to hold the fast ones against."""
