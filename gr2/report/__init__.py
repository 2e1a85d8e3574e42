"""What a person reads of a run: tables on a terminal, and one page of everything that it made."""
