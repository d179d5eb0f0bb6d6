"""What is printed and reported: runs and their statistics, tables, figures, sentences, and the HTML page."""
