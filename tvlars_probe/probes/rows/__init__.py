"""Where: rows in a buffer on the device, and their way into the journal."""
