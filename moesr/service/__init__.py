"""Jobs for pages and tabs: a line, limits, uploads of strangers, results on disk. Knows neither Gradio nor hosts."""
