"""Training: one loop for every objective, engines below it, exact resume around it."""
