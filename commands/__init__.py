"""One thin module a verb, installed as bc2.commands and imported only when the verb runs."""
