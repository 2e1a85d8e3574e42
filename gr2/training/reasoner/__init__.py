"""A trained reasoner on candidate lists and histories: what it reads, how it answers, how well it ranks."""
