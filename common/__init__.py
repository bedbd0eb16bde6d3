"""What every command stands on: whole files, one-sentence errors, devices. Imports nothing of the project."""
