"""The commands, one module each: parse, call, render. Nothing is computed here."""
