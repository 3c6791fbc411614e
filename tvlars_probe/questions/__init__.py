"""What can be asked of recorded runs in one call: the answers, charts and reports that the commands give."""
