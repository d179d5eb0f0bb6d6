"""The report that compares runs: data, statistics, tables, figures, sentences, and the HTML page."""
