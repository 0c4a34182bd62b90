"""Load for servers with OpenAI's API: a fast client that can hang up, and peers to compare."""
