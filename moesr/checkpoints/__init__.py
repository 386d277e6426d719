"""Reading weights safely, telling what they are from their keys and shapes, writing them as one file."""
