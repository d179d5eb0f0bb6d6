"""The report that compares runs: what is read (data), what is said (text, tables), drawn (figures, pictures) and shown (page)."""
