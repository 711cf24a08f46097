"""HTML pages: templates, styles and charts."""
