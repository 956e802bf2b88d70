"""The report of a comparison: tables, figures, published numbers, settings, as Markdown and as one HTML file."""
