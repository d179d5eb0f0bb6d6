"""Studies: each is one resumable command that ends in a report, made from small records of its runs."""
