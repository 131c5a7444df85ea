"""What an operator's side of the process needs: logs, exit codes, a private broker for trying things out."""
