"""What a stage is, which stage makes which kind of artifact, and how one is found or made."""
