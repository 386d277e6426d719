"""MoESR as an extension of A1111 and Forge. scripts/ and preload.py are its doors; only host.py imports the host."""
