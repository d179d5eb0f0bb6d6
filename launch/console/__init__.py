"""The user's side of the scripts: flags and configuration, errors and exit codes, pictures."""
