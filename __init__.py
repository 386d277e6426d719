"""ComfyUI's entry to MoESR. The folder is the node pack; the library is the package `moesr` inside it."""
