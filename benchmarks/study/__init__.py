"""The TVLARS paper's claims, put to the test."""
