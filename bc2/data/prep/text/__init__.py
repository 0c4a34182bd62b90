"""What is about strings: characters, words, sentences, languages, scores of sentences."""
