"""What a reasoning model reads and writes: semantic IDs as text, prompts, and answers."""
