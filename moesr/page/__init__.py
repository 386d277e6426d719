"""The page, and the tab of other programs: uploads, a queue of jobs, results, over Gradio 3.41 to 6."""
