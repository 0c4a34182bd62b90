"""What the stages that find copies share: connected components, repeated passages."""
