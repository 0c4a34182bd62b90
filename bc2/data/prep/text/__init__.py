"""Functions on text: characters, words, sentences, languages, scores of sentences."""
