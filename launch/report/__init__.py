"""Reports and printed tables: runs and their statistics, tables, figures, sentences, and the HTML page."""
