"""The runs in a browser: a server on 127.0.0.1 that reads run directories and writes nothing. No torch."""
