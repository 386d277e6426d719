"""Pictures: reading and writing, resizing, tile windows, colour and alpha. Knows nothing of networks or hosts."""
