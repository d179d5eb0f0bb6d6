"""What a person types and sees: flags and configuration, errors and exit codes, pictures."""
