"""Making a trained model small: what needs more than the weights alone, and the forms that other runtimes read."""
