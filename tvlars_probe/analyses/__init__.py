"""One question per module: frames of a trace in, a small frozen result out (table, verdict, evidence). No torch."""
