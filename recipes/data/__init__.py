"""Data of the training recipes: texts (`text`, `markov`) and images (`imagenet`, `cifar10`, `digits`)."""
