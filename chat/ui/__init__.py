"""The page: Gradio Blocks in small pieces; the files without gradio turn values into HTML."""
