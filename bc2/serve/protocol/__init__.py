"""What clients send and get: requests, replies and errors, as OpenAI has them."""
