"""What a recipe would take on devices that need not be here: memory, time, money, layouts."""
