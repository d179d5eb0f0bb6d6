"""The report that compares runs: data, statistics, tables, figures, words, and the page that holds them."""
