"""MoESR as an extension of A1111 and Forge. Only webui_api.py imports the host."""
