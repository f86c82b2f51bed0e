"""Reports: what the analysis found, as an HTML page, Markdown, figures and rendered notebooks."""
