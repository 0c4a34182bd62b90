"""SentencePiece BPE as Baichuan 2 trains it: settings, training, encoding, comparison."""
