"""From answers to pages: HTML, Markdown, figures and notebooks."""
