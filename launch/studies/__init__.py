"""Studies that end in a report: each one command, resumable, its numbers and figures made from small records of runs."""
